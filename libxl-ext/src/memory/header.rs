//! What `xl save` puts in front of libxl's stream: a fixed header and the domain's configuration, so
//! that `xl restore FILE` needs nothing else. (Xen's tools/xl/xl.h, `struct save_file_header`.)

use crate::error::{Error, ErrorKind, Result};
use crate::store::atomic;
use std::io::Read;
use std::path::Path;

const MAGIC: &[u8; 32] = b"Xen saved domain, xl format\n \0 \r";
const BYTE_ORDER: u32 = 0x0102_0304;
/// The configuration is JSON.
const FLAG_JSON: u32 = 1 << 0;
/// What follows is a version 2 stream.
const FLAG_STREAM_V2: u32 = 1 << 1;

/// Whether the file at `path` begins as one of `xl save`.
///
/// # Errors
/// [`ErrorKind::Io`] if it cannot be read, [`ErrorKind::Corrupt`] if it is no file.
pub(crate) fn is_stock(path: &Path) -> Result<bool> {
    let mut beginning = Vec::new();
    atomic::open_own(path)?
        .take(MAGIC.len() as u64)
        .read_to_end(&mut beginning)
        .map_err(|error| Error::io(format!("read {}", path.display()), error))?;
    Ok(beginning == MAGIC)
}

/// The bytes before the stream, for a domain of the given configuration.
pub(crate) fn header(configuration: &str) -> Result<Vec<u8>> {
    // xl counts the NUL that ends the text.
    let too_long = || {
        Error::new(
            ErrorKind::InvalidRequest,
            "the domain's configuration is too long",
        )
    };
    let length = u32::try_from(configuration.len() + 1).map_err(|_| too_long())?;
    let optional = length.checked_add(4).ok_or_else(too_long)?;
    let mut bytes = Vec::with_capacity(MAGIC.len() + 16 + 4 + configuration.len() + 1);
    bytes.extend_from_slice(MAGIC);
    for word in [BYTE_ORDER, FLAG_JSON | FLAG_STREAM_V2, 0, optional, length] {
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
    bytes.extend_from_slice(configuration.as_bytes());
    bytes.push(0);
    Ok(bytes)
}

/// Longest configuration that is read, in bytes.
const CONFIGURATION_MAX: u32 = 16 << 20;

/// Reads what is before the stream, and returns the configuration. The stream is next to be read.
///
/// # Errors
/// [`ErrorKind::Corrupt`] if it is not what [`header`] writes, [`ErrorKind::Io`] if it cannot be read.
pub(crate) fn read_header(image: &mut impl Read) -> Result<String> {
    let corrupt = |why: &str| {
        Error::new(
            ErrorKind::Corrupt,
            format!("this is no memory image: {why}"),
        )
    };
    let unreadable = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof => corrupt("it ends in its header"),
        _ => Error::io("read the memory image's header", error),
    };
    let mut fixed = [0; 52];
    image.read_exact(&mut fixed).map_err(unreadable)?;
    let (magic, words) = fixed.split_at(MAGIC.len());
    if magic != MAGIC {
        return Err(corrupt("it does not begin as one"));
    }
    let mut word = words.chunks_exact(4).map(|bytes| {
        let bytes = bytes.try_into().expect("chunks have four bytes");
        u32::from_ne_bytes(bytes)
    });
    let [order, mandatory, _, optional, length] = std::array::from_fn(|_| word.next().unwrap_or(0));
    if order != BYTE_ORDER {
        return Err(corrupt("it was written on a machine of another byte order"));
    }
    if mandatory != FLAG_JSON | FLAG_STREAM_V2 {
        return Err(corrupt(
            "it has another form than the one that is written here",
        ));
    }
    if length == 0 || length > CONFIGURATION_MAX || optional != length + 4 {
        return Err(corrupt("the length of its configuration is impossible"));
    }
    let mut text = Vec::new();
    let read = image.take(length.into()).read_to_end(&mut text);
    if read.map_err(unreadable)? < length as usize {
        return Err(corrupt("it ends in its configuration"));
    }
    let text = text.strip_suffix(b"\0").map(<[u8]>::to_vec);
    text.and_then(|text| String::from_utf8(text).ok())
        .ok_or_else(|| corrupt("its configuration is no text"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_the_stream_is_next() {
        let mut bytes = header("{\"a\": 1}").unwrap();
        bytes.extend_from_slice(b"stream");
        let mut rest = bytes.as_slice();
        assert_eq!(read_header(&mut rest).unwrap(), "{\"a\": 1}");
        assert_eq!(rest, b"stream");
    }

    #[test]
    fn every_cut_and_every_changed_byte_of_the_header_is_refused_or_harmless() {
        let bytes = header("{}").unwrap();
        for cut in 0..bytes.len() {
            let error = read_header(&mut &bytes[..cut]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "cut at {cut}");
        }
        let optional_flags = 40..44;
        let configuration = 52..54;
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0x80;
            let read = read_header(&mut changed.as_slice());
            let harmless = optional_flags.contains(&at);
            assert!(
                read.is_err() || harmless || configuration.contains(&at),
                "byte {at} was changed"
            );
        }
    }

    #[test]
    fn the_header_is_laid_out_as_xl_reads_it() {
        let bytes = header("{}").unwrap();
        assert_eq!(bytes.len(), 32 + 4 * 4 + 4 + 3);
        assert_eq!(&bytes[..27], b"Xen saved domain, xl format");
        let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!(
            [word(32), word(36), word(40), word(44), word(48)],
            [BYTE_ORDER, 3, 0, 7, 3]
        );
        assert_eq!(&bytes[52..], b"{}\0");
    }
}
