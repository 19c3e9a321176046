//! The frame around the store's files: what is taken is what would be written, to the byte.

#![no_main]

use libfuzzer_sys::fuzz_target;
use libxl_ext::fuzzing;
use libxl_ext::store::Envelope;

fuzz_target!(|bytes: &[u8]| {
    let file = with_checksum(bytes);
    for (kind, name) in [(Envelope::RECORD, "record"), (Envelope::JOURNAL, "journal")] {
        let Ok((value, rest)) = fuzzing::frame(kind, &file) else {
            continue;
        };
        let taken = &file[..file.len() - rest.len()];
        let end = taken
            .iter()
            .position(|byte| *byte == b'\n')
            .expect("a first line");
        let payload = &taken[end + 1..taken.len() - 1];
        let checksum = xxhash_rust::xxh3::xxh3_128(payload);
        let line = format!("libxl-ext {name} 1 {} {checksum:032x}", payload.len());
        assert_eq!(&taken[..end], line.as_bytes());
        let sealed = kind.seal(&value).expect("JSON was read from it");
        assert_eq!(fuzzing::frame(kind, &sealed).expect("ours").0, value);
    }
});

/// A `*` at the end of the first line stands for the right checksum, which no fuzzer finds by chance.
fn with_checksum(bytes: &[u8]) -> Vec<u8> {
    let Some(end) = bytes.windows(2).position(|pair| pair == b"*\n") else {
        return bytes.to_vec();
    };
    let body = &bytes[end + 2..];
    let checksum = xxhash_rust::xxh3::xxh3_128(body.strip_suffix(b"\n").unwrap_or(body));
    let checksum = format!("{checksum:032x}\n");
    [&bytes[..end], checksum.as_bytes(), body].concat()
}
