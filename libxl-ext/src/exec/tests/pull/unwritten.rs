//! Nothing is taken for copied that is not on the disk.

use super::release::configuration;
use super::*;
use crate::model::pull::Pull;

fn stands_on_template(shared: &Shared) -> bool {
    shared.0.borrow().images[Path::new(IMAGES[0])]
        .backing
        .is_some()
}

#[test]
fn a_flush_that_failed_unheard_does_not_complete_a_pull() {
    let (root, shared) = on_a_template();
    let host = shared.host(root.path());
    let before = see(&shared);
    shared.0.borrow_mut().flushes_fail = true;
    start(&host, &request("xvda")).unwrap();
    let error = host.wait_for_pull(NAME, "xvda", &Unobserved).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NeedsRepair);
    let said = error.report();
    assert!(said.contains("not all of it is on the disk"), "{said}");
    assert!(stands_on_template(&shared));
    shared.0.borrow_mut().flushes_fail = false;
    host.abort_pull(NAME, "xvda", &Unobserved).unwrap();
    pull(&host, &request("xvda")).unwrap();
    assert!(!stands_on_template(&shared));
    assert_eq!(see(&shared), before);
}

#[test]
fn nor_does_one_of_the_daemon_of_a_domain_that_is_off() {
    let (root, shared) = on_a_template();
    let host = shared.host(root.path());
    destroy(&shared);
    shared.0.borrow_mut().flushes_fail = true;
    let request = PullRequest {
        configuration: Some(configuration()),
        ..request("xvda")
    };
    let error = start(&host, &request).unwrap_err();
    let said = error.report();
    assert!(said.contains("not all of it is on the disk"), "{said}");
    assert!(stands_on_template(&shared));
    assert_failed(&host, "xvda", "not all of it is on the disk");
    shared.0.borrow_mut().flushes_fail = false;
    let info = start(&host, &request).unwrap().unwrap();
    assert_eq!(info.state, PullProgress::Completed);
}

/// A pull of a domain that is off, killed when all was copied and the header not yet changed.
fn copied() -> (tempfile::TempDir, Shared, Pull) {
    let (root, shared) = layered();
    let host = shared.host(root.path());
    destroy(&shared);
    step(&host, "xvda", 3 * PACE, Some(0)).unwrap();
    let store = Store::new(root.path()).domain(NAME);
    let mut record = store.load().unwrap();
    let mut pull = record.pulls[0].clone();
    pull.state = PullState::Copied;
    record.begin_pull(&pull);
    store.save(&record).unwrap();
    (root, shared, pull)
}

#[test]
fn what_was_copied_is_completed_only_into_the_image_that_it_was_copied_to() {
    let state = |root: &Path, shared: &Shared| {
        let host = shared.host(root);
        let infos = host.pulls(NAME, Some("xvda"), &Unobserved).unwrap();
        infos[0].state
    };
    let (root, shared, _) = copied();
    assert_eq!(state(root.path(), &shared), PullProgress::Completed);
    // The user put a fresh one in its place.
    let (root, shared, pull) = copied();
    shared
        .0
        .borrow_mut()
        .images
        .get_mut(&*pull.disk.image)
        .unwrap()
        .content
        .clear();
    assert_eq!(state(root.path(), &shared), PullProgress::Interrupted);
    let backing = shared.0.borrow().images[&*pull.disk.image].backing.clone();
    assert!(backing.is_some());
    // And one that stands on something else.
    let (root, shared, pull) = copied();
    shared
        .0
        .borrow_mut()
        .images
        .get_mut(&*pull.disk.image)
        .unwrap()
        .backing = Some("/images/e.qcow2".into());
    assert_eq!(state(root.path(), &shared), PullProgress::Interrupted);
}

#[test]
fn one_that_cannot_be_completed_is_not_in_the_way_of_another() {
    let (root, shared) = layered();
    let host = shared.host(root.path());
    start(&host, &request("xvda")).unwrap();
    start(&host, &request("xvdb")).unwrap();
    let image = record(root.path()).pulls[0].disk.image.clone();
    let mut world = shared.0.borrow_mut();
    world.flushes_fail = true;
    world.images.get_mut(&*image).unwrap().content.clear();
    for job in world.jobs.values_mut() {
        job.job.done = job.job.total - 1;
    }
    drop(world);
    let infos = host.pulls(NAME, None, &Unobserved).unwrap();
    let state = |vdev: &str| infos.iter().find(|it| it.vdev == vdev).unwrap().state;
    assert_eq!(state("xvda"), PullProgress::Copied);
    assert_eq!(state("xvdb"), PullProgress::Completed);
}

#[test]
fn a_journal_that_stays_keeps_pulls_from_being_settled() {
    let (root, shared) = layered();
    let host = shared.host(root.path());
    start(&host, &request("xvda")).unwrap();
    for job in shared.0.borrow_mut().jobs.values_mut() {
        job.job.done = job.job.total - 1;
    }
    let store = Store::new(root.path()).domain(NAME);
    std::fs::write(store.journal_path(), b"what an operation left").unwrap();
    let target = crate::observe::named(&shared.ports(), &Store::new(root.path()), NAME).unwrap();
    let lock = store.lock(crate::store::LockWait::No).unwrap();
    host.settle_pulls(&target, &lock, &Unobserved);
    assert_eq!(
        std::fs::read(store.journal_path()).unwrap(),
        b"what an operation left"
    );
    assert_eq!(record(root.path()).pulls[0].state, PullState::UnderWay);
}
