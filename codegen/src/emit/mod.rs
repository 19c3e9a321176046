//! The emitters: one model, one emitter per output. None of them knows of another's text.

mod c_header;
mod c_test;
mod compat;
mod idl;
mod json;
mod layout;
mod rust;
mod writer;

pub use c_header::{CHeaderOptions, c_header};
pub use c_test::{CTestOptions, c_test};
pub use compat::Compat;
pub use idl::idl;
pub use json::json;
pub use layout::{layout_c, layout_rust};
pub use rust::{EmitError, Import, RustOptions, ffi_glue, rust};

use writer::Writer;
