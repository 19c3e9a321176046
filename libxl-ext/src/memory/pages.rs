//! The pages in a memory image, to compare two of them.

use super::stream::{self, Followed, PAGE, Splitter, has_content};
use crate::error::{Error, ErrorKind, Result};
use std::collections::{HashMap, VecDeque};
use std::io::{self, Read};
use xxhash_rust::xxh3::xxh3_64;

/// Bytes that are read at a time.
const CHUNK: usize = 1 << 16;

/// In the number of a page: which one it is.
const PFN: u64 = (1 << 52) - 1;

/// The pages of a guest: what each of them was last, as a hash of its content. Each of them took a page's bytes in the
/// stream, so this is never larger than a small part of that.
pub(crate) type Pages = HashMap<u64, u64>;

/// Reads libxl's stream, which follows xl's header, up to the end of the guest's memory or a little further.
///
/// # Errors
/// [`ErrorKind::Corrupt`] if it is none, [`ErrorKind::Io`] if it cannot be read.
pub(crate) fn pages(stream: &mut dyn Read) -> Result<Pages> {
    let mut splitter = Splitter::behind_header();
    let mut found = Found::default();
    let mut chunk = vec![0; CHUNK];
    loop {
        match splitter.followed() {
            Followed::SoFar => {}
            Followed::ToItsEnd => return Ok(found.pages),
            Followed::Lost(why) => return Err(corrupt(why)),
        }
        match stream.read(&mut chunk) {
            Ok(0) => drop(splitter.finish(&mut found)?),
            Ok(length) => splitter.feed(&chunk[..length], &mut found)?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::io("read a memory image", error)),
        }
    }
}

/// What was found so far.
#[derive(Default)]
struct Found {
    pages: Pages,
    /// The pages whose contents come next.
    awaited: VecDeque<u64>,
}

impl stream::Sink for Found {
    fn raw(&mut self, _bytes: &[u8]) -> Result<()> {
        Ok(())
    }

    fn number(&mut self, number: u64) -> Result<()> {
        if has_content(number) {
            self.awaited.push_back(number & PFN);
        } else {
            self.pages.remove(&(number & PFN));
        }
        Ok(())
    }

    fn page(&mut self, content: &[u8; PAGE]) -> Result<()> {
        if let Some(number) = self.awaited.pop_front() {
            self.pages.insert(number, xxh3_64(content));
        }
        Ok(())
    }
}

fn corrupt(why: &str) -> Error {
    Error::new(
        ErrorKind::Corrupt,
        format!("the memory in this image cannot be read: {why}"),
    )
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::memory::stream::{
        LIBXC_END, LIBXC_ID, LIBXC_MARKER, LIBXC_PAGE_DATA, LIBXL_END, LIBXL_IDENT,
        LIBXL_LIBXC_CONTEXT,
    };

    /// A stream with these records of pages: number with type, content, which is one byte over and over.
    pub(crate) fn stream(records: &[&[(u64, Option<u8>)]]) -> Vec<u8> {
        let pages = |record: &&[(u64, Option<u8>)]| {
            let pages = record.iter();
            pages
                .map(|(number, byte)| (*number, byte.map(|byte| vec![byte; PAGE])))
                .collect()
        };
        stream_of(&records.iter().map(pages).collect::<Vec<_>>())
    }

    /// A page in a stream: number with type, content.
    pub(crate) type Page = (u64, Option<Vec<u8>>);

    /// A stream with these records of pages.
    pub(crate) fn stream_of(records: &[Vec<Page>]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(LIBXL_IDENT.to_be_bytes());
        bytes.extend(2_u32.to_be_bytes());
        bytes.extend(0_u32.to_be_bytes());
        let record = |bytes: &mut Vec<u8>, kind: u32, body: &[u8]| {
            bytes.extend(kind.to_le_bytes());
            bytes.extend(u32::try_from(body.len()).unwrap().to_le_bytes());
            bytes.extend(body);
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        };
        // One that we know nothing of.
        record(&mut bytes, 0x8000_0077, b"something");
        record(&mut bytes, LIBXL_LIBXC_CONTEXT, b"");
        bytes.extend(LIBXC_MARKER.to_be_bytes());
        bytes.extend(LIBXC_ID.to_be_bytes());
        bytes.extend(3_u32.to_be_bytes());
        bytes.extend([0; 8]);
        bytes.extend(1_u32.to_le_bytes());
        bytes.extend(12_u16.to_le_bytes());
        bytes.extend([0; 10]);
        record(&mut bytes, 0x11, b"");
        for pages in records {
            let mut body = Vec::new();
            body.extend(u32::try_from(pages.len()).unwrap().to_le_bytes());
            body.extend([0; 4]);
            for (number, _) in pages {
                body.extend(number.to_le_bytes());
            }
            for (_, content) in pages {
                body.extend(content.iter().flatten());
            }
            record(&mut bytes, LIBXC_PAGE_DATA, &body);
        }
        record(&mut bytes, LIBXC_END, b"");
        record(&mut bytes, LIBXL_END, b"");
        bytes
    }

    const NOT_THERE: u64 = 0xf << 60;
    const PINNED: u64 = 0x9 << 60;

    fn hash(byte: u8) -> u64 {
        xxh3_64(&[byte; PAGE])
    }

    #[test]
    fn the_last_copy_of_a_page_counts() {
        let bytes = stream(&[
            &[(1, Some(1)), (2, Some(2)), (3, Some(3)), (4, Some(4))],
            &[(NOT_THERE | 2, None), (PINNED | 3, Some(9))],
            &[(4, Some(5)), (4, Some(6))],
        ]);
        let found = pages(&mut &*bytes).unwrap();
        let expected = [(1, hash(1)), (3, hash(9)), (4, hash(6))];
        assert_eq!(found, expected.into_iter().collect());
    }

    #[test]
    fn a_stream_that_is_cut_or_lies_is_refused() {
        let bytes = stream(&[&[(1, Some(1)), (NOT_THERE | 2, None)]]);
        // The end of libxl's stream is behind the memory.
        let end = bytes.len() - 8;
        for length in (0..300).chain((300..end).step_by(97)).chain([end - 1]) {
            let error = pages(&mut &bytes[..length]).expect_err("it was cut");
            assert_eq!(error.kind(), ErrorKind::Corrupt, "cut at {length}");
        }
        pages(&mut &bytes[..end]).unwrap();
        // The record of pages begins behind both headers and three records.
        let at = 16 + (8 + 16) + 8 + 24 + 16 + 8;
        assert_eq!(bytes[at], 1);
        for (offset, word) in [(4, u32::MAX), (4, 8), (8, u32::MAX), (8, 1), (8, 3)] {
            let mut changed = bytes.clone();
            changed[at + offset..at + offset + 4].copy_from_slice(&word.to_le_bytes());
            let error = pages(&mut &*changed).expect_err("it lies");
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{word} at {offset}");
        }
        for at in [0, 8, 15, 48, 56, 60, 65, 76] {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert!(pages(&mut &*changed).is_err(), "byte {at}");
        }
    }
}
