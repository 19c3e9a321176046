//! Golden tests: for each `golden/<stem>.idl`, either all outputs or the error messages.
//!
//! `UPDATE_GOLDEN=1 cargo test` writes what the compiler makes now; read the difference before it is
//! committed.

use std::fs;
use std::path::{Path, PathBuf};

use libxl_idl::Model;
use libxl_idl::emit::{self, CHeaderOptions, CTestOptions, Import, RustOptions};

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn rust_options() -> RustOptions {
    let disk = Import {
        safe: "crate::imported::DeviceDisk".to_owned(),
        ffi: "crate::imported::libxl_device_disk".to_owned(),
    };
    let imports = [("libxl_device_disk".to_owned(), disk)].into();
    RustOptions {
        imports,
        ..RustOptions::default()
    }
}

/// The types and what connects them with C, which belong into one module.
fn rust(model: &Model) -> String {
    let types = emit::rust(model, &rust_options()).expect("the model has a Rust form");
    let glue = emit::ffi_glue(model, &rust_options()).expect("its types can be copied and freed");
    format!("{types}\n{glue}")
}

/// `_features_types.h`, since the guard of `_features.h` would be the one of the C library's `features.h`.
fn header_name(golden: &Path) -> String {
    let stem = golden.file_stem().expect("a stem").to_string_lossy();
    format!("_{}_types.h", stem.trim_end_matches("_types"))
}

fn compare(path: &Path, actual: &str, failures: &mut Vec<String>) {
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(path, actual).expect("the golden file can be written");
        return;
    }
    let expected = fs::read_to_string(path).unwrap_or_default();
    if expected == actual {
        return;
    }
    let line = expected
        .lines()
        .zip(actual.lines())
        .position(|(expected, actual)| expected != actual)
        .unwrap_or_else(|| expected.lines().count().min(actual.lines().count()));
    failures.push(format!(
        "{}:{}:\n  expected: {}\n  actual:   {}",
        path.display(),
        line + 1,
        expected.lines().nth(line).unwrap_or("(end)"),
        actual.lines().nth(line).unwrap_or("(end)"),
    ));
}

fn check(idl: &Path, golden: &Path, failures: &mut Vec<String>) {
    let name = idl
        .file_name()
        .expect("a file has a name")
        .to_string_lossy()
        .into_owned();
    let source = fs::read_to_string(idl).expect("the input can be read");
    match libxl_idl::compile(&source, &name) {
        Ok(model) => {
            let header = CHeaderOptions {
                file_name: header_name(golden),
                includes: vec!["libxl.h".to_owned()],
                ..CHeaderOptions::default()
            };
            compare(
                &golden.with_extension("h"),
                &emit::c_header(&model, &header),
                failures,
            );
            let test = CTestOptions {
                includes: vec!["libxl.h".to_owned(), header.file_name.clone()],
            };
            compare(
                &golden.with_extension("test.c"),
                &emit::c_test(&model, &test),
                failures,
            );
            compare(
                &golden.with_extension("layout.c"),
                &emit::layout_c(&model, &header.includes),
                failures,
            );
            compare(
                &golden.with_extension("layout.rs"),
                &emit::layout_rust(&model),
                failures,
            );
            let rust = rust(&model);
            compare(&golden.with_extension("rs"), &rust, failures);
            compare(
                &golden.with_extension("json"),
                &emit::json(&model),
                failures,
            );
        }
        Err(diagnostics) => {
            compare(
                &golden.with_extension("stderr"),
                &format!("{diagnostics}\n"),
                failures,
            );
        }
    }
}

#[test]
fn outputs_are_as_recorded() {
    let mut inputs: Vec<PathBuf> = fs::read_dir(directory())
        .expect("the golden directory can be read")
        .map(|entry| entry.expect("its entries can be read").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "idl"))
        .collect();
    inputs.sort();
    assert!(inputs.len() >= 3, "the golden inputs are missing");
    let mut failures = Vec::new();
    for idl in &inputs {
        check(idl, idl, &mut failures);
    }
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("../idl/libxl_ext_types.idl");
    check(&ours, &directory().join("libxl_ext_types"), &mut failures);
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn output_is_the_same_each_time() {
    let source = fs::read_to_string(directory().join("features.idl")).expect("the input is there");
    let outputs = || {
        let model = libxl_idl::compile(&source, "features.idl").expect("it is right");
        let rust = rust(&model);
        (
            rust,
            emit::c_header(&model, &CHeaderOptions::default()),
            emit::json(&model),
        )
    };
    let first = outputs();
    for _ in 0..5 {
        assert!(outputs() == first, "two runs differ");
    }
}
