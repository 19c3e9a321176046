use super::super::pair::Key;
use super::*;
use std::net::TcpListener;

const LIMIT: Duration = Duration::from_secs(20);

/// Both ends of a link, of whoever has these keys.
fn link(
    ours: &Key,
    theirs: Vec<(&'static str, Key)>,
) -> (Result<Link>, io::Result<(&'static str, Link)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let peer = listener.local_addr().unwrap().to_string();
    let accepted = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        Link::accept(stream, &theirs, LIMIT).map(|(name, link)| (*name, link))
    });
    let connected = Link::connect(&peer, ours, LIMIT);
    (connected, accepted.join().unwrap())
}

pub(in crate::replication) fn linked() -> (Link, Link) {
    let key = Key::random().unwrap();
    let (ours, theirs) = link(
        &key,
        vec![("a", Key::random().unwrap()), ("b", key.clone())],
    );
    let (name, theirs) = theirs.unwrap();
    assert_eq!(name, "b");
    (ours.unwrap(), theirs)
}

#[test]
fn what_is_said_is_heard_whatever_its_length() {
    let (mut ours, mut theirs) = linked();
    for length in [0, 1, CHUNK_MAX - 6, CHUNK_MAX, 300_000] {
        let text = "x".repeat(length);
        let said = std::thread::scope(|scope| {
            scope.spawn(|| ours.say(&text, LIMIT).unwrap());
            theirs.hear::<String>(LIMIT).unwrap()
        });
        assert!(said == text);
    }
    theirs.say(&1, LIMIT).unwrap();
    assert_eq!(ours.hear::<u8>(LIMIT).unwrap(), 1);
    assert!(ours.say(&"x".repeat(JSON_MAX), LIMIT).is_err(), "too long");
}

#[test]
fn who_has_another_key_hears_nothing() {
    let key = Key::random().unwrap();
    let (ours, theirs) = link(&key, vec![("a", Key::random().unwrap())]);
    let refused = theirs.map(drop).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
    assert!(
        ours.map(drop)
            .unwrap_err()
            .report()
            .contains("the same key")
    );
}

/// Everything that a stranger is sent before he is sent away.
fn heard_by_a_stranger(says: &[u8], limit: Duration) -> Vec<u8> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let serving = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let keys = [("a", Key::random().unwrap())];
        assert!(Link::accept(stream, &keys, limit).is_err());
    });
    let mut stranger = TcpStream::connect(address).unwrap();
    stranger.write_all(says).unwrap();
    let mut heard = Vec::new();
    // Whether it is closed or reset is the kernel's affair.
    let _ = stranger.read_to_end(&mut heard);
    serving.join().unwrap();
    heard
}

#[test]
fn a_stranger_gets_no_byte_and_is_sent_away() {
    assert_eq!(heard_by_a_stranger(&[7; GREETING], LIMIT), b"");
    assert_eq!(
        heard_by_a_stranger(b"GET / HTTP/1.1\r\n\r\n".repeat(9).as_slice(), LIMIT),
        b""
    );
    // Who says less waits in vain, and not for long.
    assert_eq!(
        heard_by_a_stranger(&[7; GREETING - 1], Duration::from_millis(100)),
        b""
    );
    assert_eq!(heard_by_a_stranger(&[], Duration::from_millis(100)), b"");
}

#[test]
fn what_was_changed_or_repeated_on_the_way_is_refused() {
    for change in [0, 9] {
        let (ours, mut theirs) = linked();
        let mut sealed = vec![0; MESSAGE_MAX];
        let length = ours
            .sender
            .noise
            .write_message(0, b"word", &mut sealed)
            .unwrap();
        sealed.truncate(length);
        sealed[change] ^= u8::from(change > 0);
        let head = u16::try_from(length).unwrap().to_be_bytes();
        let wire = [&head[..], &sealed].concat();
        (&ours.sender.stream).write_all(&wire.repeat(2)).unwrap();
        if change == 0 {
            assert_eq!(theirs.receiver.receive().unwrap(), Some(&b"word"[..]));
        }
        assert!(theirs.receiver.receive().is_err());
    }
}

#[test]
fn a_peer_that_promises_too_much_or_says_nothing_is_not_waited_for() {
    let (mut ours, mut theirs) = linked();
    ours.sender.send(&u32::MAX.to_be_bytes()).unwrap();
    assert!(theirs.hear::<u8>(LIMIT).is_err());
    let (mut ours, mut theirs) = linked();
    ours.sender.send(&[0, 0, 0, 9, b'1']).unwrap();
    ours.sender.send(&[]).unwrap();
    assert!(theirs.hear::<u8>(LIMIT).is_err(), "nothing more comes");
    let silent = theirs.hear::<u8>(Duration::from_millis(50)).unwrap_err();
    assert_eq!(silent.kind(), io::ErrorKind::TimedOut);
    drop(ours);
    assert!(theirs.receiver.receive().unwrap().is_none());
}
