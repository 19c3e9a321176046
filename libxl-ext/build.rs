//! Generates two things: the types of `idl/`, by the project's own compiler, and the bindings to the
//! libxl that is installed, by bindgen.

use libxl_idl::emit::{CHeaderOptions, Import, RustOptions};
use std::env;
use std::path::{Path, PathBuf};

/// The types of this library.
const IDL: &str = "../idl/libxl_ext_types.idl";

/// What we call of libxl, and the C library's functions for what it allocates and formats.
const FUNCTIONS: &str = "libxl_(ctx_alloc|ctx_free|childproc_setmode|name_to_domid|domid_to_name|retrieve_domain_configuration\
    |domain_config_(init|dispose|to_json|from_json)|domain_restore_params_(init|dispose)\
    |userdata_(store|retrieve)|physinfo_(init|dispose)|get_physinfo\
    |domain_(suspend|resume|pause|unpause|destroy|create_restore)|device_disk_.*)\
    |vsnprintf|free|xtl_log|xtl_createlogger_stdiostream";

fn main() {
    // `make install` puts the link libxenctrl.so, which the xenctrl crate opens by that name, beside
    // the agent.
    println!("cargo::rustc-link-arg-bins=-Wl,-rpath,$ORIGIN");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    compile_idl(&out);
    bind_libxl(&out);
    bind_own_header(&out);
}

fn compile_idl(out: &Path) {
    println!("cargo::rerun-if-changed={IDL}");
    let source = std::fs::read_to_string(IDL).expect("the IDL is in the repository");
    let model = match libxl_idl::compile(&source, IDL) {
        Ok(model) => model,
        Err(diagnostics) => panic!("{diagnostics}"),
    };
    let device_disk = Import {
        safe: "crate::model::disk::DeviceDisk".into(),
        ffi: "crate::port::libxl_sys::libxl_device_disk".into(),
    };
    let options = RustOptions {
        imports: [("libxl_device_disk".into(), device_disk)].into(),
        ..RustOptions::default()
    };
    let mut code = libxl_idl::emit::rust(&model, &options).expect("every import has a Rust form");
    code += &libxl_idl::emit::ffi_glue(&model, &options).expect("every type can be C's");
    let header = CHeaderOptions {
        file_name: "_libxl_ext_types.h".into(),
        includes: vec!["libxl.h".into()],
        ..CHeaderOptions::default()
    };
    let header = libxl_idl::emit::c_header(&model, &header);
    let layout = libxl_idl::emit::layout_rust(&model);
    for (name, text) in [
        ("libxl_ext_types.rs", code),
        ("libxl_ext_layout.rs", layout),
        ("_libxl_ext_types.h", header),
    ] {
        libxl_idl::output::write_if_changed(&out.join(name), &text).expect("OUT_DIR is writable");
    }
}

fn bind_libxl(out: &Path) {
    println!("cargo::rerun-if-changed=build.rs");
    pkg_config::Config::new()
        .atleast_version("4.17")
        .probe("xenlight")
        .expect("libxl's headers are installed (package libxen-dev)");
    println!("cargo::rustc-link-lib=xenlight");
    println!("cargo::rustc-link-lib=xentoollog");
    bindgen::Builder::default()
        .header_contents(
            "libxl_ext_wrapper.h",
            "#include <stdio.h>\n#include <stdlib.h>\n#include <libxl.h>\n#include <libxl_utils.h>\n",
        )
        .allowlist_function(FUNCTIONS)
        .allowlist_var("LIBXL_SUSPEND_LIVE")
        .allowlist_type("xentoollog_logger|libxl_error|libxl_domain_type|libxl_asyncop_how")
        .generate()
        .expect("bindgen reads libxl.h (package libclang-dev)")
        .write_to_file(out.join("libxl_sys.rs"))
        .expect("OUT_DIR is writable");
}

/// What `libxl_ext.h` declares by hand: its structs, and its functions for the test that they are what the
/// library defines.
fn bind_own_header(out: &Path) {
    println!("cargo::rerun-if-changed=include/libxl_ext.h");
    bindgen::Builder::default()
        .header("include/libxl_ext.h")
        .clang_arg(format!("-I{}", out.display()))
        .allowlist_file("include/libxl_ext.h")
        .blocklist_type(
            "libxl_(_?ctx|asyncop_how|d(evice|isk).*|domain_(snapshot|block_pull_info).*|block_pull.*|ext_event.*|replication_mode.*|snapshot_.*)",
        )
        .raw_line("use crate::port::libxl_sys::*;")
        .raw_line("use crate::types::ffi::*;")
        .generate()
        .expect("bindgen reads libxl_ext.h")
        .write_to_file(out.join("libxl_ext_header.rs"))
        .expect("OUT_DIR is writable");
}
