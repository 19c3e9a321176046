//! Images of the user's are removed only if nothing that is known stands on them.

use super::*;
use crate::model::pull::tests::pull as pull_of;
use serde_json::{Value, json};

const TEMPLATE: &str = "/images/template.qcow2";

fn release() -> PullRequest {
    PullRequest {
        release_base: true,
        ..request("xvda")
    }
}

pub(super) fn configuration() -> Value {
    let disk = |vdev: &str, image: &str| {
        json!({ "vdev": vdev, "pdev_path": image, "backend": "qdisk",
                "format": "qcow2", "readwrite": 1 })
    };
    let disks = [disk("xvda", IMAGES[0]), disk("xvdb", IMAGES[1])];
    json!({ "c_info": { "type": "pv" }, "disks": disks })
}

fn put_on_template(shared: &Shared, image: &str) {
    let mut world = shared.0.borrow_mut();
    let mut other = world.images[Path::new(IMAGES[1])].clone();
    other.backing = Some(TEMPLATE.into());
    world.images.insert(image.into(), other);
}

fn is_there(shared: &Shared) -> bool {
    shared.0.borrow().images.contains_key(Path::new(TEMPLATE))
}

#[test]
fn what_a_snapshots_own_image_stands_on_stays() {
    let (root, shared) = on_a_template();
    let host = shared.host(root.path());
    create_as(&host, "one", EXTERNAL).unwrap();
    let (done, _) = host.pull(NAME, &release(), &Unobserved).unwrap();
    let notes = done.plan.notes.join("\n");
    assert!(
        notes.contains("template.qcow2 stays: something else needs it"),
        "{notes}"
    );
    host.wait_for_pull(NAME, "xvda", &Unobserved).unwrap();
    assert_eq!(below(root.path(), "xvda"), None);
    assert!(is_there(&shared));
    revert(&host, "one").unwrap();
    assert_eq!(see(&shared), running("0"));
}

#[test]
fn what_the_other_disk_of_a_domain_that_is_off_stands_on_stays() {
    for shares in [true, false] {
        let (root, shared) = on_a_template();
        let host = shared.host(root.path());
        if shares {
            put_on_template(&shared, IMAGES[1]);
        }
        destroy(&shared);
        let request = PullRequest {
            configuration: Some(configuration()),
            ..release()
        };
        let info = start(&host, &request).unwrap().unwrap();
        assert_eq!(info.state, PullProgress::Completed);
        assert_eq!(is_there(&shared), shares);
    }
}

#[test]
fn what_another_domain_stands_on_that_is_off_stays_and_so_if_that_cannot_be_seen() {
    for is_missing in [false, true] {
        let (root, shared) = on_a_template();
        let host = shared.host(root.path());
        let mut other = DomainRecord::new("g2");
        let mut of_other = pull_of("/images/c.qcow2", &["/images/d.qcow2"]);
        of_other.state = PullState::Completed;
        other.begin_pull(&of_other);
        let store = Store::new(root.path()).domain("g2");
        store.ensure_directory().unwrap();
        store.save(&other).unwrap();
        if !is_missing {
            put_on_template(&shared, "/images/c.qcow2");
        }
        pull(&host, &release()).unwrap();
        assert!(is_there(&shared), "missing: {is_missing}");
        std::fs::remove_dir_all(store.directory()).unwrap();
    }
}

#[test]
fn what_a_disk_needs_that_was_attached_meanwhile_stays() {
    let (root, shared) = on_a_template();
    let host = shared.host(root.path());
    start(&host, &release()).unwrap();
    // A disk that was attached since.
    put_on_template(&shared, IMAGES[1]);
    host.wait_for_pull(NAME, "xvda", &Unobserved).unwrap();
    assert!(is_there(&shared));
}
