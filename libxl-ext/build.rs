//! Generates two things: the types of `idl/`, by the project's own compiler, and the bindings to the
//! libxl that is installed, by bindgen.

use std::env;
use std::path::PathBuf;

/// What we call of libxl, and the C library's functions for what it allocates and formats.
const FUNCTIONS: &str = "libxl_(ctx_alloc|ctx_free|name_to_domid|domid_to_name|retrieve_domain_configuration\
    |domain_config_(init|dispose|to_json)|domain_(suspend|resume|pause|unpause|destroy)|device_disk_.*)\
    |vsnprintf|free";

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    bind_libxl(&out);
}

fn bind_libxl(out: &std::path::Path) {
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
        .allowlist_type("xentoollog_logger|libxl_error|libxl_domain_type")
        .generate()
        .expect("bindgen reads libxl.h (package libclang-dev)")
        .write_to_file(out.join("libxl_sys.rs"))
        .expect("OUT_DIR is writable");
}
