//! The notice board: `/libxl/<domid>/ext` in xenstore, through the `xenstore-rs` crate.
//!
//! The nodes inherit the permissions of `/libxl`, so that no guest can write them, and libxl removes
//! them with the domain. `docs/xenstore-paths.md` lists them.

use super::NoticeBoard;
use crate::error::{Error, ErrorKind, Result};
use xenstore_rs::Xs;
use xenstore_rs::unix::XsUnix;

/// xenstored. A connection lasts for one request: requests are rare, and xenstored may be restarted.
pub struct Xenstore;

impl NoticeBoard for Xenstore {
    fn post(&self, domid: u32, node: &str, value: &str) -> Result<()> {
        let path = path(domid, node);
        XsUnix::new()
            .and_then(|xs| xs.write(&path, value))
            .map_err(|error| {
                Error::new(ErrorKind::Toolstack, format!("write {path} in xenstore")).because(error)
            })
    }

    fn withdraw(&self, domid: u32, node: &str) -> Result<()> {
        let path = path(domid, node);
        match XsUnix::new().and_then(|xs| xs.rm(&path)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::new(
                ErrorKind::Toolstack,
                format!("remove {path} from xenstore"),
            )
            .because(error)),
            _ => Ok(()),
        }
    }
}

fn path(domid: u32, node: &str) -> String {
    format!("/libxl/{domid}/ext/{node}")
}
