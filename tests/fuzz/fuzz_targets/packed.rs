//! Packed memory images: what is taken comes out, in whatever pieces it came; and of files whose checksums fit, whatever is in
//! them, either something is read or an error.

#![no_main]

use libfuzzer_sys::fuzz_target;
use libxl_ext::fuzzing;
use std::sync::LazyLock;

/// In memory, where there is such a place.
static PLACE: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    let memory = std::path::Path::new("/dev/shm");
    let place = if memory.is_dir() {
        tempfile::tempdir_in(memory)
    } else {
        tempfile::tempdir()
    };
    place.expect("there is room")
});

/// Parts of a file: kind, claimed length in sixteens of bytes, length (2), so many bytes.
fn parts(mut bytes: &[u8]) -> Vec<(u32, u32, &[u8])> {
    let mut parts = Vec::new();
    while let [kind, claimed, low, high, rest @ ..] = bytes {
        let length = usize::from(u16::from_le_bytes([*low, *high]));
        let (stored, rest) = rest.split_at(length.min(rest.len()));
        let claimed = match claimed {
            // What is not compressed says its own length.
            0 => u32::try_from(stored.len()).unwrap_or(0),
            claimed => u32::from(*claimed) << 4,
        };
        parts.push((u32::from(*kind), claimed, stored));
        bytes = rest;
    }
    parts
}

fuzz_target!(|bytes: &[u8]| {
    let [mode, cut, rest @ ..] = bytes else {
        return;
    };
    if mode % 2 == 0 {
        let read = fuzzing::pack(PLACE.path(), rest, usize::from(*cut) + 1).expect("it was taken");
        assert!(read == rest);
    } else {
        let (image, pack) = rest.split_at(rest.len() * usize::from(*cut) / 256);
        let _ = fuzzing::packed(PLACE.path(), &parts(image), &parts(pack));
    }
});
