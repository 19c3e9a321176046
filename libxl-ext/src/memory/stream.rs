//! libxl's stream, version 2, as far as the guest's pages go. (Xen's docs/specs/libxl-migration-stream.pandoc and
//! libxc-migration-stream.pandoc.) Nothing that it says of a length is believed before the bytes are there.

use crate::error::{Error, ErrorKind, Result};
use std::collections::HashMap;
use std::io::{self, Read};
use xxhash_rust::xxh3::xxh3_64;

/// Bytes of a page.
pub(crate) const PAGE: usize = 4096;

/// "LibxlFmt", big endian, as everything in the header.
pub(super) const LIBXL_IDENT: u64 = 0x4c69_6278_6c46_6d74;
pub(super) const LIBXL_VERSION: u32 = 2;
/// The record after which the hypervisor library's own stream follows.
pub(super) const LIBXL_LIBXC_CONTEXT: u32 = 1;
pub(super) const LIBXL_END: u32 = 0;

pub(super) const LIBXC_MARKER: u64 = u64::MAX;
/// "XENF".
pub(super) const LIBXC_ID: u32 = 0x5845_4e46;
pub(super) const LIBXC_VERSIONS: std::ops::RangeInclusive<u32> = 2..=3;
pub(super) const LIBXC_END: u32 = 0;
pub(super) const LIBXC_PAGE_DATA: u32 = 1;

/// Bit 0 of the options of both streams: the rest is big endian.
pub(super) const BIG_ENDIAN: u32 = 1;

/// Longest record that Xen takes, in bytes (its REC_LENGTH_MAX).
pub(super) const RECORD_MAX: u32 = 128 << 20;

/// Most pages of one record: their numbers alone fill the longest one.
const PAGES_MAX: u32 = RECORD_MAX / 8;

/// In the number of a page: which one it is.
const PFN: u64 = (1 << 52) - 1;

/// In the number of a page, above: of these types no content follows (broken, only allocated, not there).
pub(super) const WITHOUT_CONTENT: std::ops::RangeInclusive<u64> = 0xd..=0xf;

/// The pages of a guest: what each of them was last, as a hash of its content. Each of them took a page's bytes in the
/// stream, so this is never larger than a small part of that.
pub(crate) type Pages = HashMap<u64, u64>;

/// Reads the stream up to the end of the guest's memory. What follows is not read.
///
/// # Errors
/// [`ErrorKind::Corrupt`] if it is none, [`ErrorKind::Io`] if it cannot be read.
pub(crate) fn pages(stream: &mut dyn Read) -> Result<Pages> {
    let mut stream = Stream(stream);
    let ident = u64::from_be_bytes(stream.array()?);
    let version = u32::from_be_bytes(stream.array()?);
    let options = u32::from_be_bytes(stream.array()?);
    if ident != LIBXL_IDENT || version != LIBXL_VERSION || options & BIG_ENDIAN != 0 {
        return Err(corrupt("it is no stream of libxl's that we know"));
    }
    loop {
        let (kind, length) = stream.record()?;
        match kind {
            LIBXL_LIBXC_CONTEXT if length == 0 => return of_libxc(&mut stream),
            LIBXL_END => return Err(corrupt("there is no memory in it")),
            _ => stream.skip(padded(length))?,
        }
    }
}

fn of_libxc(stream: &mut Stream<'_>) -> Result<Pages> {
    let marker = u64::from_be_bytes(stream.array()?);
    let id = u32::from_be_bytes(stream.array()?);
    let version = u32::from_be_bytes(stream.array()?);
    let options = u16::from_be_bytes(stream.array()?);
    let is_known = marker == LIBXC_MARKER && id == LIBXC_ID && LIBXC_VERSIONS.contains(&version);
    if !is_known || u32::from(options) & BIG_ENDIAN != 0 {
        return Err(corrupt("the memory in it has a form that we do not know"));
    }
    // The rest of the header; the type of the domain.
    stream.skip(6 + 4)?;
    let page_shift = u16::from_le_bytes(stream.array()?);
    if 1_usize.checked_shl(page_shift.into()) != Some(PAGE) {
        return Err(corrupt("its pages have another size"));
    }
    // The rest of the domain's header: the version of Xen.
    stream.skip(2 + 8)?;
    let mut pages = Pages::new();
    loop {
        match stream.record()? {
            (LIBXC_END, _) => return Ok(pages),
            (LIBXC_PAGE_DATA, length) => stream.page_data(length, &mut pages)?,
            (_, length) => stream.skip(padded(length))?,
        }
    }
}

/// Records end at multiples of eight bytes.
fn padded(length: u32) -> u64 {
    u64::from(length).next_multiple_of(8)
}

struct Stream<'a>(&'a mut dyn Read);

impl Stream<'_> {
    fn exact(&mut self, buffer: &mut [u8]) -> Result<()> {
        self.0.read_exact(buffer).map_err(|error| {
            if error.kind() == io::ErrorKind::UnexpectedEof {
                corrupt("it ends too early")
            } else {
                Error::io("read a memory image", error)
            }
        })
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Type and length of the next record.
    fn record(&mut self) -> Result<(u32, u32)> {
        let kind = u32::from_le_bytes(self.array()?);
        let length = u32::from_le_bytes(self.array()?);
        if length > RECORD_MAX {
            return Err(corrupt("a part of it is longer than any can be"));
        }
        Ok((kind, length))
    }

    fn skip(&mut self, bytes: u64) -> Result<()> {
        let skipped = io::copy(&mut (&mut *self.0).take(bytes), &mut io::sink());
        match skipped {
            Ok(skipped) if skipped == bytes => Ok(()),
            Ok(_) => Err(corrupt("it ends too early")),
            Err(error) => Err(Error::io("read a memory image", error)),
        }
    }

    fn page_data(&mut self, length: u32, pages: &mut Pages) -> Result<()> {
        let count = u32::from_le_bytes(self.array()?);
        let numbers_end = u64::from(count) * 8 + 8;
        if count > PAGES_MAX || numbers_end > u64::from(length) {
            return Err(corrupt("a part of it has more pages than fit in"));
        }
        self.skip(4)?;
        // Eight bytes for each that is there, and no more than that at a time.
        let mut with_content = Vec::new();
        for _ in 0..count {
            let number = u64::from_le_bytes(self.array()?);
            if WITHOUT_CONTENT.contains(&(number >> 60)) {
                pages.remove(&(number & PFN));
            } else {
                with_content.push(number & PFN);
            }
        }
        let content = with_content.len() as u64 * PAGE as u64;
        if numbers_end + content != u64::from(length) {
            return Err(corrupt("a part of it has not as many pages as it says"));
        }
        let mut page = vec![0; PAGE];
        for number in with_content {
            self.exact(&mut page)?;
            pages.insert(number, xxh3_64(&page));
        }
        self.skip(padded(length) - u64::from(length))
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
