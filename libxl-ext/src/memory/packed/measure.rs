//! How fast it is. `cargo test --release -p libxl-ext --lib -- --ignored --nocapture packed::measure`

use super::tests::{Place, page, saved_pages};
use super::{PAGE, Reader};
use std::io::Read as _;
use std::time::Instant;

/// A page of which every other word is random.
fn half(seed: u64) -> Vec<u8> {
    let mut page = page(seed);
    for word in page.chunks_exact_mut(16) {
        word[8..].fill(0x55);
    }
    page
}

#[test]
#[ignore = "it measures, in a release build"]
fn an_idle_guest_of_256_mib() {
    let content = |number| match number % 4 {
        0 => half(number),
        _ => vec![0; PAGE],
    };
    let mut pages: Vec<_> = (0..65_536).map(content).collect();
    let place = Place::new();
    let mut show = |what: &str| {
        let bytes = saved_pages(&pages);
        let mib = f64::from(u32::try_from(bytes.len() >> 10).expect("it is small")) / 1024.0;
        let begin = Instant::now();
        let (id, finished) = place.take(&bytes, &[1 << 20]).expect("it is taken");
        let taken = begin.elapsed().as_secs_f64();
        let begin = Instant::now();
        let mut reader = Reader::open(&place.image(id), &place.packs()).expect("it is there");
        let mut buffer = vec![0; 1 << 20];
        while reader.read(&mut buffer).expect("it is read") > 0 {}
        let read = begin.elapsed().as_secs_f64();
        println!(
            "{what}: {} bytes stored, {} pages new; taken with {:.0} MiB/s, read with {:.0} MiB/s",
            finished.proof.stored_bytes(),
            finished.new_pages,
            mib / taken,
            mib / read,
        );
        // 231 pages are new the next time.
        for number in 0..231 {
            pages[number * 200] = half(1 << 40 | number as u64);
        }
    };
    show("first");
    show("second");
}
