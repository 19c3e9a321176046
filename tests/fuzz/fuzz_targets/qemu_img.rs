//! What `qemu-img info --output=json` prints.

#![no_main]

use libfuzzer_sys::fuzz_target;
use libxl_ext::fuzzing;

fuzz_target!(|output: &[u8]| {
    if let Ok(facts) = fuzzing::qemu_img(output) {
        for snapshot in &facts.snapshots {
            assert!(facts.snapshot(&snapshot.tag).is_some());
        }
    }
});
