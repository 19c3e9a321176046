//! The header of a memory image: what is read from it would be written the same, and the stream is next.

#![no_main]

use libfuzzer_sys::fuzz_target;
use libxl_ext::fuzzing;

fuzz_target!(|bytes: &[u8]| {
    let mut rest = bytes;
    let Ok(configuration) = fuzzing::read_header(&mut rest) else {
        return;
    };
    let mut written = fuzzing::write_header(&configuration).expect("it was short enough");
    let read = &bytes[..bytes.len() - rest.len()];
    // The flags that a reader may pass over.
    written[40..44].copy_from_slice(&read[40..44]);
    assert_eq!(written, read);
});
