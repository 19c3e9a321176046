//! Compares with libxl itself: with the headers that its own generator writes, and with the layout that
//! the C compiler gives to its types.
//!
//! The source is that of Debian's xen package, downloaded when the tests first run and never part of
//! this repository. Where it cannot be had the tests say so and pass, except when the environment has
//! CI=true.

mod layout;
mod source;
mod tokens;

use libxl_idl::emit::{self, CHeaderOptions, RustOptions};
use source::Upstream;

/// The IDL files that libxl is built from.
const FILES: &[&str] = &["libxl_types", "libxl_types_internal"];

#[test]
fn c_headers_declare_what_libxl_declares() {
    let Some(upstream) = Upstream::find("c_headers_declare_what_libxl_declares") else {
        return;
    };
    for stem in FILES {
        let model = upstream.model(stem);
        let ours = tokens::tokens(&emit::c_header(&model, &CHeaderOptions::default()));
        let theirs = tokens::tokens(&upstream.header(stem));
        assert!(theirs.len() > 400, "{stem}: libxl's header is too short");
        let same = ours
            .iter()
            .zip(&theirs)
            .take_while(|(ours, theirs)| ours == theirs)
            .count();
        let context = |tokens: &[String]| {
            let end = tokens.len().min(same + 8);
            tokens[same.saturating_sub(8)..end].join(" ")
        };
        assert!(
            ours == theirs,
            "{stem}:\n ours:   {}\n theirs: {}",
            context(&ours),
            context(&theirs)
        );
    }
}

#[test]
fn every_type_has_a_rust_form() {
    let Some(upstream) = Upstream::find("every_type_has_a_rust_form") else {
        return;
    };
    for stem in FILES {
        let rust = emit::rust(&upstream.model(stem), &RustOptions::default());
        assert!(
            rust.is_ok_and(|text| text.contains("pub mod ffi")),
            "{stem}"
        );
    }
}

#[test]
fn mirrors_have_the_layout_of_c() {
    let Some(upstream) = Upstream::find("mirrors_have_the_layout_of_c") else {
        return;
    };
    let model = upstream.model("libxl_types");
    let Some(theirs) = layout::of_c(&upstream, &model) else {
        return source::skip(
            "mirrors_have_the_layout_of_c",
            "libxl.h or a C compiler is missing",
        );
    };
    let ours = layout::of_rust(&upstream, &model);
    let places = theirs.lines().count();
    assert!(places > 700, "too few places were compared");
    for (ours, theirs) in ours.lines().zip(theirs.lines()) {
        assert_eq!(ours, theirs);
    }
    assert_eq!(ours.lines().count(), theirs.lines().count());
}
