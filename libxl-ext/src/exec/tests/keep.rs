//! Reverts that keep the present state as a snapshot: it is kept, or nothing is lost; what is kept stays whatever
//! becomes of the revert.

use super::*;

fn revert_keeping(host: &Host, to: &str) -> Result<()> {
    let request = RevertRequest {
        name: to.into(),
        state: None,
        force: false,
    };
    let keep = Some(SnapshotName::new("kept")?);
    let (kept, reverted) = host.revert_keeping(NAME, &request, keep, &Unobserved)?;
    for done in [kept, reverted] {
        done.left_over.map_or(Ok(()), Err)?;
    }
    Ok(())
}

fn off() -> (tempfile::TempDir, Shared) {
    let (root, shared) = prepared();
    shared.0.borrow_mut().domains.clear();
    (root, shared)
}

#[test]
fn the_present_state_is_kept_before_anything_else() {
    let off_before = (None, vec!["disk 2".to_owned(); IMAGES.len()]);
    let cases: [(Prepare, Seen); 2] = [(prepared, running("2")), (off, off_before)];
    for (prepare, before) in cases {
        let mut outcomes = [0; 3];
        for fault in FAULTS {
            for at in 0..2 * CALLS_MAX {
                let (root, shared) = prepare();
                shared.0.borrow_mut().inject(at, fault);
                let result = attempt(&shared, root.path(), |host| revert_keeping(host, "one"));
                let happened = shared.0.borrow_mut().heal();
                let what = format!("call {at}, {fault:?}: {result:?}");
                let names = names(&shared.host(root.path()));
                let seen = see(&shared);
                let outcome = match (names.len(), seen) {
                    (2, seen) if seen == before => 0,
                    (3, seen) if seen == before => 1,
                    (3, seen) if seen == running("0") => 2,
                    other => panic!("{what}: {other:?}"),
                };
                outcomes[outcome] += 1;
                if let (1, Some(Err(error))) = (outcome, &result) {
                    let report = error.report();
                    assert!(report.contains("is kept as snapshot 'kept'"), "{report}");
                }
                assert_whole(&shared, root.path(), &what);
                if outcome > 0 {
                    revert(&shared.host(root.path()), "kept").unwrap();
                    assert_eq!(see(&shared), before, "{what}, back at what was kept");
                }
                if !happened {
                    assert!(matches!(result, Some(Ok(()))) && outcome == 2, "{what}");
                    break;
                }
            }
        }
        assert!(outcomes.iter().all(|count| *count > 15), "{outcomes:?}");
    }
}

#[test]
fn nothing_is_kept_for_a_revert_that_is_impossible() {
    let (root, shared) = prepared();
    let host = shared.host(root.path());
    let error = revert_keeping(&host, "none").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSuchSnapshot);
    let store = Store::new(root.path()).domain(NAME);
    let one = store.load().unwrap().find("one").unwrap().id;
    std::fs::write(store.memory_path(one), "short").unwrap();
    let error = revert_keeping(&host, "one").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert_eq!(names(&host), ["one", "two"]);
}
