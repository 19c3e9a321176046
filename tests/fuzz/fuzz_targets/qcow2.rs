//! The header of a qcow2 image and its table of snapshots.

#![no_main]

use libfuzzer_sys::fuzz_target;
use libxl_ext::fuzzing;

fuzz_target!(|image: &[u8]| {
    let Some(facts) = fuzzing::qcow2(image) else {
        return;
    };
    // What it says is in it.
    let is_in_it = |text: &str| {
        image
            .windows(text.len())
            .any(|bytes| bytes == text.as_bytes())
    };
    let backing = facts
        .backing
        .as_deref()
        .map(|path| path.to_str().expect("it is text"));
    let tags = facts.snapshots.iter().map(|snapshot| snapshot.tag.as_str());
    for text in tags.chain(backing).chain(facts.backing_format.as_deref()) {
        assert!(text.is_empty() || is_in_it(text));
    }
});
