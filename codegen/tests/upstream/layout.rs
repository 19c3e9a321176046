//! Sizes and offsets of every type and member, once by the C compiler and once by rustc.

use std::fs;
use std::path::Path;
use std::process::Command;

use libxl_idl::Model;
use libxl_idl::emit::{self, RustOptions};

use crate::source::Upstream;

fn run(command: &mut Command, program: &Path) -> String {
    let compiled = command.output().expect("the compiler can be run");
    assert!(
        compiled.status.success(),
        "{}",
        String::from_utf8_lossy(&compiled.stderr)
    );
    let output = Command::new(program)
        .output()
        .expect("the program can be run");
    assert!(output.status.success());
    String::from_utf8(output.stdout).expect("it prints text")
}

/// The layout by the C compiler; None if there is none, or no libxl.h.
pub(crate) fn of_c(upstream: &Upstream, model: &Model) -> Option<String> {
    let compiler = Command::new("cc").arg("--version").output().is_ok();
    if !compiler || !Path::new("/usr/include/libxl.h").exists() {
        return None;
    }
    // The header of this very source takes the place of the installed one.
    upstream.header("libxl_types");
    let text = emit::layout_c(model, &["libxl.h".to_owned()]);
    let source = upstream.output().join("layout.c");
    let program = upstream.output().join("layout-c");
    fs::write(&source, text).expect("the program can be written");
    let mut command = Command::new("cc");
    command
        .arg("-w")
        .arg("-I")
        .arg(upstream.output())
        .arg(&source)
        .arg("-o")
        .arg(&program);
    Some(run(&mut command, &program))
}

/// The layout by rustc.
pub(crate) fn of_rust(upstream: &Upstream, model: &Model) -> String {
    let options = RustOptions {
        builtin: "crate::builtin".to_owned(),
        ..RustOptions::default()
    };
    let rust = emit::rust(model, &options).expect("the model has a Rust form");
    // The mirrors need no other crate, so they are compiled alone.
    let start = rust.find("pub mod ffi").expect("there are mirrors");
    let builtin = Path::new(env!("CARGO_MANIFEST_DIR")).join("builtin/src/ffi.rs");
    let text = format!(
        "#![allow(dead_code)]\nmod builtin {{ #[path = \"{}\"] pub mod ffi; }}\n{}\n{}\n\
         fn main() {{\n\
         for (name, first, second) in LAYOUT {{ println!(\"{{name}} {{first}} {{second}}\"); }}\n\
         }}\n",
        builtin.display(),
        &rust[start..],
        emit::layout_rust(model),
    );
    let source = upstream.output().join("layout.rs");
    let program = upstream.output().join("layout-rust");
    fs::write(&source, text).expect("the program can be written");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut command = Command::new(rustc);
    command
        .args(["--edition", "2024", "-A", "warnings", "-o"])
        .arg(&program)
        .arg(&source);
    run(&mut command, &program)
}
