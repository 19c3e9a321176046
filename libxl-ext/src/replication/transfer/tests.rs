use super::super::link::tests::linked;
use super::*;

/// What arrives of these bytes, given in such parts.
fn carried(bytes: &[u8], part: usize) -> Vec<u8> {
    let (mut ours, mut theirs) = linked();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut out = Outgoing::new().unwrap();
            for part in bytes.chunks(part) {
                out.send(part, &mut ours.sender).unwrap();
            }
            assert_eq!(out.bytes(), bytes.len() as u64);
            out.end(&mut ours.sender).unwrap();
        });
        let mut incoming = Incoming::new(bytes.len() as u64).unwrap();
        let mut arrived = Vec::new();
        while let Some(piece) = incoming.next(&mut theirs.receiver, PIECE_LIMIT).unwrap() {
            arrived.extend_from_slice(piece);
        }
        assert_eq!(incoming.bytes(), bytes.len() as u64);
        arrived
    })
}

#[test]
fn what_is_sent_arrives_whatever_it_is_and_however_it_is_parted() {
    let mut state = 1_u64;
    let mut noise = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        state.to_be_bytes()[0]
    };
    let mut bytes = vec![0; 200_000];
    bytes.extend(std::iter::repeat_with(&mut noise).take(200_000));
    bytes.resize(bytes.len() + PIECE_MAX, 7);
    for part in [1000, PIECE_MAX - 1, PIECE_MAX, PIECE_MAX + 1, 1 << 20] {
        assert!(carried(&bytes, part) == bytes, "in parts of {part}");
    }
    assert!(carried(&[], 1).is_empty());
}

#[test]
fn a_piece_is_no_longer_than_it_may_be_nor_are_all_of_them() {
    let (mut ours, mut theirs) = linked();
    let mut heard = |message: &[u8], at_most| {
        ours.sender.send(message).unwrap();
        let mut incoming = Incoming::new(at_most).unwrap();
        let next = incoming.next(&mut theirs.receiver, PIECE_LIMIT);
        next.map(|piece| piece.map(<[u8]>::len))
            .map_err(|error| error.to_string())
    };
    let compressed = |length| {
        let packed = zstd::bulk::compress(&vec![5; length], 1).unwrap();
        [&[COMPRESSED][..], &packed].concat()
    };
    let limit = PIECE_MAX as u64;
    assert_eq!(heard(&compressed(PIECE_MAX), limit), Ok(Some(PIECE_MAX)));
    let bomb = heard(&compressed(1 << 20), u64::MAX).unwrap_err();
    assert!(bomb.contains("cannot be unpacked"), "{bomb}");
    let more = heard(&compressed(PIECE_MAX), limit - 1).unwrap_err();
    assert!(more.contains("more than was offered"), "{more}");
    assert_eq!(heard(&[&[PLAIN][..], &[1; 10]].concat(), 10), Ok(Some(10)));
    assert!(heard(&[&[PLAIN][..], &[1; 11]].concat(), 10).is_err());
    for message in [&[][..], &[9], &[COMPRESSED], &[COMPRESSED, 1, 2], &[END, 0]] {
        assert!(heard(message, limit).is_err(), "{message:?}");
    }
    let end = |bytes: u64| [&[END][..], &bytes.to_be_bytes()].concat();
    assert_eq!(heard(&end(0), limit), Ok(None));
    assert!(heard(&end(1), limit).is_err());
}

#[test]
fn who_says_nothing_is_waited_for_no_longer_than_the_limit() {
    let (_ours, mut theirs) = linked();
    let mut incoming = Incoming::new(1).unwrap();
    let limit = Duration::from_millis(30);
    let error = incoming.next(&mut theirs.receiver, limit).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
}
