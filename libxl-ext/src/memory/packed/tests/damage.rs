//! What may happen to the files in between.

use super::*;

#[test]
fn every_changed_or_missing_byte_is_found() {
    let place = Place::new();
    let bytes = saved_pages(&[vec![1; PAGE], vec![0; PAGE], vec![1; PAGE], vec![2; PAGE]]);
    let (id, finished) = place.take(&bytes, &[1000]).unwrap();
    for path in [place.image(id), place.pack(id)] {
        let good = fs::read(&path).unwrap();
        let wrong = |what: String, kinds: &[ErrorKind]| {
            let proven = place.prove(id, &finished).expect_err(&what);
            assert!(
                kinds.contains(&proven.kind()),
                "{what}: {}",
                proven.report()
            );
            assert!(place.read(id).is_err(), "{what}");
        };
        for at in 0..good.len() {
            for change in [0x01, 0x80] {
                let mut changed = good.clone();
                changed[at] ^= change;
                fs::write(&path, &changed).unwrap();
                let kinds = [ErrorKind::Corrupt, ErrorKind::NewerVersion];
                wrong(format!("{} byte {at}", path.display()), &kinds);
            }
        }
        for length in 0..good.len() {
            fs::write(&path, &good[..length]).unwrap();
            wrong(
                format!("{} cut at {length}", path.display()),
                &[ErrorKind::Corrupt],
            );
        }
        let mut longer = good.clone();
        longer.push(0);
        fs::write(&path, &longer).unwrap();
        wrong("one more".into(), &[ErrorKind::Corrupt]);
        fs::write(&path, &good).unwrap();
        place.prove(id, &finished).unwrap();
    }
    fs::remove_file(place.pack(id)).unwrap();
    assert_eq!(
        place.prove(id, &finished).unwrap_err().kind(),
        ErrorKind::Io
    );
}

#[test]
fn another_file_in_the_place_of_one_is_found() {
    let place = Place::new();
    let (one, first) = place.take(&saved_pages(&guest(800, 0)), &[1000]).unwrap();
    let (two, second) = place.take(&saved_pages(&guest(800, 1)), &[1000]).unwrap();
    let corrupt = |id, finished| {
        let error = place.prove(id, finished).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{}", error.report());
    };
    let packs = [one, two].map(|id| fs::read(place.pack(id)).unwrap());
    fs::write(place.pack(one), &packs[1]).unwrap();
    corrupt(one, &first);
    fs::write(place.pack(one), &packs[0]).unwrap();
    fs::copy(place.image(two), place.image(one)).unwrap();
    corrupt(one, &first);
    place.prove(two, &second).unwrap();
    // Links are not followed.
    let (moved, path) = (place.packs().join("moved"), place.pack(one));
    fs::rename(&path, &moved).unwrap();
    std::os::unix::fs::symlink(&moved, &path).unwrap();
    assert!(place.prove(two, &second).is_err());
}

#[test]
fn what_nothing_needs_goes_and_the_rest_is_whole() {
    let place = Place::new();
    let bytes = |since| saved_pages(&guest(2000, since));
    let images: Vec<_> = (0..3)
        .map(|since| place.take(&bytes(since), &[1 << 16]).unwrap().0)
        .collect();
    let trace = |kept: &[SnapshotId]| {
        let kept: Vec<_> = kept.iter().map(|id| (*id, place.image(*id))).collect();
        Traced::needs(&kept)
    };
    let foreign = place.packs().join("notes.txt");
    fs::write(&foreign, "not ours").unwrap();
    let partial = place
        .packs()
        .join(format!("{}.partial", SnapshotId::random()));
    fs::write(&partial, "cut").unwrap();
    assert_eq!(trace(&images).unwrap().collect(&place.packs()).unwrap(), 1);
    assert!(!partial.exists());
    // The last image needs what the first one brought, and nothing of the second.
    let kept = trace(&images[2..]).unwrap();
    let mut expected = vec![images[0], images[2]];
    expected.sort();
    assert_eq!(kept.packs().collect::<Vec<_>>(), expected);
    assert_eq!(kept.collect(&place.packs()).unwrap(), 1);
    assert!(!place.pack(images[1]).exists() && foreign.exists());
    assert!(place.read(images[2]).unwrap() == bytes(2));
    assert!(place.read(images[1]).is_err());
    assert_eq!(kept.collect(&place.packs()).unwrap(), 0);
    fs::write(place.image(images[2]), "damaged").unwrap();
    assert!(trace(&images).is_err(), "nobody knows what it needs");
}

#[test]
fn a_damaged_block_names_those_that_it_hurts_and_no_new_image_stands_on_it() {
    let place = Place::new();
    let contents = guest(2000, 0);
    let (one, first) = place.take(&saved_pages(&contents), &[1 << 16]).unwrap();
    // Of the first image's 500 pages this has the last 400: blocks 1 to 7.
    let (two, second) = place
        .take(&saved_pages(&contents[400..]), &[1 << 16])
        .unwrap();
    assert_eq!(second.new_pages, 0);
    let kept = [(one, place.image(one)), (two, place.image(two))];
    let traced = Traced::needs(&kept).unwrap();
    assert_eq!(traced.damages(&place.packs(), &Unobserved).unwrap(), []);
    let damage = |at: usize| {
        let mut pack = fs::read(place.pack(one)).unwrap();
        pack[at] ^= 1;
        fs::write(place.pack(one), pack).unwrap();
        traced.damages(&place.packs(), &Unobserved).unwrap()
    };
    let found = damage(500);
    let [
        Damage {
            pack,
            block: Some(0),
            hurts,
            ..
        },
    ] = &found[..]
    else {
        panic!("{found:?}");
    };
    assert_eq!((*pack, hurts), (one, &vec![one]));
    let length = fs::read(place.pack(one)).unwrap().len();
    let found = damage(length / 2);
    assert_eq!(found.len(), 2);
    assert_eq!(found[1].hurts, [one, two]);
    assert!(found[1].report.contains("block "), "{}", found[1].report);
    assert!(place.prove(one, &first).is_err() && place.prove(two, &second).is_err());
    let (three, third) = place.take(&saved_pages(&contents), &[1 << 16]).unwrap();
    assert_eq!(third.new_pages, 128, "what both damaged blocks had is new");
    place.prove(three, &third).unwrap();
    let found = damage(length - 1);
    assert_eq!(found[0].block, None);
    assert_eq!(found[0].hurts, [one, two]);
}

#[test]
fn packs_with_another_key_are_read_and_nothing_is_found_in_them() {
    let (place, other) = (Place::new(), Place::new());
    let bytes = saved_pages(&guest(400, 0));
    let (one, first) = place.take(&bytes, &[1 << 16]).unwrap();
    let (two, second) = other.take(&bytes, &[1 << 16]).unwrap();
    fs::rename(other.pack(two), place.pack(two)).unwrap();
    fs::rename(other.image(two), place.image(two)).unwrap();
    let (three, third) = place.take(&bytes, &[1 << 16]).unwrap();
    assert_eq!(third.new_pages, 0, "one of both is used");
    for (id, finished) in [(one, first), (two, second), (three, third)] {
        place.prove(id, &finished).unwrap();
    }
}

#[test]
fn without_room_it_is_said_and_what_was_there_stays() {
    use crate::store::room::tests::{End, ends, is_back};
    let place = Place::new();
    let (kept, finished) = place
        .take(&saved_pages(&guest(400, 0)), &[1 << 16])
        .unwrap();
    let bytes = saved_pages(&(0..200).map(page).collect::<Vec<_>>());
    for after in 0.. {
        let id = SnapshotId::random();
        ends(End {
            after,
            for_good: after % 2 == 0,
        });
        let taken = place.take_as(id, &bytes, &[10_000]);
        let had_none = is_back();
        let Err(error) = taken else {
            assert!(!had_none);
            assert!(after > 10, "only {after} calls take room");
            break;
        };
        assert_eq!(error.kind(), ErrorKind::NoSpace, "{}", error.report());
        discard(&place.packs(), id).unwrap();
        discard(&place.packs(), id).unwrap();
        let left = fs::read_dir(place.packs()).unwrap().count();
        assert_eq!(left, 1, "only the pack of the image that was there");
        place.prove(kept, &finished).unwrap();
    }
}

#[test]
fn after_an_error_an_image_is_not_finished() {
    use crate::store::room::tests::{End, ends, is_back};
    let place = Place::new();
    let id = SnapshotId::random();
    let known = Known::load(&place.packs(), &Unobserved).unwrap();
    let mut writer = Writer::create(&place.image(id), id, known).unwrap();
    ends(End {
        after: 0,
        for_good: false,
    });
    let garbage: Vec<u8> = (0..200).flat_map(page).collect();
    assert!(writer.write(&garbage).is_err());
    assert!(is_back());
    assert!(writer.finish().is_err());
}

#[test]
fn an_image_or_pack_of_a_newer_release_is_told_from_a_damaged_one() {
    let place = Place::new();
    let (id, finished) = place.take(&some(), &[1 << 16]).unwrap();
    for (path, kind) in [(place.image(id), "image"), (place.pack(id), "pack")] {
        let good = fs::read(&path).unwrap();
        let line = format!("libxl-ext {kind} ");
        assert!(good.starts_with(line.as_bytes()));
        let mut newer = good.clone();
        newer[line.len()] = b'2';
        fs::write(&path, newer).unwrap();
        let error = place.prove(id, &finished).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NewerVersion);
        fs::write(&path, good).unwrap();
    }
}

/// An image that somebody made who knows how: what it says is not what was taken.
fn crafted(place: &Place, pieces: &[u8], needs: &[u8], bytes: u64) -> SnapshotId {
    use super::super::section::{ImageHead, Kind, Writing};
    use crate::store::Envelope;
    let id = SnapshotId::random();
    let head = ImageHead { id: id.0 };
    let mut out = Writing::create(&place.image(id), Envelope::IMAGE, id.0, &head).unwrap();
    let stored = zstd::bulk::compress(pieces, 1).unwrap();
    out.append(Kind::Pieces, pieces.len(), &stored).unwrap();
    let needs_at = out.at();
    out.append(Kind::Needs, needs.len(), needs).unwrap();
    let mut end = [needs_at, bytes].map(u64::to_le_bytes).concat();
    end.extend([0; 16]);
    out.append(Kind::End, end.len(), &end).unwrap();
    id
}

#[test]
fn an_image_that_lies_is_refused_before_it_is_believed() {
    use super::super::pieces::put;
    let place = Place::new();
    let (one, _) = place.take(&saved_pages(&guest(400, 0)), &[1000]).unwrap();
    let piece = |tag: u8, numbers: &[u64]| {
        let mut bytes = vec![tag];
        for number in numbers {
            put(*number, &mut bytes);
        }
        bytes
    };
    let needs = |ranges: &[u64]| {
        let mut bytes = one.0.as_bytes().to_vec();
        put(ranges.len() as u64 / 2, &mut bytes);
        for number in ranges {
            put(*number, &mut bytes);
        }
        bytes
    };
    let both = needs(&[0, 2]);
    let refused = |pieces: &[u8], needs: &[u8], bytes: u64| {
        let id = crafted(&place, pieces, needs, bytes);
        let error = place.read(id).expect_err("it lies");
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{}", error.report());
        // Who asks again gets no more.
        if let Ok(mut reader) = Reader::open(&place.image(id), &place.packs()) {
            while reader.read(&mut [0; 5000]).is_ok_and(|length| length > 0) {}
            assert!(reader.read(&mut [0; 5000]).is_err());
        }
    };
    for pieces in [
        piece(2, &[1 << 40]),
        piece(2, &[u64::MAX]),
        piece(1, &[0, u64::MAX]),
        piece(1, &[u64::MAX, 2]),
        piece(3, &[0, 0, u64::MAX]),
        piece(3, &[0, u64::MAX, 1]),
        piece(3, &[0, u64::MAX - 1, 3]),
        piece(3, &[0, 127, 2]),
        piece(3, &[1, 0, 1]),
        piece(3, &[0, 100, 1]),
        piece(0, &[1000]),
        piece(0, &[u64::MAX]),
        piece(4, &[1]),
        piece(2, &[0]),
        piece(2, &[2]),
        vec![],
        vec![2, 0x81, 0],
        vec![0; SECTION_BOMB],
    ] {
        refused(&pieces, &both, 1 << 20);
    }
    // A hundred pages are in two blocks, of which one is named.
    refused(&piece(3, &[0, 64, 1]), &needs(&[0, 1]), 1 << 20);
    for ranges in [
        &[0, 3][..],
        &[],
        &[0, 0],
        &[0, 1, 0, 1],
        &[u64::MAX, 1],
        &[0, u64::MAX],
        &[1, u64::MAX],
    ] {
        refused(&piece(2, &[1]), &needs(ranges), PAGE as u64);
    }
    refused(
        &piece(2, &[1]),
        &[both.clone(), both.clone()].concat(),
        PAGE as u64,
    );
    refused(&piece(2, &[1]), &both[..10], PAGE as u64);
}

/// Bytes of pieces that no section has.
const SECTION_BOMB: usize = 8 << 20;
