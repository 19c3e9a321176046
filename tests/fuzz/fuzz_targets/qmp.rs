//! What a QEMU says on its monitor: greeting, events, answers and failures, a line each.

#![no_main]

use libfuzzer_sys::fuzz_target;
use libxl_ext::fuzzing;

fuzz_target!(|said: &[u8]| match fuzzing::qmp(said) {
    Ok(_) => assert!(said.iter().filter(|byte| **byte == b'\n').count() >= 3),
    Err(error) => assert!(!error.report().is_empty()),
});
