//! Sizes and offsets of every type and member, once by the C compiler and once by rustc.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

use libxl_idl::emit::{self, RustOptions};
use libxl_idl::model::{Type, TypeKind};
use libxl_idl::{Model, model::TypeId};

use crate::source::Upstream;

/// A place whose layout is compared: a type, or a member by its path.
struct Place {
    ty: String,
    member: Option<Vec<String>>,
}

fn places(model: &Model) -> Vec<Place> {
    let mut places = Vec::new();
    for ty in model.declared() {
        let name = ty.c_name.clone().expect("a declared type has a name");
        places.push(Place {
            ty: name.clone(),
            member: None,
        });
        members(model, ty, &name, &mut Vec::new(), &mut places);
    }
    places
}

fn members(model: &Model, ty: &Type, name: &str, path: &mut Vec<String>, places: &mut Vec<Place>) {
    let list: Vec<(&str, TypeId)> = match &ty.kind {
        TypeKind::KeyedUnion { members, .. } => members
            .iter()
            .filter_map(|member| member.ty.map(|ty| (member.name.as_str(), ty)))
            .collect(),
        _ => ty
            .fields()
            .iter()
            .map(|field| (field.name.as_str(), field.ty))
            .collect(),
    };
    for (member, inner) in list {
        let inner = &model[inner];
        let variable = match &inner.kind {
            TypeKind::KeyedUnion { key: variable, .. }
            | TypeKind::Array {
                length: variable, ..
            } => Some(variable.name.as_str()),
            _ => None,
        };
        for member in variable.into_iter().chain([member]) {
            path.push(member.to_owned());
            places.push(Place {
                ty: name.to_owned(),
                member: Some(path.clone()),
            });
            path.pop();
        }
        if inner.is_aggregate() && inner.c_name.is_none() {
            path.push(member.to_owned());
            members(model, inner, name, path, places);
            path.pop();
        }
    }
}

fn label(place: &Place) -> String {
    let path = place.member.iter().flatten().map(String::as_str);
    std::iter::once(place.ty.as_str())
        .chain(path)
        .collect::<Vec<_>>()
        .join(".")
}

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
    let mut text = String::from("#include <stddef.h>\n#include <stdio.h>\n#include <libxl.h>\n");
    text.push_str("int main(void) {\n");
    for place in places(model) {
        let (first, second) = match &place.member {
            None => (
                format!("sizeof({})", place.ty),
                format!("_Alignof({})", place.ty),
            ),
            Some(path) => {
                let path = path.join(".");
                (
                    format!("offsetof({}, {path})", place.ty),
                    format!("sizeof((({} *)0)->{path})", place.ty),
                )
            }
        };
        let label = label(&place);
        let _ = writeln!(text, "printf(\"{label} %zu %zu\\n\", {first}, {second});");
    }
    text.push_str("return 0;\n}\n");
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
    let mut text = format!(
        "#![allow(dead_code)]\nmod builtin {{ #[path = \"{}\"] pub mod ffi; }}\n{}\n\
         use ffi::*;\n\
         fn size<S, T>(_: fn(&S) -> *const T) -> usize {{ size_of::<T>() }}\n\
         fn main() {{\n",
        builtin.display(),
        &rust[start..]
    );
    for place in places(model) {
        let ty = &place.ty;
        let (first, second) = match &place.member {
            None => (format!("size_of::<{ty}>()"), format!("align_of::<{ty}>()")),
            Some(path) => {
                let raw = |name: &String| if name == "type" { "r#type" } else { name }.to_owned();
                let path = path.iter().map(raw).collect::<Vec<_>>().join(".");
                (
                    format!("std::mem::offset_of!({ty}, {path})"),
                    format!("size(|s: &{ty}| unsafe {{ &raw const s.{path} }})"),
                )
            }
        };
        let label = label(&place);
        let _ = writeln!(text, "println!(\"{label} {{}} {{}}\", {first}, {second});");
    }
    text.push_str("}\n");
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
