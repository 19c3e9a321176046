//! The first bytes of a qcow2 image, looked at before QEMU opens an image that somebody else made: what it names
//! in them, QEMU would open.

use super::manifest::corrupt;
use crate::error::{Error, Result};
use crate::model::qcow2::{HEADER, Header, feature};
use std::fs::File;
use std::io::{Read, Seek};

/// Features that change nothing outside the file. The others are a damaged image, data in another file, and what nobody
/// knows.
const HARMLESS: u64 = feature::DIRTY | feature::COMPRESSION | feature::EXTENDED_L2;

/// Refuses an image that names another file as its data, is encrypted or damaged, or has features that we do not
/// know; and, unless it `may_stand` on another image, one that does. The name of that is not read: we put our own
/// in its place.
pub(super) fn vet(mut file: &File, may_stand: bool) -> Result<()> {
    let mut head = Vec::with_capacity(HEADER);
    file.rewind()
        .and_then(|()| file.take(HEADER as u64).read_to_end(&mut head))
        .map_err(|error| Error::io("read an image", error))?;
    let header =
        Header::parse(&head).ok_or_else(|| corrupt("an image is no qcow2 that we know"))?;
    if header.backing.is_some() && !may_stand {
        return Err(corrupt("an image stands on one that is not in it"));
    }
    if header.is_encrypted {
        return Err(corrupt("an image is encrypted"));
    }
    if header.features & !HARMLESS != 0 {
        return Err(corrupt("an image is damaged, or keeps its data elsewhere"));
    }
    Ok(())
}
