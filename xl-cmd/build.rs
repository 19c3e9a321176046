//! Gives the program a run path to its private directory, where `make install` puts the link
//! `libxenctrl.so` that the `xenctrl` crate opens by that name.

fn main() {
    println!("cargo::rustc-link-arg-bins=-Wl,-rpath,$ORIGIN/../lib/libxl-ext");
    println!("cargo::rerun-if-changed=build.rs");
}
