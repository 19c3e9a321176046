//! `snapshot-verify`

use super::{Context, print, print_json};
use crate::args::Verify;
use libxl_ext::{Error, ErrorKind, Result};
use serde_json::json;

pub(super) fn run(context: &Context, args: &Verify) -> Result<()> {
    let (host, name) = (&context.host, args.name.as_deref());
    // What is recorded is compared before anything is.
    let mut found = host.verify(&args.domain, name, &context.terminal)?;
    if args.checksum && found.is_empty() {
        found = host.record_contents(&args.domain, name, &context.terminal)?;
    }
    context.terminal.finish();
    if args.json {
        print_json(&json!({ "domain": args.domain, "findings": found }))?;
    } else {
        for finding in &found {
            let of = finding.snapshot.as_deref().unwrap_or("-");
            print(&format!("{of}: {}\n", finding.what))?;
        }
    }
    match found.len() {
        0 if args.json => Ok(()),
        0 => print("All is as it was when it was taken\n"),
        count => Err(Error::new(ErrorKind::Corrupt, super::things_amiss(count))),
    }
}
