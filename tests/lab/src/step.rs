//! stub
use std::path::PathBuf;
use anyhow::Result;
/// o
pub struct Options { /// f
pub filters: Vec<String>, /// f
pub stage: Option<PathBuf>, /// f
pub logs: PathBuf, /// f
pub keep: bool, /// f
pub smp: u32, /// f
pub mem: u32 }
/// l
pub fn print_names(_f: &[String]) {}
/// r
pub fn run_all(_o: &Options) -> Result<bool> { Ok(true) }
