//! The page store as a whole: bytes in, bytes out.

mod damage;

use super::write::Finished;
use super::*;
use crate::error::{Error, ErrorKind, Result};
use crate::event::Unobserved;
use crate::memory::stream::{Followed, has_content};
use crate::memory::{header, stream, stream_of};
use crate::model::name::SnapshotId;
use proptest::prelude::*;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

/// A place for images and their packs.
pub(super) struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    pub(super) fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
        }
    }

    pub(super) fn packs(&self) -> PathBuf {
        self.directory.path().join("packs")
    }

    pub(super) fn image(&self, id: SnapshotId) -> PathBuf {
        self.directory.path().join(format!("image-{id}"))
    }

    /// Takes a file of `xl save`, in pieces of these lengths over and over.
    pub(super) fn take(&self, bytes: &[u8], lengths: &[usize]) -> Result<(SnapshotId, Finished)> {
        let id = SnapshotId::random();
        self.take_as(id, bytes, lengths)
            .map(|finished| (id, finished))
    }

    fn take_as(&self, id: SnapshotId, mut bytes: &[u8], lengths: &[usize]) -> Result<Finished> {
        let known = Known::load(&self.packs(), &Unobserved)?;
        let mut writer = Writer::create(&self.image(id), id, known)?;
        let mut lengths = lengths.iter().cycle();
        let total = bytes.len() as u64;
        while !bytes.is_empty() {
            let length = lengths.next().copied().unwrap_or(usize::MAX);
            let (now, rest) = bytes.split_at(length.min(bytes.len()));
            writer.write(now)?;
            bytes = rest;
        }
        assert_eq!(writer.bytes(), total);
        let finished = writer.finish()?;
        assert_eq!(finished.proof.bytes, total);
        seal(&self.packs(), id)?;
        Ok(finished)
    }

    /// What comes out; of what has no end as much as shows that.
    fn read(&self, id: SnapshotId) -> Result<Vec<u8>> {
        let mut reader = Reader::open(&self.image(id), &self.packs())?.take(64 << 20);
        let mut bytes = Vec::new();
        match reader.read_to_end(&mut bytes) {
            Ok(_) => Ok(bytes),
            Err(error) => Err(error.downcast::<Error>().expect("it is ours")),
        }
    }

    fn prove(&self, id: SnapshotId, finished: &Finished) -> Result<()> {
        let (image, packs) = (self.image(id), self.packs());
        prove(&image, &packs, &finished.proof, &Unobserved, |_| Ok(()))
    }

    fn pack(&self, id: SnapshotId) -> PathBuf {
        self.packs().join(id.to_string())
    }
}

/// A file of `xl save` with these pages: number with type, content.
fn saved(records: &[&[(u64, Option<u8>)]]) -> Vec<u8> {
    let mut bytes = header("{\"a\": \"configuration\"}").unwrap();
    bytes.extend(stream(records));
    bytes
}

const NOT_THERE: u64 = 0xf << 60;
const PINNED: u64 = 0x9 << 60;

/// One with a bit of everything.
fn some() -> Vec<u8> {
    saved(&[
        &[(1, Some(1)), (2, Some(0)), (3, Some(3)), (4, Some(0))],
        &[(NOT_THERE | 5, None), (PINNED | 6, Some(1))],
        &[(u64::MAX, None)],
        &[],
        &[(0, Some(0)), (4, Some(3)), (4, Some(9))],
    ])
}

/// As [`saved`], with numbers from 0 and these contents, a hundred in each record.
pub(super) fn saved_pages(contents: &[Vec<u8>]) -> Vec<u8> {
    let pages = (0..).zip(contents.iter().cloned().map(Some));
    let pages: Vec<_> = pages.collect();
    let records: Vec<_> = pages.chunks(100).map(<[_]>::to_vec).collect();
    let mut bytes = header("{}").unwrap();
    bytes.extend(stream_of(&records));
    bytes
}

/// A page that no other seed makes.
pub(super) fn page(seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.take(PAGE / 8).flatten().collect()
}

#[test]
fn what_was_taken_is_read_in_whatever_pieces_it_came() {
    let bytes = some();
    let place = Place::new();
    for lengths in [
        &[usize::MAX][..],
        &[1],
        &[7],
        &[PAGE],
        &[4095, 4097, 3],
        &[1 << 20],
    ] {
        let (id, finished) = place.take(&bytes, lengths).unwrap();
        assert_eq!(finished.followed, Followed::ToItsEnd);
        assert!(place.read(id).unwrap() == bytes, "in pieces of {lengths:?}");
        place.prove(id, &finished).unwrap();
        let mut read = Vec::new();
        let (image, packs) = (place.image(id), place.packs());
        prove(&image, &packs, &finished.proof, &Unobserved, |bytes| {
            read.extend_from_slice(bytes);
            Ok(())
        })
        .unwrap();
        assert!(read == bytes);
    }
}

#[test]
fn the_proof_is_that_of_the_file_that_xl_would_have_written() {
    let bytes = some();
    let place = Place::new();
    let (id, finished) = place.take(&bytes, &[999]).unwrap();
    let plain = place.directory.path().join("plain");
    fs::write(&plain, &bytes).unwrap();
    assert_eq!(
        finished.proof.content(),
        crate::memory::prove::measure(&plain, &Unobserved).unwrap()
    );
    assert!(is_packed(&place.image(id)).unwrap());
    assert!(!is_packed(&plain).unwrap());
    let mut reader = Reader::open(&place.image(id), &place.packs()).unwrap();
    assert_eq!(reader.proof(), finished.proof);
    let configuration = crate::memory::read_header(&mut reader).unwrap();
    assert_eq!(configuration, "{\"a\": \"configuration\"}");
    let pages = crate::memory::pages(&mut reader).unwrap();
    assert_eq!(
        pages,
        crate::memory::pages(&mut &bytes[bytes.len() - reader_left(&bytes)..]).unwrap()
    );
}

/// Bytes of the stream behind xl's header.
fn reader_left(bytes: &[u8]) -> usize {
    let mut rest = bytes;
    crate::memory::read_header(&mut rest).unwrap();
    rest.len()
}

#[test]
fn both_files_are_for_root_alone() {
    let place = Place::new();
    let (id, _) = place.take(&some(), &[1000]).unwrap();
    for path in [place.image(id), place.pack(id)] {
        let mode = fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
    }
}

#[test]
fn a_stream_that_ends_anywhere_is_kept_all_the_same() {
    let bytes = some();
    let place = Place::new();
    let lengths = (0..400).chain((400..bytes.len()).step_by(173));
    for length in lengths {
        let (id, finished) = place.take(&bytes[..length], &[777]).unwrap();
        assert!(
            place.read(id).unwrap() == bytes[..length],
            "cut at {length}"
        );
        place.prove(id, &finished).unwrap();
        let memory_ends = bytes.len() - 8;
        assert_eq!(
            finished.followed == Followed::ToItsEnd,
            length >= memory_ends,
            "cut at {length}"
        );
    }
}

#[test]
fn a_stream_that_is_not_understood_is_kept_all_the_same() {
    let bytes = some();
    let head = bytes.len() - reader_left(&bytes);
    let place = Place::new();
    // Each byte of the heads, and of the first record of pages up to its contents.
    for at in (0..head + 130).chain([bytes.len() - 1]) {
        for bit in [0x01, 0x80] {
            let mut changed = bytes.clone();
            changed[at] ^= bit;
            let (id, finished) = place.take(&changed, &[50, 5000]).unwrap();
            assert!(place.read(id).unwrap() == changed, "byte {at}");
            place.prove(id, &finished).unwrap();
            fs::remove_file(place.image(id)).unwrap();
        }
    }
    let garbage: Vec<u8> = (0..100).flat_map(page).collect();
    for garbage in [&garbage[..], &garbage[..5], &[]] {
        let (id, finished) = place.take(garbage, &[3000]).unwrap();
        assert!(matches!(finished.followed, Followed::Lost(_)));
        assert!(place.read(id).unwrap() == garbage);
    }
}

#[test]
fn lengths_that_are_claimed_take_no_memory_and_what_follows_the_memory_stays() {
    let bytes = some();
    let at = bytes.len() - reader_left(&bytes) + 16 + (8 + 16) + 8 + 24 + 16 + 8;
    assert_eq!(bytes[at..at + 4], [1, 0, 0, 0], "the first record of pages");
    let place = Place::new();
    for (offset, word) in [
        (4, u32::MAX),
        (8, u32::MAX),
        (4, 128 << 20),
        (8, (16 << 20) - 1),
    ] {
        let mut changed = bytes.clone();
        changed[at + offset..at + offset + 4].copy_from_slice(&word.to_le_bytes());
        let (id, _) = place.take(&changed, &[4096]).unwrap();
        assert!(place.read(id).unwrap() == changed, "{word} at {offset}");
    }
    let mut more = bytes.clone();
    more.extend(page(1));
    more.extend(b"the state of a QEMU");
    let (id, finished) = place.take(&more, &[4096]).unwrap();
    assert_eq!(finished.followed, Followed::ToItsEnd);
    assert!(place.read(id).unwrap() == more);
}

#[test]
fn zeros_take_no_room_and_equal_pages_that_of_one() {
    let place = Place::new();
    let zeros = saved_pages(&vec![vec![0; PAGE]; 1500]);
    let (id, finished) = place.take(&zeros, &[1 << 20]).unwrap();
    assert_eq!(finished.new_pages, 0);
    assert!(finished.proof.stored_bytes() < 1000, "{finished:?}");
    assert!(!place.pack(id).exists(), "there is no page for a pack");
    assert!(!place.packs().join(format!("{id}.partial")).exists());
    assert!(place.read(id).unwrap() == zeros);
    let equal = saved_pages(&vec![page(1); 1500]);
    let (id, finished) = place.take(&equal, &[1 << 20]).unwrap();
    assert_eq!(finished.new_pages, 1);
    assert!(
        finished.proof.stored_bytes() < PAGE as u64 + 1000,
        "{finished:?}"
    );
    assert!(place.read(id).unwrap() == equal);
}

/// Contents of a guest that did little since: some zeros, and a hundredth is new.
fn guest(pages: u64, since: u64) -> Vec<Vec<u8>> {
    let content = |number: u64| match number {
        zero if zero % 4 != 0 => vec![0; PAGE],
        new if new % 400 == 0 => page(new + since),
        old => page(old),
    };
    (0..pages).map(content).collect()
}

#[test]
fn a_second_image_costs_what_is_new_in_it() {
    let place = Place::new();
    let first = saved_pages(&guest(4000, 0));
    let (one, first_cost) = place.take(&first, &[1 << 16]).unwrap();
    assert_eq!(first_cost.new_pages, 1000);
    let second = saved_pages(&guest(4000, 1));
    let (two, second_cost) = place.take(&second, &[1 << 16]).unwrap();
    assert_eq!(second_cost.new_pages, 10);
    assert!(second_cost.proof.stored_bytes() * 10 < first_cost.proof.stored_bytes());
    let (three, third_cost) = place.take(&second, &[1 << 16]).unwrap();
    assert_eq!(third_cost.new_pages, 0);
    for (id, bytes) in [(one, &first), (two, &second), (three, &second)] {
        assert!(place.read(id).unwrap() == *bytes);
    }
}

/// Contents that are often the same.
fn contents() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        Just(vec![0; PAGE]),
        any::<u8>().prop_map(|byte| vec![byte % 4; PAGE]),
        (0..20_u64).prop_map(page),
        any::<u64>().prop_map(page),
        (any::<u8>(), 0..PAGE).prop_map(|(byte, at)| {
            let mut page = vec![0; PAGE];
            page[at] = byte;
            page
        }),
    ]
}

/// A page of any type; of some no content follows.
fn any_page() -> impl Strategy<Value = (u64, Option<Vec<u8>>)> {
    let number = prop_oneof![0..50_u64, any::<u64>()];
    (number, 0..16_u64, contents()).prop_map(|(number, kind, content)| {
        let number = number >> 4 | kind << 60;
        (number, has_content(number).then_some(content))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn any_two_images_come_out_as_they_went_in(
        records in prop::collection::vec(prop::collection::vec(any_page(), 0..30), 0..8),
        change in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
        cut: prop::sample::Index,
        lengths in prop::collection::vec(1..9000_usize, 1..20),
    ) {
        let mut bytes = header("{}").unwrap();
        bytes.extend(stream_of(&records));
        let place = Place::new();
        let (one, first) = place.take(&bytes, &lengths).unwrap();
        prop_assert_eq!(first.followed, Followed::ToItsEnd);
        let mut other = bytes.clone();
        for (at, byte) in &change {
            other[at.index(bytes.len())] = *byte;
        }
        other.truncate(bytes.len() - cut.index(bytes.len()) / 4);
        let (two, second) = place.take(&other, &lengths).unwrap();
        prop_assert!(place.read(one).unwrap() == bytes);
        prop_assert!(place.read(two).unwrap() == other);
        place.prove(one, &first).unwrap();
        place.prove(two, &second).unwrap();
        prop_assert!(place.prove(one, &second).is_err() || first.proof == second.proof);
    }
}
