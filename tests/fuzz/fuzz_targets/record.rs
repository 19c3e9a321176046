//! A record whose frame is whole: whatever JSON is in it, it is refused, or the tree holds together.

#![no_main]

use fuzz::sealed;
use libfuzzer_sys::{Corpus, fuzz_target};
use libxl_ext::fuzzing;
use libxl_ext::store::Envelope;

fuzz_target!(|json: &[u8]| -> Corpus {
    let Ok(mut record) = fuzzing::record(&sealed("record", json)) else {
        return Corpus::Keep;
    };
    let written = Envelope::RECORD
        .seal(&record)
        .expect("JSON was read from it");
    assert_eq!(fuzzing::record(&written).expect("ours"), record);
    assert_eq!(record.walk().len(), record.snapshots.len());
    while let Some(last) = record.snapshots.last() {
        assert_eq!(record.find(last.name()).expect("it is there").id, last.id);
        let id = record.snapshots[record.snapshots.len() / 2].id;
        let below: Vec<_> = record
            .descendants(id)
            .iter()
            .map(|below| below.id)
            .collect();
        record.mark_deleting(&below);
        record.check().expect("a mark does not break it");
        record.remove(id);
        record.check().expect("a removal does not break it");
    }
    Corpus::Keep
});
