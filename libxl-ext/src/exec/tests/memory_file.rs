//! The same faults with the memory in a file of the user's own: of what was not recorded nothing is left there, and
//! what is not ours is never removed.

use super::delete::delete;
use super::*;
use crate::plan::DeleteScope;

fn create_in(host: &Host, file: &Path) -> Result<()> {
    execute(
        host,
        &Request::Create(CreateRequest {
            name: Some(SnapshotName::new("three")?),
            memory_file: Some(file.into()),
            ..CreateRequest::default()
        }),
    )
}

fn entries(directory: &Path) -> Vec<std::ffi::OsString> {
    let entries = std::fs::read_dir(directory).unwrap().flatten();
    entries.map(|entry| entry.file_name()).collect()
}

/// Lets every call of `act` go wrong in every way; `prepare` and `act` get the file.
fn every_fault(
    prepare: impl Fn(&Host, &Path) -> Result<()>,
    act: impl Fn(&Host, &Path) -> Result<()>,
    check: impl Fn(&Host, &Shared, &Path, &str),
) {
    for fault in FAULTS {
        for at in 0..CALLS_MAX {
            let (root, shared) = prepared();
            let place = tempfile::tempdir_in(root.path()).unwrap();
            let file = place.path().join("memory of g1");
            prepare(&shared.host(root.path()), &file).unwrap();
            shared.0.borrow_mut().inject(at, fault);
            let result = attempt(&shared, root.path(), |host| act(host, &file));
            let happened = shared.0.borrow_mut().heal();
            let what = format!("call {at}, {fault:?}: {result:?}");
            let host = shared.host(root.path());
            check(&host, &shared, &file, &what);
            assert_whole(&shared, root.path(), &what);
            if !happened {
                assert!(matches!(result, Some(Ok(()))) && at > 15, "{what}");
                break;
            }
        }
    }
}

#[test]
fn create_leaves_the_file_or_nothing() {
    every_fault(
        |_, _| Ok(()),
        create_in,
        |host, shared, file, what| {
            let recorded = names(host).contains(&"three".to_owned());
            let expected: &[&str] = if recorded { &["memory of g1"] } else { &[] };
            assert_eq!(entries(file.parent().unwrap()), expected, "{what}");
            if !recorded {
                create_in(host, file).unwrap_or_else(|error| panic!("{what}: {}", error.report()));
            }
            let mode = std::os::unix::fs::PermissionsExt::mode;
            let permissions = file.metadata().unwrap().permissions();
            assert_eq!(mode(&permissions) & 0o777, 0o600, "{what}");
            shared.live_on("4");
            revert(host, "three").unwrap();
            assert_eq!(see(shared), running("2"), "{what}");
        },
    );
}

#[test]
fn delete_removes_the_file() {
    every_fault(
        create_in,
        |host, _| delete(host, "three", DeleteScope::Only),
        |host, _, file, what| {
            delete(host, "three", DeleteScope::Only).unwrap();
            let left = entries(file.parent().unwrap());
            assert!(left.is_empty(), "{what}: {left:?}");
        },
    );
}

#[test]
fn a_file_of_somebody_else_is_not_touched() {
    let (root, shared) = prepared();
    let host = shared.host(root.path());
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("m");
    std::fs::write(&file, "somebody's").unwrap();
    let error = create_in(&host, &file).unwrap_err();
    assert!(error.report().contains("is there already"), "{error:?}");
    assert_eq!(std::fs::read(&file).unwrap(), b"somebody's");
    assert_eq!(see(&shared), running("2"));
    std::fs::remove_file(&file).unwrap();
    assert!(create_in(&host, Path::new("m")).is_err());

    create_in(&host, &file).unwrap();
    assert_eq!(host.verify(NAME, None, &Unobserved).unwrap(), []);
    std::fs::write(&file, "somebody's").unwrap();
    assert_eq!(host.verify(NAME, None, &Unobserved).unwrap().len(), 1);
    let error = revert(&host, "three").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert_eq!(see(&shared), running("2"));
    delete(&host, "three", DeleteScope::Only).unwrap();
    assert_eq!(std::fs::read(&file).unwrap(), b"somebody's");
    assert_eq!(names(&host), ["one", "two"]);
}
