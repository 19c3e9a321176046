//! The frame around every file of ours: a line with kind, version, length and checksum, then JSON.
//!
//! ```text
//! libxl-ext record 1 482 8f2b6c0e5d1f4a37b9c2d4e6f8091a2b
//! {"domain":"g1", ...}
//! ```
//! The line is verified before a byte of the payload is parsed.

use crate::error::{Error, ErrorKind, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::Path;
use xxhash_rust::xxh3::xxh3_128;

/// The version that this release writes, and the newest that it reads.
pub const FORMAT_VERSION: u32 = 1;

/// Longest file that is read into memory, in bytes.
const PAYLOAD_MAX: usize = 64 << 20;

/// One kind of file.
#[derive(Clone, Copy, Debug)]
pub struct Envelope {
    kind: &'static str,
}

impl Envelope {
    /// The record of a domain.
    pub const RECORD: Self = Self { kind: "record" };
    /// One entry of a journal.
    pub const JOURNAL: Self = Self { kind: "journal" };

    /// Frames a value.
    ///
    /// # Errors
    /// If the value cannot be written as JSON.
    pub fn seal<T: Serialize>(self, value: &T) -> Result<Vec<u8>> {
        let payload = serde_json::to_vec(value).map_err(|error| {
            Error::new(ErrorKind::InvalidRequest, format!("encode a {}", self.kind)).because(error)
        })?;
        let mut framed = format!(
            "libxl-ext {} {FORMAT_VERSION} {} {:032x}\n",
            self.kind,
            payload.len(),
            xxh3_128(&payload)
        )
        .into_bytes();
        framed.extend_from_slice(&payload);
        framed.push(b'\n');
        Ok(framed)
    }

    /// Verifies the frame of a whole file and decodes what is in it.
    ///
    /// # Errors
    /// [`ErrorKind::NewerVersion`] or [`ErrorKind::Corrupt`], naming `path`.
    pub fn open<T: DeserializeOwned>(self, bytes: &[u8], path: &Path) -> Result<T> {
        let (value, rest) = self.open_next(bytes, path)?;
        if rest.is_empty() {
            Ok(value)
        } else {
            Err(corrupt(path, "something follows its end"))
        }
    }

    /// Verifies and decodes the first of several framed values; returns it with what follows.
    ///
    /// # Errors
    /// As [`Envelope::open`].
    pub fn open_next<'a, T: DeserializeOwned>(
        self,
        bytes: &'a [u8],
        path: &Path,
    ) -> Result<(T, &'a [u8])> {
        let end = bytes
            .iter()
            .take(160)
            .position(|byte| *byte == b'\n')
            .ok_or_else(|| corrupt(path, "its first line is missing"))?;
        let line = std::str::from_utf8(&bytes[..end])
            .map_err(|_| corrupt(path, "its first line is not text"))?;
        let words: Vec<&str> = line.split(' ').collect();
        let [magic, kind, version, length, checksum] = words[..] else {
            return Err(corrupt(path, "its first line is not one of ours"));
        };
        if magic != "libxl-ext" || kind != self.kind {
            return Err(corrupt(path, "its first line is not one of ours"));
        }
        let version: u32 = version
            .parse()
            .map_err(|_| corrupt(path, "its version is no number"))?;
        if version == 0 {
            return Err(corrupt(path, "its version is 0"));
        }
        if version > FORMAT_VERSION {
            return Err(Error::new(
                ErrorKind::NewerVersion,
                format!(
                    "{} has format {version}, this release knows up to {FORMAT_VERSION}",
                    path.display()
                ),
            )
            .hint("use the release that wrote it, or a newer one"));
        }
        let length: usize = length
            .parse()
            .map_err(|_| corrupt(path, "its length is no number"))?;
        let body = &bytes[end + 1..];
        if length > PAYLOAD_MAX || body.len() <= length || body[length] != b'\n' {
            return Err(corrupt(path, "its length is not what its first line says"));
        }
        let payload = &body[..length];
        if checksum != format!("{:032x}", xxh3_128(payload)) {
            return Err(corrupt(path, "its checksum does not match"));
        }
        let value = serde_json::from_slice(payload)
            .map_err(|error| corrupt(path, "its content is not understood").because(error))?;
        Ok((value, &body[length + 1..]))
    }
}

fn corrupt(path: &Path, how: &str) -> Error {
    Error::new(
        ErrorKind::Corrupt,
        format!("{} is damaged: {how}", path.display()),
    )
    .hint("restore it from a backup; nothing was changed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_truncation_and_no_changed_byte_goes_unnoticed() {
        let path = Path::new("/x");
        let sealed = Envelope::RECORD.seal(&("some text", 42)).unwrap();
        assert_eq!(
            Envelope::RECORD
                .open::<(String, u8)>(&sealed, path)
                .unwrap()
                .1,
            42
        );
        for length in 0..sealed.len() {
            assert!(
                Envelope::RECORD
                    .open::<(String, u8)>(&sealed[..length], path)
                    .is_err()
            );
        }
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(
                Envelope::RECORD
                    .open::<(String, u8)>(&changed, path)
                    .is_err(),
                "byte {at}"
            );
        }
    }

    #[test]
    fn a_journal_entry_is_not_a_record() {
        let sealed = Envelope::JOURNAL.seal(&1).unwrap();
        let error = Envelope::RECORD
            .open::<u8>(&sealed, Path::new("/x"))
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
    }
}
