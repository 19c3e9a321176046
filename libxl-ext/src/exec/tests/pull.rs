//! Pulls, with every call failing and every kill; and with everything else that may go on meanwhile.

mod aside;
mod release;
mod told;
mod unwritten;

use super::delete::delete;
use super::jobs::PACE;
use super::{Case, assert_whole, create_as, execute, names, prepared_as, revert, running, see};
use crate::error::{ErrorKind, Result};
use crate::event::{Impatient, Observer, Progress, Unobserved};
use crate::exec::tests::world::{IMAGES, NAME, Shared};
use crate::model::disk::{DiskKind, ImageFormat};
use crate::model::layer::Backing;
use crate::model::pull::{OnError, PullState};
use crate::model::record::DomainRecord;
use crate::plan::{DeleteScope, Increment, ManagedSaveRequest, PullRequest, Request};
use crate::port::PullJobState;
use crate::snapshot::{Host, PullInfo, PullProgress};
use crate::store::Store;
use std::path::{Path, PathBuf};

const EXTERNAL: Option<DiskKind> = Some(DiskKind::External);

fn layered() -> (tempfile::TempDir, Shared) {
    prepared_as([EXTERNAL; 2])
}

/// A user's own image on a template; nothing is recorded of the domain.
fn on_a_template() -> (tempfile::TempDir, Shared) {
    let root = tempfile::tempdir().unwrap();
    let shared = Shared::new();
    let mut world = shared.0.borrow_mut();
    world.root = root.path().into();
    let template = world.images[Path::new(IMAGES[0])].clone();
    world
        .images
        .insert("/images/template.qcow2".into(), template);
    let own = world.images.get_mut(Path::new(IMAGES[0])).unwrap();
    own.content.clear();
    own.backing = Some("/images/template.qcow2".into());
    drop(world);
    (root, shared)
}

fn request(disk: &str) -> PullRequest {
    PullRequest {
        disk: disk.into(),
        ..PullRequest::default()
    }
}

fn start(host: &Host, request: &PullRequest) -> Result<Option<PullInfo>> {
    let (done, info) = host.pull(NAME, request, &Unobserved)?;
    done.left_over.map_or(Ok(info), Err)
}

/// All of it, until it is over.
fn pull(host: &Host, request: &PullRequest) -> Result<PullInfo> {
    start(host, request)?;
    let info = host.wait_for_pull(NAME, &request.disk, &Unobserved)?;
    match info.state {
        PullProgress::Completed => Ok(info),
        state => Err(crate::Error::new(
            ErrorKind::Toolstack,
            format!("{state:?}: {:?}", info.reason),
        )),
    }
}

fn step(host: &Host, disk: &str, bytes: u64, cursor: Option<u64>) -> Result<Option<PullInfo>> {
    let increment = Some(Increment { bytes, cursor });
    start(
        host,
        &PullRequest {
            increment,
            ..request(disk)
        },
    )
}

fn record(root: &Path) -> DomainRecord {
    Store::new(root).domain(NAME).load().unwrap()
}

fn below(root: &Path, vdev: &str) -> Option<PathBuf> {
    let record = record(root);
    let layer = record.layers.iter().find(|it| it.active && it.vdev == vdev);
    let backing = layer.unwrap().backing.as_ref();
    backing.map(|backing| backing.image.to_path_buf())
}

fn destroy(shared: &Shared) {
    let mut world = shared.0.borrow_mut();
    let (domid, _) = world.domains.pop_first().unwrap();
    world.jobs.retain(|(owner, _), _| *owner != Some(domid));
}

#[test]
fn a_pull_is_all_or_nothing() {
    let case = Case::of_two(layered, "2", &["one", "two"]);
    let points = case.every_fault(|host| pull(host, &request("xvda")).map(drop));
    assert!(points > 40, "{points}");
}

#[test]
fn a_pull_by_increments_is_all_or_nothing() {
    let case = Case::of_two(layered, "2", &["one", "two"]);
    let points = case.every_fault(|host| {
        // The second one, or after a failure the third, finds the end.
        step(host, "xvdb", 6 * PACE, None)?;
        step(host, "xvdb", 6 * PACE, None).map(drop)
    });
    assert!(points > 60, "{points}");
}

#[test]
fn what_is_pulled_stands_on_nothing_and_snapshots_are_what_they_were() {
    let (root, shared) = layered();
    let host = shared.host(root.path());
    let before = see(&shared);
    let info = pull(&host, &request("xvda")).unwrap();
    assert_eq!((info.cur, info.cursor), (info.end, info.last_cursor));
    assert_eq!(see(&shared), before);
    assert_eq!(below(root.path(), "xvda"), None);
    assert!(below(root.path(), "xvdb").is_some());
    assert!(shared.0.borrow().jobs.is_empty());
    assert_whole(&shared, root.path(), "pulled");
    let (done, _) = host.pull(NAME, &request("xvda"), &Unobserved).unwrap();
    assert!(done.plan.steps.is_empty());
    assert!(
        done.plan.notes[0].contains("nothing to pull"),
        "{:?}",
        done.plan.notes
    );
    revert(&host, "one").unwrap();
    assert_eq!(see(&shared), running("0"));
    revert(&host, "two").unwrap();
    assert_eq!(see(&shared), running("1"));
    delete(&host, "one", DeleteScope::WithChildren).unwrap();
    assert_eq!(see(&shared), running("1"));
    assert_whole(&shared, root.path(), "deleted");
}

#[test]
fn a_pull_stops_at_the_base_that_is_asked_for() {
    let (root, shared) = layered();
    let host = shared.host(root.path());
    let at = |base: &str| PullRequest {
        base: Some(base.into()),
        ..request("xvda")
    };
    let refused = |base: &str| host.pull(NAME, &at(base), &Unobserved).unwrap_err();
    assert_eq!(refused("/i/other").kind(), ErrorKind::InvalidRequest);
    assert_eq!(refused("three").kind(), ErrorKind::NoSuchSnapshot);
    pull(&host, &at("one")).unwrap();
    assert_eq!(below(root.path(), "xvda"), Some(IMAGES[0].into()));
    assert_eq!(see(&shared), running("2"));
    let (done, _) = host.pull(NAME, &at(IMAGES[0]), &Unobserved).unwrap();
    assert!(done.plan.steps.is_empty(), "it stands there");
    pull(&host, &request("xvda")).unwrap();
    assert_eq!(below(root.path(), "xvda"), None);
    assert_whole(&shared, root.path(), "pulled twice");
}

#[test]
fn layers_that_nothing_needs_then_are_removed() {
    let (root, shared) = layered();
    let host = shared.host(root.path());
    // The layer between is a disk's state and nothing else's once the snapshot is forgotten.
    let store = Store::new(root.path()).domain(NAME);
    let mut record = store.load().unwrap();
    let between = below(root.path(), "xvda").unwrap();
    let two = record.find("two").unwrap().id;
    record.remove(two);
    store.save(&record).unwrap();
    store.remove_snapshot_directory(two).unwrap();
    pull(&host, &request("xvda")).unwrap();
    assert!(!shared.0.borrow().images.contains_key(&between));
    assert!(store.load().unwrap().layer(&between).is_none());
    assert!(shared.0.borrow().images.contains_key(Path::new(IMAGES[0])));
}

#[test]
fn nothing_changes_the_disks_while_one_is_pulled_and_an_abort_lets_it() {
    let (root, shared) = layered();
    let host = shared.host(root.path());
    start(&host, &request("xvda")).unwrap();
    let before = see(&shared);
    for refused in [
        create_as(&host, "three", EXTERNAL),
        revert(&host, "one"),
        delete(&host, "one", DeleteScope::Only),
    ] {
        let error = refused.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DomainState);
        assert!(
            error.report().contains("block-pull-abort"),
            "{}",
            error.report()
        );
    }
    let info = host.abort_pull(NAME, "xvda", &Unobserved).unwrap();
    assert_eq!(info.state, PullProgress::Aborted);
    assert_eq!(see(&shared), before);
    assert!(shared.0.borrow().jobs.is_empty());
    assert!(below(root.path(), "xvda").is_some());
    create_as(&host, "three", EXTERNAL).unwrap();
    pull(&host, &request("xvda")).unwrap();
    assert_eq!(see(&shared), before);
}

/// The one who began it is gone; whoever comes does what is left.
#[test]
fn whoever_comes_later_completes_it() {
    let (root, shared) = layered();
    start(&shared.host(root.path()), &request("xvda")).unwrap();
    let state = || record(root.path()).pulls[0].state;
    assert_eq!(state(), PullState::UnderWay);
    for job in shared.0.borrow_mut().jobs.values_mut() {
        job.job.done = job.job.total - 1;
    }
    // A list changes nothing, and any command that does anything completes it.
    create_as(&shared.host(root.path()), "three", EXTERNAL).unwrap();
    assert_eq!(state(), PullState::Completed);
    assert_eq!(names(&shared.host(root.path())), ["one", "two", "three"]);
    assert_whole(&shared, root.path(), "completed by another");
}

#[test]
fn a_domain_that_goes_away_loses_nothing_and_the_next_pull_goes_on() {
    let (root, shared) = layered();
    let host = shared.host(root.path());
    let info = step(&host, "xvda", 3 * PACE, Some(0)).unwrap().unwrap();
    assert!(info.state == PullProgress::Paused && info.cur >= 3 * PACE);
    destroy(&shared);
    let infos = host.pulls(NAME, Some("xvda"), &Unobserved).unwrap();
    assert_eq!(infos[0].state, PullProgress::Interrupted);
    shared.start();
    assert_eq!(see(&shared).1, running("2").1);
    let next = step(&host, "xvda", 3 * PACE, Some(info.cursor))
        .unwrap()
        .unwrap();
    assert!(next.cur >= info.cur + 3 * PACE && next.cursor > info.cursor);
    let info = pull(&host, &request("xvda")).unwrap();
    assert_eq!(info.state, PullProgress::Completed);
    assert_eq!(see(&shared).1, running("2").1);
}

#[test]
fn a_save_ends_the_pull_and_what_was_saved_is_not_touched() {
    let (root, shared) = layered();
    let host = shared.host(root.path());
    start(&host, &request("xvda")).unwrap();
    execute(&host, &Request::ManagedSave(ManagedSaveRequest::default())).unwrap();
    let error = host.pull(NAME, &request("xvda"), &Unobserved).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DomainState);
    let infos = host.pulls(NAME, None, &Unobserved).unwrap();
    assert_eq!(infos[0].state, PullProgress::Interrupted);
    assert_eq!(
        host.managed_save(NAME, &Unobserved).unwrap().unwrap().stale,
        None
    );
}

#[test]
fn a_cursor_of_another_moment_is_refused_and_the_last_one_says_that_it_is_over() {
    let (root, shared) = layered();
    let host = shared.host(root.path());
    let mut cursor = 0;
    let mut steps = 0;
    loop {
        let info = step(&host, "xvda", 3 * PACE, Some(cursor))
            .unwrap()
            .unwrap();
        for stale in [cursor, info.cursor ^ 1] {
            let error = step(&host, "xvda", 3 * PACE, Some(stale)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Stale, "{stale}");
        }
        assert!(info.cursor > cursor);
        cursor = info.cursor;
        steps += 1;
        if info.state == PullProgress::Completed {
            assert_eq!(cursor, info.last_cursor);
            break;
        }
        assert_eq!(info.state, PullProgress::Paused);
        // Nobody works on it between two calls.
        let held = shared
            .0
            .borrow()
            .jobs
            .values()
            .all(|it| it.job.state == PullJobState::Held);
        assert!(held);
    }
    assert!(steps > 2, "{steps}");
    assert_eq!(below(root.path(), "xvda"), None);
    let increment = Some(Increment {
        bytes: PACE,
        cursor: Some(cursor),
    });
    let again = PullRequest {
        increment,
        ..request("xvda")
    };
    let (done, _) = host.pull(NAME, &again, &Unobserved).unwrap();
    assert!(done.plan.steps.is_empty() && done.plan.notes[0].contains("nothing to pull"));
    assert_eq!(see(&shared), running("2"));
}

#[test]
fn a_full_disk_ends_it_or_lets_it_stand_still_as_is_said() {
    let (root, shared) = layered();
    let host = shared.host(root.path());
    let full = "No space left on device";
    shared.0.borrow_mut().jobs_fail = Some(full);
    start(&host, &request("xvda")).unwrap();
    let info = host.wait_for_pull(NAME, "xvda", &Unobserved).unwrap();
    assert_eq!(
        (info.state, info.reason.as_deref()),
        (PullProgress::Failed, Some(full))
    );
    assert!(below(root.path(), "xvda").is_some());
    let error = step(&host, "xvdb", 9 * PACE, None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{}", error.report());
    assert_failed(&host, "xvdb", full);
    let pausing = PullRequest {
        on_error: OnError::Pause,
        ..request("xvda")
    };
    start(&host, &pausing).unwrap();
    let info = host.wait_for_pull(NAME, "xvda", &Unobserved).unwrap();
    assert_eq!(
        (info.state, info.reason.as_deref()),
        (PullProgress::Stalled, Some(full))
    );
    shared.0.borrow_mut().jobs_fail = None;
    // Given again, it goes on.
    pull(&host, &pausing).unwrap();
    assert_eq!(see(&shared), running("2"));
    assert_whole(&shared, root.path(), "there is room again");
}

/// Whoever comes later learns that it failed, and why.
fn assert_failed(host: &Host, disk: &str, why: &str) {
    let infos = host.pulls(NAME, Some(disk), &Unobserved).unwrap();
    let info = infos.first().expect("it is not known");
    assert_eq!(
        (info.state, info.reason.as_deref()),
        (PullProgress::Failed, Some(why))
    );
}

#[test]
fn the_disk_of_a_domain_that_is_off_fails_for_all_to_see_and_goes_on() {
    let (root, shared) = layered();
    let host = shared.host(root.path());
    destroy(&shared);
    step(&host, "xvda", 3 * PACE, Some(0)).unwrap();
    let full = "No space left on device";
    shared.0.borrow_mut().jobs_fail = Some(full);
    let error = start(&host, &request("xvda")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{}", error.report());
    assert_failed(&host, "xvda", full);
    shared.0.borrow_mut().jobs_fail = None;
    let info = start(&host, &request("xvda")).unwrap().unwrap();
    assert_eq!(info.state, PullProgress::Completed);
}

#[test]
fn the_disk_of_a_domain_that_is_off_is_pulled_too() {
    let (root, shared) = layered();
    let host = shared.host(root.path());
    destroy(&shared);
    let before = see(&shared);
    let info = step(&host, "xvda", 3 * PACE, Some(0)).unwrap().unwrap();
    assert!(info.cur >= 3 * PACE && info.state == PullProgress::Interrupted);
    assert!(shared.0.borrow().served.is_empty(), "nobody has it open");
    let info = start(&host, &request("xvda")).unwrap().unwrap();
    assert_eq!(info.state, PullProgress::Completed);
    assert_eq!(below(root.path(), "xvda"), None);
    assert_eq!(see(&shared), before);
    shared.start();
    assert_eq!(see(&shared).1, running("2").1);
    assert_whole(&shared, root.path(), "pulled while off");
}

#[test]
fn a_pull_while_off_is_all_or_nothing() {
    fn off() -> (tempfile::TempDir, Shared) {
        let (root, shared) = layered();
        destroy(&shared);
        (root, shared)
    }
    let seen = (None, running("2").1);
    let case = Case {
        prepare: off,
        before: (seen.clone(), &["one", "two"]),
        after: (seen, &["one", "two"]),
        given_up: None,
    };
    let points = case.every_fault(|host| pull(host, &request("xvda")).map(drop));
    assert!(points > 25, "{points}");
}

#[test]
fn who_stops_waiting_does_not_stop_the_pull() {
    let (root, shared) = layered();
    let host = shared.host(root.path());
    start(&host, &request("xvda")).unwrap();
    let error = host.wait_for_pull(NAME, "xvda", &Impatient).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Aborted);
    assert_eq!(shared.0.borrow().jobs.len(), 1);
    pull(&host, &request("xvda")).unwrap();
}

#[test]
fn an_image_of_the_users_own_is_pulled_without_a_record() {
    let (root, shared) = on_a_template();
    let host = shared.host(root.path());
    let before = see(&shared);
    let info = pull(&host, &request(IMAGES[0])).unwrap();
    assert_eq!(info.vdev, "xvda");
    assert_eq!(see(&shared), before);
    assert_eq!(shared.0.borrow().images[Path::new(IMAGES[0])].backing, None);
    assert!(
        shared
            .0
            .borrow()
            .images
            .contains_key(Path::new("/images/template.qcow2"))
    );
    assert!(record(root.path()).layers.is_empty());
    let (done, _) = host.pull(NAME, &request("xvdb"), &Unobserved).unwrap();
    assert!(done.plan.steps.is_empty());
}

#[test]
fn a_base_is_removed_if_that_was_said_and_nothing_names_it() {
    let release = |disk: &str| PullRequest {
        release_base: true,
        ..request(disk)
    };
    let template = Path::new("/images/template.qcow2");
    let (root, shared) = on_a_template();
    pull(&shared.host(root.path()), &release("xvda")).unwrap();
    assert!(!shared.0.borrow().images.contains_key(template));
    // Another disk stands on it.
    let (root, shared) = on_a_template();
    let mut world = shared.0.borrow_mut();
    world.images.get_mut(Path::new(IMAGES[1])).unwrap().backing = Some(template.into());
    drop(world);
    pull(&shared.host(root.path()), &release("xvda")).unwrap();
    assert!(shared.0.borrow().images.contains_key(template));
    // A snapshot's state stays in any case.
    let (root, shared) = layered();
    pull(&shared.host(root.path()), &release("xvda")).unwrap();
    assert_whole(&shared, root.path(), "released");
}

#[test]
fn an_image_whose_snapshots_read_through_it_is_refused() {
    let (root, shared) = prepared_as([EXTERNAL, Some(DiskKind::Internal)]);
    let host = shared.host(root.path());
    let error = host.pull(NAME, &request("xvda"), &Unobserved).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.report().contains("'two'"), "{}", error.report());
    delete(&host, "two", DeleteScope::Only).unwrap();
    pull(&host, &request("xvda")).unwrap();
    assert_whole(&shared, root.path(), "without the internal one");
}

#[test]
fn what_cannot_be_pulled_is_said() {
    let (root, shared) = on_a_template();
    let host = shared.host(root.path());
    let refused = |request: PullRequest| host.pull(NAME, &request, &Unobserved).unwrap_err();
    assert_eq!(refused(request("xvdz")).kind(), ErrorKind::InvalidRequest);
    shared
        .0
        .borrow_mut()
        .images
        .get_mut(Path::new(IMAGES[0]))
        .unwrap()
        .says = Some("vmdk");
    assert_eq!(refused(request("xvda")).kind(), ErrorKind::Unsupported);
    assert!(
        host.wait_for_pull(NAME, "xvda", &Unobserved).is_err(),
        "there is none"
    );
    let error = host.set_pull_speed(NAME, "xvda", 1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidRequest);
}

#[test]
fn a_pull_of_another_image_of_the_device_is_another_pull() {
    let (root, shared) = layered();
    let host = shared.host(root.path());
    step(&host, "xvda", PACE, None).unwrap();
    host.abort_pull(NAME, "xvda", &Unobserved).unwrap();
    let first = record(root.path()).pulls[0].clone();
    create_as(&host, "three", EXTERNAL).unwrap();
    let info = step(&host, "xvda", PACE, Some(0)).unwrap().unwrap();
    let record = record(root.path());
    assert_eq!(record.pulls.len(), 1);
    assert_ne!(record.pulls[0].id, first.id);
    assert_eq!(record.pulls[0].disk.image, info.image);
    let from = record.pulls[0].from.last().cloned();
    assert_eq!(
        from,
        Some(Backing {
            image: Path::new(IMAGES[0]).into(),
            format: ImageFormat::Qcow2
        })
    );
}

#[test]
fn a_pull_is_held_to_its_speed_and_told_another() {
    let (root, shared) = layered();
    let host = shared.host(root.path());
    let slow = PullRequest {
        bandwidth: 7 << 20,
        ..request("xvda")
    };
    assert_eq!(start(&host, &slow).unwrap().unwrap().bandwidth, 7 << 20);
    host.set_pull_speed(NAME, "xvda", 9 << 20).unwrap();
    let infos = host.pulls(NAME, Some("xvda"), &Unobserved).unwrap();
    assert_eq!(infos[0].bandwidth, 9 << 20);
}
