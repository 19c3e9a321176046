//! The types that libxl's IDL takes for granted, for Rust.
//!
//! The code that `libxl-idl` generates refers to them: the safe types here, their C mirrors in
//! [`ffi`]. All of them are written and read in libxl's JSON dialect, which the generated code does
//! with the help of [`json`].

mod bitmap;
pub mod c_function;
pub mod c_value;
mod cpuid;
mod defbool;
pub mod enumeration;
pub mod ffi;
mod hwcap;
pub mod json;
mod json_value;
mod key_value_list;
mod mac;
mod uuid;
mod vm_genid;

pub use bitmap::Bitmap;
pub use c_value::{CValue, CValueError};
pub use cpuid::CpuidPolicyList;
pub use defbool::Defbool;
pub use enumeration::{UnknownName, UnknownValue};
pub use hwcap::Hwcap;
pub use key_value_list::KeyValueList;
pub use mac::Mac;
pub use uuid::Uuid;
pub use vm_genid::MsVmGenid;

/// A string; C's null pointer is `None`, and JSON's null.
pub type CText = Option<String>;

/// A list of strings, which in C ends with a null pointer.
pub type StringList = Vec<String>;

/// The number of a domain.
pub type Domid = u32;

/// The number of a device; -1 lets libxl choose.
pub type Devid = i32;

/// Tells whether a value is the one that libxl initialises it to. Such a field is left out of JSON.
pub trait IsDefault {
    /// True if there is nothing to print.
    fn is_default(&self) -> bool;
}

impl IsDefault for CText {
    fn is_default(&self) -> bool {
        self.is_none()
    }
}

impl IsDefault for StringList {
    fn is_default(&self) -> bool {
        self.is_empty()
    }
}
