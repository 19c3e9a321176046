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

/// Longest JSON that is read, in bytes.
const PAYLOAD_MAX: usize = 64 << 20;

/// Longest first line, in bytes.
const LINE_MAX: usize = 160;

/// What the first line says of the JSON below it.
struct Head<'a> {
    length: usize,
    checksum: &'a str,
}

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
    /// The copy of what the record says of one snapshot.
    pub const SNAPSHOT: Self = Self { kind: "snapshot" };
    /// The copy of what it says beside its snapshots.
    pub const PRESENT: Self = Self { kind: "present" };
    /// What is remembered of a domain's replication.
    pub(crate) const REPLICATION: Self = Self {
        kind: "replication",
    };
    /// The first member of a bundle.
    pub const BUNDLE: Self = Self { kind: "bundle" };
    /// The last member of a bundle.
    pub const CHECKSUMS: Self = Self { kind: "checksums" };
    /// The head of a packed memory image.
    pub(crate) const IMAGE: Self = Self { kind: "image" };
    /// The head of a pack of pages.
    pub(crate) const PACK: Self = Self { kind: "pack" };

    /// Frames a value.
    ///
    /// # Errors
    /// If the value cannot be written as JSON.
    pub fn seal<T: Serialize>(self, value: &T) -> Result<Vec<u8>> {
        let payload = serde_json::to_vec(value).map_err(|error| {
            Error::new(ErrorKind::InvalidRequest, format!("encode a {}", self.kind)).because(error)
        })?;
        let checksum = format!("{:032x}", xxh3_128(&payload));
        let mut framed = first_line(self.kind, payload.len(), &checksum).into_bytes();
        framed.push(b'\n');
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
            .take(LINE_MAX)
            .position(|byte| *byte == b'\n')
            .ok_or_else(|| corrupt(path, "its first line is missing"))?;
        let Head { length, checksum } = self.head(&bytes[..end], path)?;
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

    /// Whether this is the beginning of one framed value and not all of it: what a crash leaves of one that
    /// was being appended. A file system may have put zeros where the rest did not get to the disk. What
    /// was written completely and then changed is no such beginning, whichever byte it was.
    pub(crate) fn is_cut_short(self, bytes: &[u8], path: &Path) -> bool {
        let end = bytes.iter().rposition(|byte| *byte != 0);
        let (written, zeros) = bytes.split_at(end.map_or(0, |last| last + 1));
        match written.iter().position(|byte| *byte == b'\n') {
            None => {
                let start = format!("libxl-ext {} ", self.kind);
                let known = start.len().min(written.len());
                written.len() < LINE_MAX && written[..known] == start.as_bytes()[..known]
            }
            Some(end) => {
                let body = &written[end + 1..];
                // JSON has no line end in it as it is written here, so one is the end of the value.
                let is_open = !body.contains(&b'\n');
                let head = self.head(&written[..end], path);
                is_open
                    && head.is_ok_and(|head| {
                        // With a zero in the place of the line end alone it was damaged and not cut.
                        body.len() < head.length || (body.len() == head.length && zeros.is_empty())
                    })
            }
        }
    }

    fn head<'a>(self, line: &'a [u8], path: &Path) -> Result<Head<'a>> {
        let line =
            std::str::from_utf8(line).map_err(|_| corrupt(path, "its first line is not text"))?;
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
        // A number can be read from more than one form, such as `+1`; only one of them is ours.
        let is_checksum = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if line != first_line(self.kind, length, checksum)
            || checksum.len() != 32
            || !checksum.bytes().all(is_checksum)
        {
            return Err(corrupt(path, "its first line is not one of ours"));
        }
        Ok(Head { length, checksum })
    }
}

fn first_line(kind: &str, length: usize, checksum: &str) -> String {
    format!("libxl-ext {kind} {FORMAT_VERSION} {length} {checksum}")
}

fn corrupt(path: &Path, how: &str) -> Error {
    Error::new(
        ErrorKind::Corrupt,
        format!("{} is damaged: {how}", path.display()),
    )
    .hint("restore it from a backup; nothing was changed")
}

/// Checks that `read` refuses `bytes` with any one of them changed to any other value: as newer where that is the
/// digit of a version, at one of `versions`, else as corrupt.
#[cfg(test)]
pub(crate) fn refuses_every_changed_byte<T: std::fmt::Debug>(
    bytes: &[u8],
    versions: &[usize],
    read: impl Fn(&[u8]) -> Result<T>,
) {
    for at in 0..bytes.len() {
        for value in (0..=u8::MAX).filter(|value| *value != bytes[at]) {
            let mut changed = bytes.to_vec();
            changed[at] = value;
            let error =
                read(&changed).expect_err(&format!("byte {at} of {} is {value}", bytes.len()));
            let is_newer = versions.contains(&at) && (b'2'..=b'9').contains(&value);
            let expected = if is_newer {
                ErrorKind::NewerVersion
            } else {
                ErrorKind::Corrupt
            };
            assert_eq!(error.kind(), expected, "byte {at} is {value}");
        }
    }
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
        refuses_every_changed_byte(&sealed, &["libxl-ext record ".len()], |changed| {
            Envelope::RECORD.open::<(String, u8)>(changed, path)
        });
    }

    #[test]
    fn a_fraction_is_read_as_it_was_written() {
        let number = 1.909_999_999_999_999_8e101_f64;
        let sealed = Envelope::RECORD.seal(&number).unwrap();
        let read: f64 = Envelope::RECORD.open(&sealed, Path::new("/x")).unwrap();
        assert_eq!(read.to_bits(), number.to_bits());
    }

    #[test]
    fn a_number_in_another_form_is_not_ours() {
        let sealed = String::from_utf8(Envelope::RECORD.seal(&42).unwrap()).unwrap();
        for (ours, other) in [(" 1 ", " +1 "), (" 1 ", " 01 "), (" 2 ", " 002 ")] {
            let changed = sealed.replacen(ours, other, 1);
            assert_ne!(changed, sealed);
            let error = Envelope::RECORD.open::<u8>(changed.as_bytes(), Path::new("/x"));
            assert_eq!(error.unwrap_err().kind(), ErrorKind::Corrupt, "{changed}");
        }
        let newer = sealed.replacen(" 1 ", " 2 ", 1);
        let error = Envelope::RECORD.open::<u8>(newer.as_bytes(), Path::new("/x"));
        assert!(error.unwrap_err().report().contains("has format 2"));
    }

    #[test]
    fn what_a_power_cut_leaves_of_an_entry_is_told_from_damage() {
        let path = Path::new("/x");
        let is_cut = |bytes: &[u8]| Envelope::JOURNAL.is_cut_short(bytes, path);
        let sealed = Envelope::JOURNAL.seal(&("some text", 42)).unwrap();
        for length in 0..sealed.len() {
            assert!(is_cut(&sealed[..length]), "cut at {length}");
            let mut zeros = sealed.clone();
            zeros[length..].fill(0);
            assert_eq!(
                is_cut(&zeros),
                length < sealed.len() - 1,
                "zeros at {length}"
            );
        }
        assert!(!is_cut(&sealed));
        assert!(!is_cut(b"somebody else's"));
        assert!(!is_cut(&[b'x'; LINE_MAX]));
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
