//! The IDL compiler: any text is either refused in words, or means the same when it is written out and
//! read again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use libxl_idl::emit;

fuzz_target!(|source: &str| {
    let model = match libxl_idl::compile(source, "input.idl") {
        Ok(model) => model,
        Err(diagnostics) => {
            assert!(!diagnostics.to_string().is_empty());
            return;
        }
    };
    let written = emit::idl(&model);
    let again = libxl_idl::compile(&written, "written.idl").unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(emit::idl(&again), written);
    let _ = emit::json(&model);
    let _ = emit::c_header(&model, &emit::CHeaderOptions::default());
    let _ = emit::layout_c(&model, &[]);
    let _ = emit::layout_rust(&model);
    let _ = emit::rust(&model, &emit::RustOptions::default());
});
