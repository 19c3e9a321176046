//! The C compiler and rustc give the types of `idl/libxl_ext_types.idl` the same layout, with libxl's real
//! `libxl_device_disk` in them.

use libxl_ext::types::LAYOUT;
use libxl_idl::emit::{self, CHeaderOptions};
use std::fs;
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

fn output(command: &mut Command) -> String {
    let output = command.output().expect("the program can be run");
    let messages = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {messages}");
    String::from_utf8(output.stdout).expect("it prints text")
}

/// The layout by the C compiler.
fn of_c() -> String {
    let idl = Path::new(env!("CARGO_MANIFEST_DIR")).join("../idl/libxl_ext_types.idl");
    let source = fs::read_to_string(&idl).expect("the IDL is in the repository");
    let model = libxl_idl::compile(&source, "libxl_ext_types.idl")
        .unwrap_or_else(|diagnostics| panic!("{diagnostics}"));
    let directory = TempDir::new().expect("a temporary directory can be made");
    let write = |name: &str, text: String| {
        let path = directory.path().join(name);
        fs::write(&path, text).expect("the file can be written");
        path
    };
    let name = "_libxl_ext_types.h";
    let options = CHeaderOptions {
        file_name: name.to_owned(),
        includes: vec!["libxl.h".to_owned()],
        ..CHeaderOptions::default()
    };
    write(name, emit::c_header(&model, &options));
    let program = write("layout.c", emit::layout_c(&model, &[name.to_owned()]));
    let executable = directory.path().join("layout");
    let flags = output(Command::new("pkg-config").args(["--cflags", "xenlight"]));
    output(
        Command::new("cc")
            .args(["-Wall", "-Wextra", "-Werror", "-I"])
            .arg(directory.path())
            .args(flags.split_whitespace())
            .arg(&program)
            .arg("-o")
            .arg(&executable),
    );
    output(&mut Command::new(&executable))
}

#[test]
fn c_and_rust_agree_on_every_type_and_member() {
    let ours: Vec<String> = LAYOUT
        .iter()
        .map(|(name, first, second)| format!("{name} {first} {second}"))
        .collect();
    let theirs = of_c();
    // Four enumerations, three structs and the members of these.
    assert!(ours.len() >= 28, "too few places are compared: {ours:?}");
    for (ours, theirs) in ours.iter().zip(theirs.lines()) {
        assert_eq!(ours, theirs);
    }
    assert_eq!(ours.len(), theirs.lines().count());
}
