//! The generated C test of `golden/features.idl`, with the generated header, against the generated
//! functions: compiled, linked and run.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::{fs, str};

use tempfile::TempDir;

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")
}

fn succeed(command: &mut Command) -> Output {
    let output = command.output().expect("the program can be run");
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// The directory with the library, which cargo has built if all tests are run, and otherwise builds now.
fn library() -> PathBuf {
    let executable = std::env::current_exe().expect("it has a path");
    let profile = executable
        .ancestors()
        .nth(2)
        .expect("it is in the target directory");
    let target = profile.parent().expect("it is in the target directory");
    succeed(
        Command::new(env!("CARGO"))
            .args(["build", "--locked", "--offline", "--quiet"])
            .args(["--example", "features", "--manifest-path"])
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"))
            .arg("--target-dir")
            .arg(target),
    );
    target.join("debug/examples")
}

/// Compiles the program with `flags` and runs it.
fn run(flags: &[&str], arguments: &[&str]) -> Output {
    let directory = TempDir::new().expect("a temporary directory can be made");
    let library = library();
    let header = directory.path().join("_features_types.h");
    fs::copy(sources().join("golden/features.h"), &header).expect("it can be copied");
    let program = directory.path().join("test");
    succeed(
        Command::new("cc")
            .args(["-g", "-Wall", "-Wextra", "-Werror", "-o"])
            .arg(&program)
            .arg(sources().join("golden/features.test.c"))
            .arg(sources().join("c/support.c"))
            .arg("-I")
            .arg(sources().join("c"))
            .arg("-I")
            .arg(directory.path())
            .args(flags)
            .arg("-L")
            .arg(&library)
            .arg("-lfeatures"),
    );
    Command::new(&program)
        .args(arguments)
        .env("LD_LIBRARY_PATH", &library)
        .output()
        .expect("the program can be run")
}

fn can_compile(flags: &[&str]) -> bool {
    let directory = TempDir::new().expect("a temporary directory can be made");
    let source = directory.path().join("empty.c");
    fs::write(&source, "int main(void) { return 0; }\n").expect("it can be written");
    Command::new("cc")
        .args(flags)
        .arg(&source)
        .arg("-o")
        .arg(directory.path().join("empty"))
        .output()
        .is_ok_and(|output| output.status.success())
}

fn check(flags: &[&str]) {
    if !can_compile(flags) {
        assert!(
            std::env::var("CI").as_deref() != Ok("true"),
            "cc {flags:?} cannot compile"
        );
        eprintln!("skipped: cc {flags:?} cannot compile");
        return;
    }
    let output = run(flags, &["7", "300"]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(
        str::from_utf8(&output.stdout),
        Ok("5 types, seed 7, 300 rounds: ok\n")
    );
}

#[test]
fn values_survive_json_and_copies() {
    check(&[]);
}

#[test]
fn sanitizers_find_nothing() {
    check(&["-fsanitize=address,undefined", "-fno-sanitize-recover"]);
}
