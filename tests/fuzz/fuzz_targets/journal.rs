//! A journal: each line of the input is the JSON of an entry whose frame is whole. What comes after a byte
//! 0xff is the file's end as it is.

#![no_main]

use fuzz::sealed;
use libfuzzer_sys::fuzz_target;
use libxl_ext::fuzzing;

fuzz_target!(|input: &[u8]| {
    let mut parts = input.splitn(2, |byte| *byte == 0xff);
    let entries = parts
        .next()
        .unwrap_or_default()
        .split(|byte| *byte == b'\n');
    let mut file: Vec<u8> = entries.flat_map(|json| sealed("journal", json)).collect();
    file.extend_from_slice(parts.next().unwrap_or_default());
    let Ok((whole, progress)) = fuzzing::journal(&file) else {
        return;
    };
    let again = fuzzing::journal(&file[..whole]).expect("the whole entries alone");
    assert_eq!(again, (whole, progress));
});
