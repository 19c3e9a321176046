//! From safe values to C's and back. What C owns is on C's heap, so that C's `free` can release it.

use std::ffi::{CStr, CString, c_char, c_int};
use std::{mem, ptr, slice};

use crate::{Bitmap, Defbool, Hwcap, KeyValueList, Mac, MsVmGenid, UnknownValue, Uuid, ffi};

/// Why a value cannot pass between C and Rust.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CValueError {
    /// A C string that is not UTF-8.
    #[error("a string is not UTF-8")]
    NotUtf8,
    /// A string with a NUL inside, where C's would end.
    #[error("a string contains a NUL character")]
    InteriorNul,
    /// An enumeration that is outside of its values.
    #[error(transparent)]
    UnknownValue(#[from] UnknownValue),
    /// More elements than an `int` can count, or less than none.
    #[error("an array has an impossible length")]
    Length,
    /// The functions of an imported type do not take the value; the text says which and why.
    #[error("{0}")]
    Foreign(String),
}

/// A safe type with a C mirror.
///
/// # Safety
/// A `C` of which all bytes are zero must be valid, and must hold nothing.
pub unsafe trait CValue: Sized {
    /// The mirror.
    type C;

    /// The safe form of a C value.
    ///
    /// # Errors
    /// When C holds what has no safe form.
    ///
    /// # Safety
    /// The pointers in `c` must be null or valid as libxl defines it.
    unsafe fn read(c: &Self::C) -> Result<Self, CValueError>;

    /// Puts the value into a C value that holds nothing yet.
    ///
    /// # Errors
    /// When it has no C form; `c` then holds a part, and can be disposed.
    fn write(&self, c: &mut Self::C) -> Result<(), CValueError>;

    /// Copies between C values deeply; `to` holds nothing yet.
    ///
    /// # Safety
    /// As for `read`.
    unsafe fn copy(from: &Self::C, to: &mut Self::C);

    /// Frees what a C value holds. It must not be used afterwards, except to be overwritten.
    ///
    /// # Safety
    /// As for `read`; and the memory must come from C's heap.
    unsafe fn dispose(c: &mut Self::C);

    /// A C value that holds nothing.
    fn zeroed() -> Self::C {
        // SAFETY: who implements the trait promises that this is valid.
        unsafe { mem::zeroed() }
    }

    /// A C value as its `_init` function makes it.
    fn init() -> Self::C
    where
        Self: Default,
    {
        let mut c = Self::zeroed();
        let written = Self::default().write(&mut c);
        debug_assert!(written.is_ok(), "a default has a C form");
        c
    }
}

/// Reserves zeroed memory on C's heap. Like libxl, it ends the process when there is none.
fn allocate<T>(count: usize) -> *mut T {
    if count == 0 {
        return ptr::null_mut();
    }
    // SAFETY: calloc checks the product of its arguments.
    let memory = unsafe { libc::calloc(count, size_of::<T>().max(1)) };
    if memory.is_null() {
        std::alloc::handle_alloc_error(std::alloc::Layout::new::<T>());
    }
    memory.cast()
}

/// A string on C's heap.
///
/// # Errors
/// When it contains a NUL.
pub fn c_string(text: &str) -> Result<*mut c_char, CValueError> {
    let text = CString::new(text).map_err(|_| CValueError::InteriorNul)?;
    Ok(duplicate(&text))
}

fn duplicate(text: &CStr) -> *mut c_char {
    let bytes = text.to_bytes_with_nul();
    let memory = allocate::<c_char>(bytes.len());
    // SAFETY: the memory is as long as the text, and new.
    unsafe { ptr::copy_nonoverlapping(text.as_ptr(), memory, bytes.len()) };
    memory
}

/// Reads a C string; null is `None`.
///
/// # Errors
/// When it is not UTF-8.
///
/// # Safety
/// The pointer must be null or point to a string.
pub unsafe fn text(pointer: *const c_char) -> Result<Option<String>, CValueError> {
    if pointer.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller promises a string.
    let text = unsafe { CStr::from_ptr(pointer) };
    text.to_str()
        .map(|text| Some(text.to_owned()))
        .map_err(|_| CValueError::NotUtf8)
}

/// Frees memory of C's heap.
fn free<T>(pointer: &mut *mut T) {
    // SAFETY: null or from C's heap, as `dispose` demands; and the pointer is forgotten here.
    unsafe { libc::free(mem::replace(pointer, ptr::null_mut()).cast()) };
}

/// Values that are the same in C and Rust, and hold nothing.
macro_rules! plain {
    ($($ty:ty),*) => { $(
        // SAFETY: zero is valid.
        unsafe impl CValue for $ty {
            type C = $ty;

            unsafe fn read(c: &Self::C) -> Result<Self, CValueError> {
                Ok(*c)
            }

            fn write(&self, c: &mut Self::C) -> Result<(), CValueError> {
                *c = *self;
                Ok(())
            }

            unsafe fn copy(from: &Self::C, to: &mut Self::C) {
                *to = *from;
            }

            unsafe fn dispose(_: &mut Self::C) {}
        }
    )* };
}

plain!(bool, u8, u16, u32, u64, usize, i32);

/// Values that are plain bytes or numbers in C.
macro_rules! wrapped {
    ($($ty:ty, $c:ty, $from:ident => $read:expr, $value:ident => $write:expr;)*) => { $(
        // SAFETY: zero is valid.
        unsafe impl CValue for $ty {
            type C = $c;

            unsafe fn read(c: &Self::C) -> Result<Self, CValueError> {
                let $from = c;
                Ok($read)
            }

            fn write(&self, c: &mut Self::C) -> Result<(), CValueError> {
                let $value = self;
                *c = $write;
                Ok(())
            }

            unsafe fn copy(from: &Self::C, to: &mut Self::C) {
                *to = *from;
            }

            unsafe fn dispose(_: &mut Self::C) {}
        }
    )* };
}

wrapped! {
    Uuid, ffi::libxl_uuid, c => Self(c.uuid), value => ffi::libxl_uuid { uuid: value.0 };
    Mac, ffi::libxl_mac, c => Self(*c), value => value.0;
    Hwcap, ffi::libxl_hwcap, c => Self(*c), value => value.0;
    MsVmGenid, ffi::libxl_ms_vm_genid, c => Self(c.bytes),
        value => ffi::libxl_ms_vm_genid { bytes: value.0 };
    Defbool, ffi::libxl_defbool,
        c => match c.val.signum() {
            -1 => Self::False,
            0 => Self::Default,
            _ => Self::True,
        },
        value => ffi::libxl_defbool {
            val: match value {
                Self::False => -1,
                Self::Default => 0,
                Self::True => 1,
            },
        };
}

// SAFETY: null is valid and holds nothing.
unsafe impl CValue for Option<String> {
    type C = *mut c_char;

    unsafe fn read(c: &Self::C) -> Result<Self, CValueError> {
        // SAFETY: the caller promises a string or null.
        unsafe { text(*c) }
    }

    fn write(&self, c: &mut Self::C) -> Result<(), CValueError> {
        *c = match self {
            Some(text) => c_string(text)?,
            None => ptr::null_mut(),
        };
        Ok(())
    }

    unsafe fn copy(from: &Self::C, to: &mut Self::C) {
        *to = if from.is_null() {
            ptr::null_mut()
        } else {
            // SAFETY: the caller promises a string.
            duplicate(unsafe { CStr::from_ptr(*from) })
        };
    }

    unsafe fn dispose(c: &mut Self::C) {
        free(c);
    }
}

/// The strings of a list that ends with a null pointer at a place that is a multiple of `step`.
///
/// # Safety
/// The pointer must be null or point to such a list.
unsafe fn list<'c>(c: *mut *mut c_char, step: usize) -> &'c mut [*mut c_char] {
    if c.is_null() {
        return &mut [];
    }
    let mut length = 0;
    // SAFETY: the caller promises that null ends the list.
    while unsafe { !(*c.add(length)).is_null() } {
        length += step;
    }
    // SAFETY: as many were seen, or lie in between.
    unsafe { slice::from_raw_parts_mut(c, length) }
}

fn write_list<'t>(
    texts: impl ExactSizeIterator<Item = Option<&'t str>>,
    c: &mut *mut *mut c_char,
) -> Result<(), CValueError> {
    if texts.len() == 0 {
        return Ok(());
    }
    *c = allocate(texts.len() + 1);
    for (index, text) in texts.enumerate() {
        if let Some(text) = text {
            // SAFETY: there is room for all of them.
            unsafe { *(*c).add(index) = c_string(text)? };
        }
    }
    Ok(())
}

unsafe fn copy_list(from: *mut *mut c_char, to: &mut *mut *mut c_char, step: usize) {
    // C may not have initialised what it copies to.
    *to = ptr::null_mut();
    if from.is_null() {
        return;
    }
    // SAFETY: as the caller promises.
    let texts = unsafe { list(from, step) };
    *to = allocate(texts.len() + 1);
    for (index, text) in texts.iter().enumerate() {
        // SAFETY: there is room for all of them.
        unsafe { <Option<String>>::copy(text, &mut *(*to).add(index)) };
    }
}

unsafe fn dispose_list(c: &mut *mut *mut c_char, step: usize) {
    // SAFETY: as the caller promises.
    for text in unsafe { list(*c, step) } {
        free(text);
    }
    free(c);
}

// SAFETY: null is valid and holds nothing.
unsafe impl CValue for Vec<String> {
    type C = ffi::libxl_string_list;

    unsafe fn read(c: &Self::C) -> Result<Self, CValueError> {
        // SAFETY: as the caller promises.
        let texts = unsafe { list(*c, 1) };
        // SAFETY: the list holds strings.
        texts
            .iter()
            .filter_map(|&text| unsafe { self::text(text) }.transpose())
            .collect()
    }

    fn write(&self, c: &mut Self::C) -> Result<(), CValueError> {
        write_list(self.iter().map(|text| Some(text.as_str())), c)
    }

    unsafe fn copy(from: &Self::C, to: &mut Self::C) {
        // SAFETY: as the caller promises.
        unsafe { copy_list(*from, to, 1) };
    }

    unsafe fn dispose(c: &mut Self::C) {
        // SAFETY: as the caller promises.
        unsafe { dispose_list(c, 1) };
    }
}

// SAFETY: null is valid and holds nothing.
unsafe impl CValue for KeyValueList {
    type C = ffi::libxl_key_value_list;

    unsafe fn read(c: &Self::C) -> Result<Self, CValueError> {
        // SAFETY: as the caller promises; a value, unlike a key, can be null.
        let texts = unsafe { list(*c, 2) };
        let mut entries = Vec::new();
        for pair in texts.chunks_exact(2) {
            // SAFETY: the list holds strings.
            let (key, value) = unsafe { (text(pair[0])?, text(pair[1])?) };
            entries.push((key.unwrap_or_default(), value));
        }
        Ok(Self(entries))
    }

    fn write(&self, c: &mut Self::C) -> Result<(), CValueError> {
        let texts: Vec<Option<&str>> = self
            .0
            .iter()
            .flat_map(|(key, value)| [Some(key.as_str()), value.as_deref()])
            .collect();
        write_list(texts.into_iter(), c)
    }

    unsafe fn copy(from: &Self::C, to: &mut Self::C) {
        // SAFETY: as the caller promises.
        unsafe { copy_list(*from, to, 2) };
    }

    unsafe fn dispose(c: &mut Self::C) {
        // SAFETY: as the caller promises.
        unsafe { dispose_list(c, 2) };
    }
}

// SAFETY: an empty map is valid and holds nothing.
unsafe impl CValue for Bitmap {
    type C = ffi::libxl_bitmap;

    unsafe fn read(c: &Self::C) -> Result<Self, CValueError> {
        if c.map.is_null() {
            return Ok(Self::new());
        }
        // SAFETY: the caller promises that the map has the size that it says.
        let bytes = unsafe { slice::from_raw_parts(c.map, c.size as usize) };
        let bits = bytes.iter().zip(0_u32..).flat_map(|(byte, index)| {
            (0..8)
                .filter(move |bit| byte & (1 << bit) != 0)
                .map(move |bit| index * 8 + bit)
        });
        Ok(bits.collect())
    }

    fn write(&self, c: &mut Self::C) -> Result<(), CValueError> {
        let Some(last) = self.iter().last() else {
            return Ok(());
        };
        c.size = last / 8 + 1;
        c.map = allocate(c.size as usize);
        // SAFETY: the map was just made of this size.
        let bytes = unsafe { slice::from_raw_parts_mut(c.map, c.size as usize) };
        for bit in self.iter() {
            bytes[bit as usize / 8] |= 1 << (bit % 8);
        }
        Ok(())
    }

    unsafe fn copy(from: &Self::C, to: &mut Self::C) {
        // C may not have initialised what it copies to.
        *to = Self::zeroed();
        if from.map.is_null() {
            return;
        }
        to.size = from.size;
        to.map = allocate(from.size as usize);
        // SAFETY: both maps have this size, and one is new.
        unsafe { ptr::copy_nonoverlapping(from.map, to.map, from.size as usize) };
    }

    unsafe fn dispose(c: &mut Self::C) {
        free(&mut c.map);
        c.size = 0;
    }
}

/// Reads an array.
///
/// # Errors
/// When an element has no safe form, or the length is negative.
///
/// # Safety
/// There must be as many elements as `length` says, valid as for [`CValue::read`].
pub unsafe fn read_array<T: CValue>(
    array: *const T::C,
    length: c_int,
) -> Result<Vec<T>, CValueError> {
    let length = usize::try_from(length).map_err(|_| CValueError::Length)?;
    if array.is_null() || length == 0 {
        return Ok(Vec::new());
    }
    // SAFETY: as the caller promises.
    let elements = unsafe { slice::from_raw_parts(array, length) };
    // SAFETY: as the caller promises.
    elements
        .iter()
        .map(|element| unsafe { T::read(element) })
        .collect()
}

/// Writes an array.
///
/// # Errors
/// When an element has no C form, or there are too many.
pub fn write_array<T: CValue>(
    values: &[T],
    array: &mut *mut T::C,
    length: &mut c_int,
) -> Result<(), CValueError> {
    *length = c_int::try_from(values.len()).map_err(|_| CValueError::Length)?;
    *array = allocate(values.len());
    for (index, value) in values.iter().enumerate() {
        // SAFETY: there is room for all of them, and zero is valid.
        value.write(unsafe { &mut *(*array).add(index) })?;
    }
    Ok(())
}

/// Copies an array.
///
/// # Safety
/// As for [`read_array`].
pub unsafe fn copy_array<T: CValue>(
    from: *const T::C,
    from_length: c_int,
    to: &mut *mut T::C,
    to_length: &mut c_int,
) {
    let length = if from.is_null() {
        0
    } else {
        usize::try_from(from_length).unwrap_or(0)
    };
    *to_length = if length == 0 { 0 } else { from_length };
    *to = allocate(length);
    for index in 0..length {
        // SAFETY: as the caller promises; and there is room for all of them, with zero valid.
        unsafe { T::copy(&*from.add(index), &mut *(*to).add(index)) };
    }
}

/// Frees an array and what its elements hold.
///
/// # Safety
/// As for [`read_array`]; and the memory must come from C's heap.
pub unsafe fn dispose_array<T: CValue>(array: &mut *mut T::C, length: &mut c_int) {
    let count = if array.is_null() {
        0
    } else {
        usize::try_from(*length).unwrap_or(0)
    };
    for index in 0..count {
        // SAFETY: as the caller promises.
        unsafe { T::dispose(&mut *(*array).add(index)) };
    }
    free(array);
    *length = 0;
}
