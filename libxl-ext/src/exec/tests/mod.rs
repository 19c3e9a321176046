//! Every operation, with every call to a port failing, and with the process killed before and after
//! every call: the guest is as before or as after, never between, nothing is left over, and the command
//! can be given again.

mod behind_our_back;
mod check;
mod delete;
mod disk_only;
mod external;
mod force;
mod full_disk;
mod jobs;
mod keep;
mod late;
mod managed;
mod memory_file;
mod packs;
mod pull;
mod reboot;
mod replicated;
mod restored;
mod toolstack;
mod world;

use crate::error::{ErrorKind, Result};
use crate::event::Unobserved;
use crate::memory::packed::{self, Traced};
use crate::model::disk::{DiskKind, Stamp};
use crate::model::domain::DomainState;
use crate::model::name::SnapshotName;
use crate::model::record::{DiskProof, RecordState, SnapshotRecord};
use crate::plan::{CreateRequest, EditRequest, Request, RevertRequest};
use crate::snapshot::Host;
use crate::store::Store;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use world::{Fault, IMAGES, Killed, NAME, OTHER, Shared};

const FAULTS: [Fault; 3] = [Fault::Fails, Fault::KilledBefore, Fault::KilledAfter];

/// No operation makes more calls than this; a loop that does not end is found.
const CALLS_MAX: usize = 250;

/// What the user sees of a domain: is it running, its memory, its disks.
type Seen = (Option<(DomainState, String)>, Vec<String>);

fn see(shared: &Shared) -> Seen {
    let world = shared.0.borrow();
    let domain = world
        .the_domain()
        .map(|domain| (domain.state(), domain.memory.clone()));
    let disks = match world.the_domain() {
        Some(domain) if !domain.images.contains(&OTHER.into()) => domain.images.clone(),
        Some(_) => IMAGES.map(PathBuf::from).into(),
        None => world.disks_to_start(),
    };
    (
        domain,
        disks.iter().map(|path| world.content(path)).collect(),
    )
}

fn running(which: &str) -> Seen {
    let memory = format!("memory {which}");
    (
        Some((DomainState::Running, memory)),
        vec![format!("disk {which}"); IMAGES.len()],
    )
}

/// A host whose images are files; a domain `g1` runs on others.
pub(crate) fn host_with_files(root: &Path) -> Host {
    Shared::new().host_with_files(root)
}

fn execute(host: &Host, request: &Request) -> Result<()> {
    let done = host.execute(NAME, request, &Unobserved)?;
    done.left_over.map_or(Ok(()), Err)
}

fn create(host: &Host, name: &str) -> Result<()> {
    create_as(host, name, None)
}

fn create_as(host: &Host, name: &str, kind: Option<DiskKind>) -> Result<()> {
    execute(
        host,
        &Request::Create(CreateRequest {
            name: Some(SnapshotName::new(name)?),
            kind,
            ..CreateRequest::default()
        }),
    )
}

fn revert(host: &Host, name: &str) -> Result<()> {
    revert_to(host, name, false)
}

fn revert_to(host: &Host, name: &str, force: bool) -> Result<()> {
    execute(
        host,
        &Request::Revert(RevertRequest {
            name: name.into(),
            state: None,
            force,
        }),
    )
}

fn names(host: &Host) -> Vec<String> {
    let record = host.snapshots(NAME, &Unobserved).unwrap();
    record
        .snapshots
        .iter()
        .map(|snapshot| snapshot.name().to_owned())
        .collect()
}

/// Makes a domain to operate on, and the store in a directory.
type Prepare = fn() -> (tempfile::TempDir, Shared);

/// A domain with snapshots `one` and `two` that lived on to state 2.
fn prepared() -> (tempfile::TempDir, Shared) {
    prepared_as([None, None])
}

/// The same, with the disks in the snapshots held in these ways.
fn prepared_as(kinds: [Option<DiskKind>; 2]) -> (tempfile::TempDir, Shared) {
    // Not on a disk: thousands of flushes follow.
    let memory = Path::new("/dev/shm");
    let place = if memory.is_dir() {
        memory.to_path_buf()
    } else {
        std::env::temp_dir()
    };
    let root = tempfile::tempdir_in(place).unwrap();
    let shared = Shared::new();
    shared.0.borrow_mut().root = root.path().into();
    let host = shared.host(root.path());
    create_as(&host, "one", kinds[0]).unwrap();
    shared.live_on("1");
    create_as(&host, "two", kinds[1]).unwrap();
    shared.live_on("2");
    (root, shared)
}

/// Lets the domain go back to `one` and on: `three` is a branch beside what was below it.
fn branch(
    (root, shared): (tempfile::TempDir, Shared),
    kind: Option<DiskKind>,
) -> (tempfile::TempDir, Shared) {
    let host = shared.host(root.path());
    revert(&host, "one").unwrap();
    shared.live_on("3");
    create_as(&host, "three", kind).unwrap();
    shared.live_on("2");
    (root, shared)
}

/// Runs `act` in a process of its own, so to say: `None` if it was killed.
fn attempt(shared: &Shared, root: &Path, act: impl Fn(&Host) -> Result<()>) -> Option<Result<()>> {
    let host = shared.host(root);
    match catch_unwind(AssertUnwindSafe(|| act(&host))) {
        Ok(result) => Some(result),
        Err(panic) if panic.is::<Killed>() => None,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Whatever the record says is there, and nothing else is.
fn assert_whole(shared: &Shared, root: &Path, what: &str) {
    let store = Store::new(root).domain(NAME);
    let record = store.load().unwrap();
    assert!(!store.journal_path().exists(), "{what}: a journal is left");
    let world = shared.0.borrow();
    assert!(world.domains.len() <= 1, "{what}: {:?}", world.domains);
    for domain in world.domains.values() {
        assert!(!domain.monitor_held && !domain.gutted, "{what}: {domain:?}");
    }
    for snapshot in &record.snapshots {
        assert_eq!(snapshot.state, RecordState::Complete, "{what}");
        let number = if snapshot.name() == "one" { "0" } else { "1" };
        if snapshot.is_disk_only() {
            assert!(
                snapshot.memory.is_none() && snapshot.configuration.is_some(),
                "{what}: {snapshot:?}"
            );
        } else {
            let kept = store.kept_memory(snapshot);
            let proof = snapshot.memory.as_ref().unwrap();
            kept.prove(proof, &Unobserved).unwrap();
            assert_eq!(
                proof.packed.is_some(),
                snapshot.snapshot.memory_file.is_none()
            );
            assert!(
                !["one", "two"].contains(&snapshot.name())
                    || world::memory_in(&kept).unwrap() == format!("memory {number}"),
                "{what}"
            );
        }
        for proof in &snapshot.disks {
            let path = &*proof.target.image;
            let content = match proof.kind {
                DiskKind::Internal => world.images[path].snapshots[&snapshot.id.tag()].0.clone(),
                DiskKind::External => world.content(path),
            };
            let written = Stamp {
                seconds: world.images[path].written,
                nanoseconds: 0,
            };
            let is_external = proof.kind == DiskKind::External;
            assert!(
                !is_external || proof.stamp == Some(written),
                "{what}: {proof:?}"
            );
            if ["one", "two"].contains(&snapshot.name()) {
                assert_eq!(
                    content,
                    format!("disk {number}"),
                    "{what}: {}",
                    path.display()
                );
            }
        }
    }
    let proofs = record.snapshots.iter().flat_map(|snapshot| &snapshot.disks);
    for (path, image) in &world.images {
        let internal =
            |proof: &&DiskProof| proof.kind == DiskKind::Internal && *proof.target.image == **path;
        let left_over = record
            .left_over
            .iter()
            .filter(|left| *left.target.image == **path);
        let expected = proofs.clone().filter(internal).count() + left_over.count();
        assert_eq!(
            image.snapshots.len(),
            expected,
            "{what}: leaked in {}",
            path.display()
        );
        let known = [&IMAGES[..], &[OTHER]]
            .concat()
            .iter()
            .any(|known| path == Path::new(known));
        assert!(
            known || record.layer(path).is_some(),
            "{what}: {} is left",
            path.display()
        );
    }
    for layer in &record.layers {
        assert!(
            world.images.contains_key(&*layer.image),
            "{what}: {layer} is missing"
        );
    }
    assert_eq!(record.garbage(), [], "{what}");
    for domain in world
        .domains
        .values()
        .filter(|domain| domain.images != [PathBuf::from(OTHER)])
    {
        assert_eq!(
            domain.images, domain.told,
            "{what}: libxl does not know its disks"
        );
        let disks = IMAGES.map(|base| match record.active_layer(Path::new(base)) {
            Some(layer) => layer.image.to_path_buf(),
            None => base.into(),
        });
        assert_eq!(
            domain.images, disks,
            "{what}: the store does not know its disks"
        );
    }
    if let Some(other) = world.images.get(Path::new(OTHER)) {
        assert_eq!(other.content, "disk other", "{what}");
        assert!(other.snapshots.is_empty(), "{what}: leaked in {OTHER}");
    }
    let present = store.present_copy().unwrap().unwrap();
    assert!(present.says_what(&record), "{what}: {present:?}");
    for snapshot in &record.snapshots {
        let copy = store.snapshot_copy(snapshot.id).unwrap().unwrap();
        assert!(copy.says_what(NAME, snapshot), "{what}: {copy:?}");
        let files = std::fs::read_dir(store.snapshot_directory(snapshot.id)).unwrap();
        let in_store = !snapshot.is_disk_only() && snapshot.snapshot.memory_file.is_none();
        assert_eq!(files.count(), usize::from(in_store) + 1, "{what}");
    }
    // A running domain never has one.
    let managed = record.managed.as_ref();
    assert!(
        managed.is_none() || world.domains.is_empty(),
        "{what}: {managed:?}"
    );
    if let Some(image) = managed {
        let kept = store.kept_in_store(image.id);
        assert_eq!(world::memory_in(&kept).unwrap(), "memory 2", "{what}");
    }
    // Packs are those that some image needs, and all of these.
    let (traced, silent) = Traced::ask(&store.packed_images().unwrap());
    assert!(silent.is_empty(), "{what}: {silent:?}");
    let needed: Vec<_> = traced.users().map(|(id, _)| (id, false)).collect();
    let packs = packed::list(&store.packs_directory()).unwrap();
    let packs: Vec<_> = packs
        .iter()
        .map(|pack| (pack.id, pack.is_partial))
        .collect();
    assert_eq!(packs, needed, "{what}");
    assert_eq!(store.packs_directory().exists(), !packs.is_empty());
    let kept = record.snapshots.len() + managed.iter().count() + usize::from(!packs.is_empty());
    let expected = kept + ["domain", "lock", "present"].len();
    let entries: Vec<_> = std::fs::read_dir(store.directory())
        .unwrap()
        .flatten()
        .collect();
    assert_eq!(entries.len(), expected, "{what}: {entries:?}");
}

/// An operation, and what is seen and recorded before and after it.
struct Case<'a> {
    prepare: Prepare,
    before: (Seen, &'a [&'a str]),
    after: (Seen, &'a [&'a str]),
    /// What else an operation that failed may lead to.
    given_up: Option<Seen>,
}

impl<'a> Case<'a> {
    /// From state 2 of a running guest, with the snapshots `one` and `two`, to another state and these snapshots.
    fn of_two(prepare: Prepare, after: &str, names: &'a [&'a str]) -> Self {
        Self {
            prepare,
            before: (running("2"), &["one", "two"]),
            after: (running(after), names),
            given_up: None,
        }
    }
}

impl Case<'_> {
    /// Lets every call of `act` go wrong in every way. Afterwards all is as before or as after the
    /// operation; between the two there is nothing, and `act` can be given again.
    fn every_fault(&self, act: impl Fn(&Host) -> Result<()> + Copy) -> usize {
        self.every_one_of(&FAULTS, act)
    }

    fn every_one_of(&self, faults: &[Fault], act: impl Fn(&Host) -> Result<()> + Copy) -> usize {
        let mut points = 0;
        for fault in faults.iter().copied() {
            for at in 0..=CALLS_MAX {
                assert!(at < CALLS_MAX, "it never ends");
                let (root, shared) = (self.prepare)();
                shared.0.borrow_mut().inject(at, fault);
                let result = attempt(&shared, root.path(), act);
                if !shared.0.borrow_mut().heal() {
                    assert!(matches!(result, Some(Ok(()))), "{result:?}");
                    assert_eq!(see(&shared), self.after.0);
                    break;
                }
                points += 1;
                self.assert_between_nothing(
                    &root,
                    &shared,
                    result.as_ref(),
                    act,
                    &format!("call {at}, {fault:?}"),
                );
            }
        }
        println!("{points} points of failure");
        points
    }

    fn assert_between_nothing(
        &self,
        root: &tempfile::TempDir,
        shared: &Shared,
        result: Option<&Result<()>>,
        act: impl Fn(&Host) -> Result<()>,
        what: &str,
    ) {
        let host = shared.host(root.path());
        let undone = matches!(result, Some(Err(error)) if error.kind() != ErrorKind::NeedsRepair);
        let is_given_up = |seen: &Seen| self.given_up.as_ref() == Some(seen);
        if let (true, Some(Err(error))) = (undone, result) {
            let says_so = error
                .report()
                .contains("whose memory was given up, is destroyed");
            assert_eq!(says_so, is_given_up(&see(shared)), "{what}: {error:?}");
        }
        let store = Store::new(root.path()).domain(NAME);
        let recorded = store.load().unwrap();
        let recorded: Vec<_> = recorded
            .snapshots
            .iter()
            .map(SnapshotRecord::name)
            .collect();
        let as_before = see(shared) == self.before.0 && recorded == self.before.1;
        if undone && (as_before || is_given_up(&see(shared))) {
            // An error leaves no work for recovery, but for a deletion, which says so.
            assert!(!store.journal_path().exists(), "{what}");
        }
        let names = names(&host);
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        let seen = see(shared);
        let is = |state: &(Seen, &[&str])| seen == state.0 && names == state.1;
        let given_up = is_given_up(&seen) && names == self.before.1;
        assert!(
            is(&self.before) || is(&self.after) || given_up,
            "{what}: {seen:?}, {names:?} after {result:?}"
        );
        if !is(&self.after) {
            act(&host).unwrap_or_else(|error| panic!("{what}, again: {}", error.report()));
            assert_eq!(see(shared), self.after.0, "{what}, again");
        }
        assert_whole(shared, root.path(), what);
    }
}

#[test]
fn create_is_all_or_nothing() {
    let case = Case::of_two(prepared, "2", &["one", "two", "three"]);
    let points = case.every_fault(|host| create(host, "three"));
    assert!(points > 30, "{points}");
}

#[test]
fn rename_is_all_or_nothing() {
    let case = Case::of_two(prepared, "2", &["one", "second"]);
    let rename = |host: &Host| {
        let request = EditRequest {
            name: "two".into(),
            rename: Some(SnapshotName::new("second")?),
            describe: Some("words".into()),
        };
        match execute(host, &Request::Edit(request)) {
            // It was finished before the command was given again.
            Err(error) if error.kind() == ErrorKind::NoSuchSnapshot => Ok(()),
            other => other,
        }
    };
    let points = case.every_fault(rename);
    assert!(points > 5, "{points}");
    let (root, shared) = prepared();
    let host = shared.host(root.path());
    let taken = EditRequest {
        name: "two".into(),
        rename: Some(SnapshotName::new("one").unwrap()),
        describe: None,
    };
    let error = execute(&host, &Request::Edit(taken)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SnapshotExists);
}

#[test]
fn revert_is_all_or_nothing() {
    let case = Case::of_two(prepared, "0", &["one", "two"]);
    let points = case.every_fault(|host| revert(host, "one"));
    assert!(points > 60, "{points}");
}

/// Recovery that is killed itself is taken up by the next one.
#[test]
fn a_revert_survives_two_kills() {
    survives_two_kills(prepared, ("one", false), &[running("2"), running("0")]);
}

fn survives_two_kills(prepare: Prepare, (to, force): (&str, bool), allowed: &[Seen]) {
    for first in (0..CALLS_MAX).step_by(3) {
        for second in (0..CALLS_MAX).step_by(2) {
            let (root, shared) = prepare();
            shared.0.borrow_mut().inject(first, Fault::KilledAfter);
            let revert = |host: &Host| revert_to(host, to, force);
            if attempt(&shared, root.path(), revert).is_some() {
                return;
            }
            // By then what a recovery writes is not of the last moments before the kill.
            if second % 4 == 0 {
                shared.hours_pass(root.path());
            }
            shared.0.borrow_mut().inject(second, Fault::KilledAfter);
            let recovered = attempt(&shared, root.path(), |host| {
                host.snapshots(NAME, &Unobserved).map(drop)
            });
            shared.0.borrow_mut().heal();
            let what = format!("killed after calls {first} and {second}");
            assert_eq!(names(&shared.host(root.path())), ["one", "two"], "{what}");
            let now = see(&shared);
            assert!(allowed.contains(&now), "{what}: {now:?}");
            assert_whole(&shared, root.path(), &what);
            if recovered.is_some() {
                break;
            }
        }
    }
    panic!("a revert makes more calls than this test foresees");
}

#[test]
fn a_guest_that_was_paused_is_paused_again_whatever_happens() {
    for fault in FAULTS {
        for at in 0..CALLS_MAX {
            let (root, shared) = prepared();
            shared
                .0
                .borrow_mut()
                .domains
                .values_mut()
                .for_each(|domain| domain.pauses = 1);
            shared.0.borrow_mut().inject(at, fault);
            let result = attempt(&shared, root.path(), |host| create(host, "three"));
            let happened = shared.0.borrow_mut().heal();
            names(&shared.host(root.path()));
            let world = shared.0.borrow();
            let domain = world.the_domain().unwrap();
            let now = (domain.suspended, domain.pauses);
            assert_eq!(now, (false, 1), "call {at}, {fault:?}: {result:?}");
            if !happened {
                break;
            }
        }
    }
}

#[test]
fn a_domain_that_is_off_is_restored_and_an_error_leaves_its_disks() {
    for fault in FAULTS {
        for at in 0..CALLS_MAX {
            let (root, shared) = prepared();
            shared.0.borrow_mut().domains.clear();
            shared.0.borrow_mut().inject(at, fault);
            let _ = attempt(&shared, root.path(), |host| revert(host, "two"));
            let happened = shared.0.borrow_mut().heal();
            names(&shared.host(root.path()));
            let off = (None, vec!["disk 2".to_owned(); 2]);
            let now = see(&shared);
            assert!(
                now == off || now == running("1"),
                "call {at}, {fault:?}: {now:?}"
            );
            assert_whole(&shared, root.path(), &format!("call {at}, {fault:?}"));
            if !happened {
                break;
            }
        }
    }
}
