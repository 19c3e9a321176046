//! The builtin types on their way to C and back.

use std::ffi::CStr;
use std::ptr;

use libxl_idl_builtin::c_value::{copy_array, dispose_array, read_array, write_array};
use libxl_idl_builtin::{
    Bitmap, CText, CValue, CValueError, Defbool, KeyValueList, Mac, StringList, Uuid,
};
use proptest::prelude::*;

/// Writes, copies, disposes the original and reads the copy.
fn round_trip<T: CValue>(value: &T) -> Result<T, CValueError> {
    let mut c = T::zeroed();
    value.write(&mut c)?;
    let mut copy = T::zeroed();
    // SAFETY: both were made here and are disposed once.
    unsafe {
        T::copy(&c, &mut copy);
        T::dispose(&mut c);
        let read = T::read(&copy);
        T::dispose(&mut copy);
        read
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn values_survive_the_way_through_c(
        text in prop::option::of("[^\0]*"),
        list in prop::collection::vec("[^\0]*", 0..6),
        entries in prop::collection::vec(("[^\0]*", prop::option::of("[^\0]*")), 0..6),
        bits in prop::collection::vec(0..2000_u32, 0..20),
        uuid in any::<[u8; 16]>(),
        mac in any::<[u8; 6]>(),
    ) {
        prop_assert_eq!(round_trip::<CText>(&text), Ok(text));
        prop_assert_eq!(round_trip::<StringList>(&list), Ok(list));
        let entries = KeyValueList(entries);
        prop_assert_eq!(round_trip(&entries), Ok(entries));
        let bitmap: Bitmap = bits.into_iter().collect();
        prop_assert_eq!(round_trip(&bitmap), Ok(bitmap));
        prop_assert_eq!(round_trip(&Uuid(uuid)), Ok(Uuid(uuid)));
        prop_assert_eq!(round_trip(&Mac(mac)), Ok(Mac(mac)));
    }

    #[test]
    fn arrays_survive_the_way_through_c(texts in prop::collection::vec(any::<Option<u8>>(), 0..6)) {
        let texts: Vec<CText> = texts.iter().map(|text| text.map(|text| text.to_string())).collect();
        let (mut array, mut length) = (ptr::null_mut(), 0);
        let (mut copy, mut copy_length) = (ptr::null_mut(), 0);
        write_array(&texts, &mut array, &mut length).expect("it has a C form");
        // SAFETY: both arrays were made here and are disposed once.
        unsafe {
            copy_array::<CText>(array, length, &mut copy, &mut copy_length);
            dispose_array::<CText>(&mut array, &mut length);
            prop_assert_eq!(read_array::<CText>(copy, copy_length), Ok(texts));
            dispose_array::<CText>(&mut copy, &mut copy_length);
        }
        prop_assert!(array.is_null() && copy.is_null() && length == 0 && copy_length == 0);
    }
}

#[test]
fn defbool_has_three_values() {
    for (value, number) in [
        (Defbool::False, -1),
        (Defbool::Default, 0),
        (Defbool::True, 1),
    ] {
        let mut c = Defbool::zeroed();
        value.write(&mut c).expect("it has a C form");
        assert_eq!(c.val, number);
        assert_eq!(round_trip(&value), Ok(value));
    }
}

#[test]
fn strings_that_do_not_fit_are_errors() {
    assert_eq!(
        round_trip(&Some("a\0b".to_owned())),
        Err(CValueError::InteriorNul)
    );
    let mut latin = *b"\xe9\0";
    // SAFETY: it is a C string.
    let read = unsafe { CText::read(&latin.as_mut_ptr().cast()) };
    assert_eq!(read, Err(CValueError::NotUtf8));
}

#[test]
fn what_was_written_before_an_error_can_be_disposed() {
    let list: StringList = vec![
        "first".to_owned(),
        "sec\0ond".to_owned(),
        "third".to_owned(),
    ];
    let mut c = StringList::zeroed();
    assert_eq!(list.write(&mut c), Err(CValueError::InteriorNul));
    // SAFETY: `write` has left a list, which ends with null.
    unsafe {
        assert_eq!(CStr::from_ptr(*c), c"first");
        StringList::dispose(&mut c);
    }
    assert!(c.is_null());
}

#[test]
fn a_copy_overwrites_what_was_never_initialised() {
    fn copy<T: CValue>(mut to: T::C) -> T::C {
        // SAFETY: what is copied holds nothing.
        unsafe { T::copy(&T::zeroed(), &mut to) };
        to
    }

    assert!(copy::<CText>(ptr::dangling_mut()).is_null());
    assert!(copy::<StringList>(ptr::dangling_mut()).is_null());
    assert!(copy::<KeyValueList>(ptr::dangling_mut()).is_null());
    let garbage = libxl_idl_builtin::ffi::libxl_bitmap {
        size: 7,
        map: ptr::dangling_mut(),
    };
    let bitmap = copy::<Bitmap>(garbage);
    assert!(bitmap.map.is_null() && bitmap.size == 0);
}

#[test]
fn a_negative_length_is_an_error() {
    // SAFETY: nothing is read.
    let read = unsafe { read_array::<u8>(ptr::null(), -1) };
    assert_eq!(read, Err(CValueError::Length));
}
