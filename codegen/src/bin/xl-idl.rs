//! Command line of the IDL compiler.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use libxl_idl::emit::{self, CHeaderOptions, CTestOptions, Compat, EmitError, Import, RustOptions};
use libxl_idl::{Diagnostics, Model, output};

/// Compiles libxl's IDL.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Checks a file.
    Check {
        /// The IDL file.
        file: PathBuf,
    },
    /// Writes the resolved model as JSON.
    Dump(InputOutput),
    /// Writes the types as Rust.
    Rust {
        #[command(flatten)]
        files: InputOutput,
        /// Path of the crate with the builtin types.
        #[arg(long, default_value = "libxl_idl_builtin")]
        builtin: String,
        /// An imported type with the paths of its safe type and its C mirror; can be repeated.
        #[arg(long, value_name = "C_NAME=SAFE,FFI", value_parser = parse_import)]
        import: Vec<(String, Import)>,
        /// The value of a C constant that the IDL uses as an initial value; can be repeated.
        #[arg(long, value_name = "C_NAME=NUMBER", value_parser = parse_constant)]
        constant: Vec<(String, i128)>,
        /// Also the functions that the C header declares.
        #[arg(long)]
        glue: bool,
    },
    /// Writes the C header.
    CHeader {
        #[command(flatten)]
        files: InputOutput,
        /// A header to include, such as `libxl.h`; can be repeated.
        #[arg(long)]
        include: Vec<String>,
        /// The release of Xen whose generator to follow, as `4.7`; else it is derived from the input.
        #[arg(long)]
        compat: Option<Compat>,
    },
    /// Writes a C program that tests the functions which the C header declares.
    CTest {
        #[command(flatten)]
        files: InputOutput,
        /// A header to include, such as the one that `c-header` writes; can be repeated.
        #[arg(long)]
        include: Vec<String>,
    },
}

#[derive(Args)]
struct InputOutput {
    /// The IDL file.
    file: PathBuf,
    /// Where to write; standard output if not given. An unchanged file is left alone.
    #[arg(short, long)]
    output: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{0}")]
    Idl(#[from] Diagnostics),
    #[error("xl-idl: {path} has no Rust form: {source}")]
    Rust { path: PathBuf, source: EmitError },
    #[error("xl-idl: cannot read {path}: {source}")]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("xl-idl: cannot write {path}: {source}")]
    Write {
        path: PathBuf,
        source: std::io::Error,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Check { file } => compile(&file).map(drop),
        Command::Dump(files) => {
            let model = compile(&files.file)?;
            write(&files, &emit::json(&model))
        }
        Command::Rust {
            files,
            builtin,
            import,
            constant,
            glue,
        } => {
            let model = compile(&files.file)?;
            let options = RustOptions {
                builtin,
                imports: import.into_iter().collect(),
                constants: constant.into_iter().collect(),
            };
            let failure = |source| Failure::Rust {
                path: files.file.clone(),
                source,
            };
            let mut text = emit::rust(&model, &options).map_err(failure)?;
            if glue {
                text.push_str(&emit::ffi_glue(&model, &options).map_err(failure)?);
            }
            write(&files, &text)
        }
        Command::CHeader {
            files,
            include,
            compat,
        } => {
            let model = compile(&files.file)?;
            let options = CHeaderOptions {
                file_name: header_name(&files),
                includes: include,
                compat: compat.unwrap_or_default(),
            };
            write(&files, &emit::c_header(&model, &options))
        }
        Command::CTest { files, include } => {
            let model = compile(&files.file)?;
            let options = CTestOptions { includes: include };
            write(&files, &emit::c_test(&model, &options))
        }
    }
}

fn parse_import(text: &str) -> Result<(String, Import), String> {
    let (c_name, paths) = text.split_once('=').ok_or("expected C_NAME=SAFE,FFI")?;
    let (safe, ffi) = paths
        .split_once(',')
        .ok_or("expected two paths, with a comma in between")?;
    Ok((
        c_name.to_owned(),
        Import {
            safe: safe.to_owned(),
            ffi: ffi.to_owned(),
        },
    ))
}

fn parse_constant(text: &str) -> Result<(String, i128), String> {
    let (c_name, number) = text.split_once('=').ok_or("expected C_NAME=NUMBER")?;
    let number = number
        .parse()
        .map_err(|_| format!("`{number}` is no number"))?;
    Ok((c_name.to_owned(), number))
}

fn compile(path: &Path) -> Result<Model, Failure> {
    let source = std::fs::read_to_string(path).map_err(|source| Failure::Read {
        path: path.to_owned(),
        source,
    })?;
    Ok(libxl_idl::compile(&source, &path.display().to_string())?)
}

/// The name of the output; for standard output the one that libxl gives to the header of this IDL.
fn header_name(files: &InputOutput) -> String {
    if let Some(output) = &files.output {
        return output.display().to_string();
    }
    let stem = files.file.file_stem().unwrap_or_default();
    format!("_{}.h", stem.to_string_lossy())
}

fn write(files: &InputOutput, content: &str) -> Result<(), Failure> {
    match &files.output {
        Some(path) => output::write_if_changed(path, content)
            .map(drop)
            .map_err(|source| Failure::Write {
                path: path.clone(),
                source,
            }),
        None => std::io::stdout()
            .write_all(content.as_bytes())
            .map_err(|source| Failure::Write {
                path: PathBuf::from("standard output"),
                source,
            }),
    }
}
