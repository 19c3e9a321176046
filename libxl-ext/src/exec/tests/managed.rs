//! Managed save: one life, whatever fails.

use super::*;
use crate::event::{Observer, Progress};
use crate::exec::journal::Journal;
use crate::model::domain::GuestState;
use crate::plan::{ManagedSaveRequest, ManagedStartRequest};
use crate::store::room::tests::{End, ends, is_back};
use std::sync::atomic::{AtomicUsize, Ordering};
use uuid::Uuid;

fn save(host: &Host) -> Result<()> {
    match execute(host, &Request::ManagedSave(ManagedSaveRequest::default())) {
        // Recovery finished it before the command was given again.
        Err(error) if error.kind() == ErrorKind::DomainState && is_saved(host) => Ok(()),
        other => other,
    }
}

fn start(host: &Host) -> Result<()> {
    match execute(host, &Request::ManagedStart(ManagedStartRequest::default())) {
        Err(error) if error.kind() == ErrorKind::NoSuchSnapshot => Ok(()),
        other => other,
    }
}

fn remove(host: &Host) -> Result<()> {
    match execute(host, &Request::ManagedSaveRemove) {
        Err(error) if error.kind() == ErrorKind::NoSuchSnapshot => Ok(()),
        other => other,
    }
}

fn is_saved(host: &Host) -> bool {
    let record = host.snapshots(NAME, &Unobserved).unwrap();
    record.managed.is_some()
}

/// The domain of [`prepared`], saved in state 2.
fn saved() -> (tempfile::TempDir, Shared) {
    let (root, shared) = prepared();
    save(&shared.host(root.path())).unwrap();
    (root, shared)
}

fn off(which: &str) -> Seen {
    (None, vec![format!("disk {which}"); IMAGES.len()])
}

const SNAPSHOTS: &[&str] = &["one", "two"];

#[test]
fn save_is_all_or_nothing() {
    let case = Case {
        prepare: prepared,
        before: (running("2"), SNAPSHOTS),
        after: (off("2"), SNAPSHOTS),
        given_up: None,
    };
    let points = case.every_fault(save);
    assert!(points > 30, "{points}");
}

#[test]
fn start_is_all_or_nothing() {
    let case = Case {
        prepare: saved,
        before: (off("2"), SNAPSHOTS),
        after: (running("2"), SNAPSHOTS),
        given_up: None,
    };
    let points = case.every_fault(start);
    assert!(points > 20, "{points}");
}

#[test]
fn remove_is_all_or_nothing() {
    let case = Case {
        prepare: saved,
        before: (off("2"), SNAPSHOTS),
        after: (off("2"), SNAPSHOTS),
        given_up: None,
    };
    let points = case.every_fault(remove);
    assert!(points > 3, "{points}");
    let (root, shared) = saved();
    let host = shared.host(root.path());
    remove(&host).unwrap();
    assert!(!is_saved(&host));
}

/// The power goes in the middle of a start: no domain is left. Where the guest ran, its image is void; where it did
/// not, the image is there. Only of one instant nobody can say.
#[test]
fn a_power_cut_leaves_one_life_or_none_of_which_nobody_knows() {
    let mut unknown = Vec::new();
    for fault in [Fault::KilledBefore, Fault::KilledAfter] {
        for at in 0..=CALLS_MAX {
            assert!(at < CALLS_MAX, "it never ends");
            let (root, shared) = saved();
            shared.0.borrow_mut().inject(at, fault);
            attempt(&shared, root.path(), start);
            let ran = see(&shared) == running("2");
            shared.0.borrow_mut().domains.clear();
            if !shared.0.borrow_mut().heal() {
                break;
            }
            let host = shared.host(root.path());
            let saved = is_saved(&host);
            let what = format!("call {at}, {fault:?}");
            assert!(!(ran && saved), "{what}: two lives");
            if saved {
                start(&host).unwrap();
                assert_eq!(see(&shared), running("2"), "{what}");
            } else if !ran {
                unknown.push(what.clone());
            }
            assert_whole(&shared, root.path(), &what);
        }
    }
    // The journal says that the guest is let run, and the domain is looked for, and not unpaused yet.
    assert_eq!(unknown.len(), 3, "{unknown:?}");
}

#[test]
fn what_does_not_fit_any_more_is_refused_and_can_be_removed() {
    let refused = |shared: &Shared, root: &Path, why: &str| {
        let host = shared.host(root);
        let error = execute(
            &host,
            &Request::ManagedStart(ManagedStartRequest::default()),
        );
        let report = error.unwrap_err().report();
        assert!(
            report.contains(why) && report.contains("managed-save-remove"),
            "{report}"
        );
        remove(&host).unwrap();
        assert!(!is_saved(&host));
    };
    let (root, shared) = saved();
    shared
        .0
        .borrow_mut()
        .images
        .get_mut(Path::new(IMAGES[1]))
        .unwrap()
        .written += 1;
    refused(&shared, root.path(), "was written to since");

    let (root, shared) = saved();
    shared.0.borrow_mut().images.remove(Path::new(IMAGES[0]));
    refused(&shared, root.path(), "is missing");

    let (root, shared) = saved();
    let store = Store::new(root.path()).domain(NAME);
    let image = store.load().unwrap().managed.unwrap();
    let path = store.memory_path(image.id);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[0] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let host = shared.host(root.path());
    let error = start(&host).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(is_saved(&host) && see(&shared) == off("2"));
    std::fs::write(&path, &bytes[1..]).unwrap();
    refused(&shared, root.path(), "has");

    // Somebody started it by other means.
    let (root, shared) = saved();
    shared.start();
    refused(&shared, root.path(), "already");
}

/// A domain that goes on in layers, saved in state 2.
fn saved_on_layers() -> (tempfile::TempDir, Shared) {
    let (root, shared) = prepared_as([Some(DiskKind::External); 2]);
    save(&shared.host(root.path())).unwrap();
    (root, shared)
}

#[test]
fn a_base_that_was_written_to_below_the_disks_that_were_saved_is_noticed() {
    let (root, shared) = saved_on_layers();
    // Stock `xl create` with the configuration file, which names the base.
    let mut world = shared.0.borrow_mut();
    world.images.get_mut(Path::new(IMAGES[0])).unwrap().written += 1;
    drop(world);
    let host = shared.host(root.path());
    let error = start(&host).unwrap_err();
    let report = error.report();
    assert!(
        error.kind() == ErrorKind::Corrupt && report.contains("managed-save-remove"),
        "{report}"
    );
    assert!(report.contains(IMAGES[0]) && is_saved(&host), "{report}");
    let (root, shared) = saved_on_layers();
    start(&shared.host(root.path())).unwrap();
    assert_eq!(see(&shared), running("2"));
}

#[test]
fn a_domain_that_was_seen_to_run_does_not_go_on_from_what_was_saved_before() {
    let (root, shared) = saved();
    let host = shared.host(root.path());
    shared.start();
    let seen = host.managed_save(NAME, &Unobserved).unwrap().unwrap();
    assert!(seen.stale.unwrap().contains("already"));
    // It ends without having written anything.
    shared.0.borrow_mut().domains.clear();
    let seen = host.managed_save(NAME, &Unobserved).unwrap().unwrap();
    assert!(seen.stale.unwrap().contains("it ran after that"));
    let report = start(&host).unwrap_err().report();
    assert!(report.contains("start --fresh"), "{report}");
    remove(&host).unwrap();
}

#[test]
fn a_save_of_which_only_the_journal_tells_is_recovered_when_all_are_looked_at() {
    let (root, shared) = prepared();
    let store = Store::new(root.path()).domain(NAME);
    let record = std::fs::read(store.record_path()).unwrap();
    // The host goes down in the middle of the first save.
    let host = shared.host(root.path());
    let plan = host
        .plan(
            NAME,
            &Request::ManagedSave(ManagedSaveRequest::default()),
            &Unobserved,
        )
        .unwrap();
    drop(Journal::create(&store, &plan).unwrap());
    std::fs::remove_file(store.record_path()).unwrap();
    let (found, failed) = host.managed_saves(&Unobserved);
    assert!(found.is_empty() && failed.is_empty(), "{failed:?}");
    assert!(!store.has_journal(), "it was recovered");
    // A record that cannot be read is told of.
    std::fs::write(store.record_path(), &record[..record.len() / 2]).unwrap();
    let (_, failed) = host.managed_saves(&Unobserved);
    assert_eq!(failed.len(), 1, "{failed:?}");
}

#[test]
fn snapshots_are_left_alone_while_a_saved_state_belongs_to_the_disks() {
    let (root, shared) = saved();
    let host = shared.host(root.path());
    let refused = |result: Result<()>| {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DomainState);
        assert!(error.report().contains("was saved"), "{}", error.report());
    };
    refused(revert(&host, "one"));
    refused(delete::delete(&host, "one", crate::plan::DeleteScope::Only));
    start(&host).unwrap();
    assert_whole(&shared, root.path(), "started");
}

#[test]
fn remove_works_whatever_is_damaged() {
    let removed = |shared: &Shared, root: &Path, what: &str| {
        let host = shared.host(root);
        let store = Store::new(root).domain(NAME);
        execute(&host, &Request::ManagedSaveRemove)
            .unwrap_or_else(|error| panic!("{what}: {}", error.report()));
        let record = store.load().unwrap();
        assert!(record.managed.is_none(), "{what}");
        assert_eq!(names(&host), SNAPSHOTS, "{what}");
    };
    let damage = |what: &str, damage: fn(&Shared, &crate::store::DomainStore)| {
        let (root, shared) = saved();
        let store = Store::new(root.path()).domain(NAME);
        let image = store.load().unwrap().managed.unwrap();
        damage(&shared, &store);
        removed(&shared, root.path(), what);
        assert!(!store.snapshot_directory(image.id).exists(), "{what}");
    };
    damage("the record is cut short", |_, store| {
        let path = store.record_path();
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    });
    damage("the memory is gone", |_, store| {
        let image = store.load().unwrap().managed.unwrap();
        std::fs::remove_dir_all(store.snapshot_directory(image.id)).unwrap();
    });
    damage("the disks are gone", |shared, _| {
        shared.0.borrow_mut().images.clear();
    });
    damage("a domain without its QEMU has the name", |shared, _| {
        shared.start();
        let mut world = shared.0.borrow_mut();
        let domain = world.domains.values_mut().next().unwrap();
        domain.gutted = true;
    });
}

/// A domain that was started by other means and renamed has the UUID of the saved one. It is left alone, also while it
/// is paused, as a restored one is.
#[test]
fn the_same_domain_under_another_name_is_left_alone() {
    let (root, shared) = saved();
    shared.start();
    {
        let mut world = shared.0.borrow_mut();
        let domain = world.domains.values_mut().next().unwrap();
        domain.name = Some("renamed".into());
        domain.pauses = 1;
    }
    let host = shared.host(root.path());
    let error = start(&host).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DomainState);
    assert!(
        error.report().contains("another name"),
        "{}",
        error.report()
    );
    assert_eq!(shared.0.borrow().domains.len(), 1);
    let status = host.managed_save(NAME, &Unobserved).unwrap().unwrap();
    assert!(status.stale.unwrap().contains("another name"));
}

#[test]
fn how_the_guest_goes_on_is_said_when_it_is_saved_or_started() {
    let paused = |pauses: u32, saved_as, started_as| {
        let (root, shared) = prepared();
        let host = shared.host(root.path());
        for domain in shared.0.borrow_mut().domains.values_mut() {
            domain.pauses = pauses;
        }
        let request = ManagedSaveRequest {
            state: saved_as,
            at_boot: true,
            format: crate::model::record::MemoryFormat::Packed,
        };
        execute(&host, &Request::ManagedSave(request)).unwrap();
        let status = host.managed_save(NAME, &Unobserved).unwrap().unwrap();
        assert!(status.image.at_boot && status.stale.is_none(), "{status:?}");
        let request = ManagedStartRequest { state: started_as };
        execute(&host, &Request::ManagedStart(request)).unwrap();
        assert!(host.managed_save(NAME, &Unobserved).unwrap().is_none());
        let world = shared.0.borrow();
        world.the_domain().unwrap().pauses > 0
    };
    let (as_running, as_paused) = (Some(GuestState::Running), Some(GuestState::Paused));
    assert!(!paused(0, None, None));
    assert!(paused(1, None, None));
    assert!(!paused(1, as_running, None));
    assert!(paused(0, as_paused, None));
    assert!(paused(0, None, as_paused));
    assert!(!paused(1, None, as_running));
}

/// ^C, from the given question on.
struct StopsAt(usize, AtomicUsize);

impl Observer for StopsAt {
    fn step(&self, _what: &str) {}
    fn progress(&self, _progress: Progress) {}
    fn note(&self, _text: &str) {}
    fn wants_abort(&self) -> bool {
        self.1.fetch_add(1, Ordering::Relaxed) >= self.0
    }
}

#[test]
fn a_save_that_is_stopped_leaves_the_guest_running_and_nothing_else() {
    let (mut stopped, mut done) = (0, 0);
    for at in 0..40 {
        let (root, shared) = prepared();
        let host = shared.host(root.path());
        let observer = StopsAt(at, AtomicUsize::new(0));
        let request = Request::ManagedSave(ManagedSaveRequest::default());
        if let Err(error) = host.execute(NAME, &request, &observer) {
            assert_eq!(error.kind(), ErrorKind::Aborted, "{}", error.report());
            assert_eq!(see(&shared), running("2"), "question {at}");
            assert!(!is_saved(&host));
            stopped += 1;
        } else {
            assert_eq!(see(&shared), off("2"), "question {at}");
            done += 1;
        }
        assert_whole(&shared, root.path(), &format!("question {at}"));
    }
    assert!(stopped > 5 && done > 5, "{stopped}, {done}");
}

/// The guest may run only once it is written down that it may. If that cannot be written, it has not run, and the
/// image stays; also if the same is found out after a kill.
#[test]
fn without_room_for_the_journal_the_image_stays_or_the_guest_runs() {
    let (mut kept, mut ran) = (0, 0);
    for for_good in [false, true] {
        for after in 0..40 {
            let (root, shared) = saved();
            let host = shared.host(root.path());
            ends(End { after, for_good });
            let result = start(&host);
            let happened = is_back();
            let what = format!("write {after}, {for_good}: {result:?}");
            let is_kept = is_saved(&host);
            let now = see(&shared);
            assert!(
                (is_kept && now == off("2")) || (!is_kept && now == running("2")),
                "{what}: {now:?}, {is_kept}"
            );
            // A copy for which there was no room is written with the next commit, and fails nothing.
            let store = Store::new(root.path()).domain(NAME);
            store.write_copies(&store.load().unwrap()).unwrap();
            assert_whole(&shared, root.path(), &what);
            if !happened {
                break;
            }
            *(if is_kept { &mut kept } else { &mut ran }) += 1;
        }
    }
    assert!(kept > 5 && ran > 1, "{kept}, {ran}");
}

#[test]
fn a_name_of_which_nothing_is_kept_was_not_saved_and_one_bad_record_hides_no_other() {
    let (root, shared) = saved();
    let host = shared.host(root.path());
    assert!(host.managed_save("nobody", &Unobserved).unwrap().is_none());
    assert!(!root.path().join("nobody").exists());
    // Its journal cannot be read, so what was interrupted there is not known.
    let other = Store::new(root.path()).domain("other");
    other
        .save(&crate::model::record::DomainRecord::new("other"))
        .unwrap();
    std::fs::write(other.journal_path(), "nonsense").unwrap();
    let (found, failed) = host.managed_saves(&Unobserved);
    assert_eq!((found.len(), failed.len()), (1, 1));
    assert!(failed[0].report().contains("'other'"), "{failed:?}");
    assert_eq!(found[0].domain, NAME);
}

#[test]
fn the_domains_that_run_are_told_with_their_names() {
    let (_root, shared) = prepared();
    {
        let mut world = shared.0.borrow_mut();
        let mut nameless = world.the_domain().unwrap().clone();
        nameless.name = None;
        nameless.uuid = Uuid::from_u128(9);
        world.domains.insert(90, nameless);
    }
    let all = shared.host(Path::new("/nowhere")).running().unwrap();
    let names: Vec<_> = all.iter().map(|domain| &*domain.name).collect();
    assert_eq!(names, [NAME]);
    assert_eq!(all[0].state, DomainState::Running);
}

/// The journal of a start whose entry for the instant was written and could not be flushed: the guest was not let run. If
/// that was being taken back when the power went, the image is not void.
#[test]
fn what_was_being_taken_back_is_not_void() {
    for (is_taken_back, is_kept) in [(false, false), (true, true)] {
        let (root, shared) = saved();
        let host = shared.host(root.path());
        let request = Request::ManagedStart(ManagedStartRequest::default());
        let plan = host.plan(NAME, &request, &Unobserved).unwrap();
        let store = Store::new(root.path()).domain(NAME);
        let mut journal = Journal::create(&store, &plan).unwrap();
        let instant = plan.point_of_no_return();
        for step in 0..=instant {
            journal.begin(step).unwrap();
        }
        if is_taken_back {
            journal.undoing(instant).unwrap();
        }
        drop(journal);
        assert_eq!(is_saved(&host), is_kept, "taken back: {is_taken_back}");
        assert_whole(&shared, root.path(), "recovered");
    }
}
