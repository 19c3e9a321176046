//! What `xl save` puts in front of libxl's stream: a fixed header and the domain's configuration, so
//! that `xl restore FILE` needs nothing else. (Xen's tools/xl/xl.h, `struct save_file_header`.)

use crate::error::{Error, ErrorKind, Result};

const MAGIC: &[u8; 32] = b"Xen saved domain, xl format\n \0 \r";
const BYTE_ORDER: u32 = 0x0102_0304;
/// The configuration is JSON.
const FLAG_JSON: u32 = 1 << 0;
/// What follows is a version 2 stream.
const FLAG_STREAM_V2: u32 = 1 << 1;

/// The bytes before the stream, for a domain of the given configuration.
pub(super) fn header(configuration: &str) -> Result<Vec<u8>> {
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

#[cfg(test)]
mod tests {
    use super::*;

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
