//! The command `xl-idl`.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

fn xl_idl(directory: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_xl-idl"))
        .current_dir(directory)
        .args(arguments)
        .output()
        .expect("the command can be run")
}

/// A directory with one right and one wrong file.
fn directory() -> TempDir {
    let directory = TempDir::new().expect("a temporary directory can be made");
    let good = "namespace('libxl_')\ndisk = Builtin('device_disk', json_parse_type='JSON_MAP')\n\
                libxl_a = Struct('a', [('n', uint8, {'init_val': 'N'}), ('d', disk)])\n";
    fs::write(directory.path().join("good.idl"), good).expect("it can be written");
    let bad = "a = Struct('a', [('b', c)])\nd = Struct('d', [('e' uint8)])\n";
    fs::write(directory.path().join("bad.idl"), bad).expect("it can be written");
    directory
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("it prints text")
}

#[test]
fn check_is_silent_when_all_is_right() {
    let directory = directory();
    let output = xl_idl(directory.path(), &["check", "good.idl"]);
    assert!(output.status.success() && output.stdout.is_empty() && output.stderr.is_empty());
}

#[test]
fn errors_are_all_shown_with_their_place() {
    let directory = directory();
    for command in ["check", "dump", "rust", "c-header", "c-test"] {
        let output = xl_idl(directory.path(), &[command, "bad.idl"]);
        assert_eq!(output.status.code(), Some(1), "{command}");
        assert!(output.stdout.is_empty(), "{command}");
        assert_eq!(
            text(&output.stderr),
            "bad.idl:1:24: error: unknown type `c`\n\
             1 | a = Struct('a', [('b', c)])\n  \
             |                        ^ expected a type that is defined above\n\
             bad.idl:2:23: error: syntax error at `uint8`\n\
             2 | d = Struct('d', [('e' uint8)])\n  \
             |                       ^~~~~ expected ')' or ','\n\
             bad.idl: 2 errors\n"
        );
    }
}

#[test]
fn an_unreadable_file_is_an_error() {
    let directory = directory();
    let output = xl_idl(directory.path(), &["check", "absent.idl"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).starts_with("xl-idl: cannot read absent.idl: "));
}

#[test]
fn an_output_that_does_not_change_is_left_alone() {
    let directory = directory();
    let arguments = [
        "c-header",
        "good.idl",
        "-o",
        "_good.h",
        "--include",
        "libxl.h",
    ];
    assert!(xl_idl(directory.path(), &arguments).status.success());
    let path = directory.path().join("_good.h");
    let header = fs::read_to_string(&path).expect("it was written");
    assert!(header.starts_with("#ifndef _GOOD_H\n") && header.contains("#include <libxl.h>\n"));
    // Nothing can be written to it now, nor must be.
    let mut permissions = fs::metadata(&path).expect("it is there").permissions();
    permissions.set_readonly(true);
    fs::set_permissions(&path, permissions).expect("it is ours");
    let before = fs::metadata(&path)
        .and_then(|data| data.modified())
        .expect("it has a time");
    assert!(xl_idl(directory.path(), &arguments).status.success());
    let after = fs::metadata(&path)
        .and_then(|data| data.modified())
        .expect("it has a time");
    assert_eq!(before, after);
}

#[test]
fn rust_needs_to_know_what_is_imported() {
    let directory = directory();
    let output = xl_idl(directory.path(), &["rust", "good.idl"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("`N`, with which `libxl_a.n` starts, is not known"));
    let output = xl_idl(directory.path(), &["rust", "good.idl", "--constant", "N=4"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("`libxl_device_disk` comes from elsewhere"));
    let import = "libxl_device_disk=crate::Disk,crate::c::disk";
    let known = [
        "rust",
        "good.idl",
        "--constant",
        "N=4",
        "--import",
        import,
        "--builtin",
        "base",
    ];
    let output = xl_idl(directory.path(), &known);
    let rust = text(&output.stdout);
    assert!(
        rust.contains("pub d: crate::Disk") && rust.contains("pub d: crate::c::disk"),
        "{rust}"
    );
    assert!(
        rust.contains("n: 4") && rust.contains("base::json::Object"),
        "{rust}"
    );
    let output = xl_idl(
        directory.path(),
        &["rust", "good.idl", "--import", "libxl_device_disk"],
    );
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn c_functions_take_structs_by_reference() {
    let directory = directory();
    for (by, expected) in [("VALUE", Some(1)), ("REFERENCE", Some(0))] {
        let idl = format!("namespace('libxl_')\na = Struct('a', [], passby=PASS_BY_{by})\n");
        fs::write(directory.path().join("by.idl"), idl).expect("it can be written");
        let output = xl_idl(directory.path(), &["rust", "--glue", "by.idl"]);
        assert_eq!(output.status.code(), expected, "{}", text(&output.stderr));
    }
}

#[test]
fn the_c_test_includes_what_it_is_told() {
    let directory = directory();
    let arguments = [
        "c-test",
        "good.idl",
        "--include",
        "libxl.h",
        "--include",
        "_good.h",
    ];
    let output = xl_idl(directory.path(), &arguments);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let program = text(&output.stdout);
    assert!(
        program.contains("#include <libxl.h>\n#include <_good.h>\n"),
        "{program}"
    );
    assert!(
        program.contains("static void libxl_a_rand_init(libxl_a *p)\n"),
        "{program}"
    );
    assert!(
        program.contains("\nvoid libxl_device_disk_rand_init("),
        "{program}"
    );
}

#[test]
fn dump_is_json() {
    let directory = directory();
    let output = xl_idl(directory.path(), &["dump", "good.idl"]);
    let model: serde_json::Value = serde_json::from_slice(&output.stdout).expect("it is JSON");
    assert_eq!(model["namespace"], "libxl_");
    assert_eq!(model["definitions"].as_array().map(Vec::len), Some(2));
}

#[test]
fn the_release_is_derived_or_given() {
    let directory = directory();
    let copies = |name: &str, extra: &[&str]| {
        let output = xl_idl(directory.path(), &[&["c-header", name], extra].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout).contains("_copy(libxl_ctx *ctx, ")
            && text(&output.stdout).contains(", const libxl")
    };
    let write = |name: &str, text: &str| {
        fs::write(directory.path().join(name), text).expect("it can be written");
    };
    let build_info = "namespace('libxl_')\na = Struct('domain_build_info', [])\n";
    write("types-4.7.idl", build_info);
    write(
        "types-4.8.idl",
        &format!("{build_info}b = Struct('sched_credit2_params', [])\n"),
    );
    let kinds = |first: i32| {
        format!(
            "namespace('libxl__')\na = Enumeration('device_kind', [({first}, 'X')])\n\
             namespace('libxl_')\nb = Struct('c', [])\n"
        )
    };
    write("internal-4.7.idl", &kinds(1));
    write("internal-4.8.idl", &kinds(0));
    assert!(!copies("types-4.7.idl", &[]) && copies("types-4.8.idl", &[]));
    assert!(!copies("internal-4.7.idl", &[]) && copies("internal-4.8.idl", &[]));
    assert!(copies("types-4.7.idl", &["--compat", "4.22"]));
    assert!(!copies("types-4.8.idl", &["--compat", "4.5"]));
    // What is not libxl's own follows its latest form.
    assert!(copies("good.idl", &[]));
    let output = xl_idl(directory.path(), &["c-header", "good.idl", "--compat", "5"]);
    assert_eq!(output.status.code(), Some(2));
}
