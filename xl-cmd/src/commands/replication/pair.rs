//! `replication-pair`

use super::super::{Context, print};
use crate::args::ReplicationPair;
use libxl_ext::replication::{Pair, TEXT_MAX};
use libxl_ext::{Error, ErrorKind, Result};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Standard input or output.
const STANDARD: &str = "-";

pub(in super::super) fn run(context: &Context, args: &ReplicationPair) -> Result<()> {
    let pairs = context.host.pairs();
    if let Some(file) = &args.import {
        let pair = Pair::read(&read(file)?)?;
        pairs.keep(&pair)?;
        return print(&format!("Key '{}': taken\n", pair.name));
    }
    let pair = match &args.name {
        None if args.export.is_none() => {
            let mut names: Vec<_> = pairs.all()?.into_iter().map(|pair| pair.name).collect();
            names.push(String::new());
            return print(&names.join("\n"));
        }
        None => pairs.choose(None)?,
        Some(name) => match pairs.find(name) {
            Err(error) if error.kind() == ErrorKind::InvalidRequest => {
                let pair = Pair::new(name)?;
                pairs.keep(&pair)?;
                pair
            }
            found => found?,
        },
    };
    match &args.export {
        None => print(&format!("Key '{}': kept\n", pair.name)),
        Some(file) if file == Path::new(STANDARD) => print(&pair.text()),
        Some(file) => {
            write(file, &pair.text())?;
            print(&format!(
                "Key '{}': written to {}\n",
                pair.name,
                file.display()
            ))
        }
    }
}

fn read(file: &Path) -> Result<Vec<u8>> {
    let most = TEXT_MAX as u64 + 1;
    let mut text = Vec::new();
    let got = if file == Path::new(STANDARD) {
        std::io::stdin().lock().take(most).read_to_end(&mut text)
    } else {
        File::open(file).and_then(|opened| opened.take(most).read_to_end(&mut text))
    };
    got.map_err(|error| Error::io(format!("read {}", file.display()), error))?;
    Ok(text)
}

/// A new file, for its owner alone.
fn write(file: &Path, text: &str) -> Result<()> {
    let mut options = OpenOptions::new();
    let opened = options.write(true).create_new(true).mode(0o600).open(file);
    opened
        .and_then(|mut opened| {
            opened.write_all(text.as_bytes())?;
            opened.sync_all()
        })
        .map_err(|error| Error::io(format!("write {}", file.display()), error))
}
