//! What the generated C functions have in common: no panic leaves them, and they pass the ctx on.

use std::cell::Cell;
use std::ffi::{CStr, c_int, c_void};
use std::ptr;

use libxl_idl_builtin::c_function::{self, current_ctx, with_ctx};
use libxl_idl_builtin::{CText, CValue, CValueError};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    Nowhere,
    Default,
    Read,
    Write,
    Copy,
    Dispose,
    Serialize,
    Deserialize,
}

thread_local! {
    static PANIC: Cell<At> = const { Cell::new(At::Nowhere) };
    static DROPPED: Cell<bool> = const { Cell::new(false) };
    static SEEN: Cell<*mut c_void> = const { Cell::new(ptr::null_mut()) };
}

/// What a panic carries here. To drop it could be another panic.
struct Payload;

impl Drop for Payload {
    fn drop(&mut self) {
        DROPPED.set(true);
    }
}

fn reached(place: At) {
    if PANIC.get() == place {
        std::panic::panic_any(Payload);
    }
}

/// A type whose code panics where [`PANIC`] says.
struct Fragile(CText);

impl Default for Fragile {
    fn default() -> Self {
        reached(At::Default);
        Self(Some("initial".to_owned()))
    }
}

impl Serialize for Fragile {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        reached(At::Serialize);
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Fragile {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        reached(At::Deserialize);
        CText::deserialize(deserializer).map(Self)
    }
}

// SAFETY: it is that of a string.
unsafe impl CValue for Fragile {
    type C = <CText as CValue>::C;

    unsafe fn read(c: &Self::C) -> Result<Self, CValueError> {
        reached(At::Read);
        SEEN.set(current_ctx());
        // SAFETY: as the caller promises.
        unsafe { CText::read(c) }.map(Self)
    }

    fn write(&self, c: &mut Self::C) -> Result<(), CValueError> {
        reached(At::Write);
        self.0.write(c)
    }

    unsafe fn copy(from: &Self::C, to: &mut Self::C) {
        *to = *from;
        reached(At::Copy);
        // SAFETY: as the caller promises.
        unsafe { CText::copy(from, to) };
    }

    unsafe fn dispose(c: &mut Self::C) {
        reached(At::Dispose);
        // SAFETY: as the caller promises.
        unsafe { CText::dispose(c) };
    }
}

type C = <Fragile as CValue>::C;

fn value(text: &str) -> C {
    let mut c = Fragile::zeroed();
    CText::write(&Some(text.to_owned()), &mut c).expect("it has a C form");
    c
}

fn text(c: C) -> Option<String> {
    // SAFETY: it was made by `CText`.
    unsafe { CText::read(&c) }.expect("it is text")
}

fn free(mut c: C) {
    // SAFETY: it was made by `CText`, and is not used again.
    unsafe { CText::dispose(&mut c) };
}

fn from_json(c: &mut C, json: &CStr) -> c_int {
    // SAFETY: both are valid; what was in `c` is nothing.
    unsafe { c_function::from_json::<Fragile>(c, Fragile::init, json.as_ptr()) }
}

#[test]
fn a_panic_is_an_error_in_c() {
    let mut c = value("one");
    for place in [At::Read, At::Serialize] {
        PANIC.set(place);
        // SAFETY: the value is valid.
        assert!(unsafe { c_function::to_json::<Fragile>(&raw const c) }.is_null());
        assert!(!DROPPED.get());
    }
    free(c);
    PANIC.set(At::Deserialize);
    assert_eq!(from_json(&mut c, c"\"two\""), -3);
    assert_eq!(text(c).as_deref(), Some("initial"));
    free(c);
    // Here the initial value cannot be made either.
    for place in [At::Write, At::Default] {
        PANIC.set(place);
        c = value("left");
        free(c);
        let expected = if place == At::Write { -3 } else { 0 };
        assert_eq!(from_json(&mut c, c"\"two\""), expected);
        assert_eq!(text(c), (expected == 0).then(|| "two".to_owned()));
        free(c);
    }
}

#[test]
fn a_panic_without_an_error_leaves_a_value_that_holds_nothing() {
    let c = value("one");
    let mut other = Fragile::zeroed();
    // SAFETY: the values are valid, and what they hold is freed once.
    unsafe {
        PANIC.set(At::Copy);
        c_function::copy::<Fragile>(&raw mut other, &raw const c);
        assert!(other.is_null());
        for place in [At::Default, At::Write] {
            PANIC.set(place);
            other = c;
            c_function::init::<Fragile>(&raw mut other);
            assert!(other.is_null());
        }
        PANIC.set(At::Dispose);
        other = c;
        c_function::dispose::<Fragile>(&raw mut other);
        assert!(other.is_null());
        PANIC.set(At::Nowhere);
    }
    assert_eq!(text(c).as_deref(), Some("one"));
    free(c);
}

#[test]
fn the_ctx_is_that_of_the_running_function() {
    let (mut outer, mut inner) = (0_u8, 0_u8);
    let outer = (&raw mut outer).cast::<c_void>();
    let inner = (&raw mut inner).cast::<c_void>();
    let mut c = value("one");
    // SAFETY: nothing looks into the ctx, and the values are valid.
    unsafe {
        with_ctx(outer, || {
            assert_eq!(current_ctx(), outer);
            with_ctx(inner, || {
                let json = c_function::to_json::<Fragile>(&raw const c);
                assert_eq!(CStr::from_ptr(json), c"\"one\"\n");
                libc::free(json.cast());
            });
            assert_eq!(SEEN.get(), inner);
            let panicked = c_function::no_unwind(|| with_ctx(inner, || panic!("on purpose")));
            assert_eq!(panicked, None::<()>);
            assert_eq!(current_ctx(), outer);
        });
        assert!(current_ctx().is_null());
        c_function::dispose::<Fragile>(&raw mut c);
    }
    let elsewhere = std::thread::spawn(|| current_ctx().is_null()).join();
    assert!(elsewhere.is_ok_and(|null| null));
}

#[test]
fn null_pointers_are_harmless() {
    let mut c = Fragile::zeroed();
    let ok = c"null".as_ptr();
    // SAFETY: null is allowed.
    unsafe {
        c_function::init::<Fragile>(ptr::null_mut());
        c_function::dispose::<Fragile>(ptr::null_mut());
        c_function::copy::<Fragile>(ptr::null_mut(), &raw const c);
        c_function::copy::<Fragile>(&raw mut c, ptr::null());
        assert!(c_function::to_json::<Fragile>(ptr::null()).is_null());
        let from_json = c_function::from_json::<Fragile>;
        assert_eq!(from_json(ptr::null_mut(), ptr::null_mut, ok), -6);
        assert_eq!(from_json(&raw mut c, ptr::null_mut, ptr::null()), -6);
    }
    assert!(c.is_null());
}
