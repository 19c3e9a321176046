//! What is replicated, and what is refused meanwhile.

use super::*;
use crate::plan::{ManagedSaveRequest, replicable};

fn running(vdevs: &[&str]) -> Inventory {
    inventory(vdevs, Some(DomainState::Running), 1)
}

fn refusal(inventory: &Inventory) -> String {
    replicable(inventory).unwrap_err().report()
}

/// Another disk than the usual one.
fn with(change: impl FnOnce(&mut DeviceDisk)) -> Inventory {
    let mut inventory = running(&["xvda", "xvdb"]);
    let live = inventory.live.as_mut().unwrap();
    change(&mut live.disks[1]);
    inventory
}

#[test]
fn a_domain_is_replicated_with_all_that_it_can_write_to_or_not_at_all() {
    let disks = replicable(&running(&["xvda", "xvdb"])).unwrap();
    let vdevs: Vec<_> = disks.iter().map(|disk| &*disk.vdev).collect();
    assert_eq!(vdevs, ["xvda", "xvdb"]);
    assert_eq!(*disks[0].image, *Path::new("/images/xvda.qcow2"));
    let read_only = with(|disk| disk.readwrite = 0);
    assert_eq!(replicable(&read_only).unwrap().len(), 1);
    let phy = with(|disk| disk.backend = Some("phy".into()));
    assert!(
        refusal(&phy).contains("xvdb is on the phy backend"),
        "{}",
        refusal(&phy)
    );
    let vhd = with(|disk| disk.format = Some("vhd".into()));
    assert!(
        refusal(&vhd).contains("qemu-img convert -f vhd"),
        "{}",
        refusal(&vhd)
    );
    let relative = with(|disk| disk.pdev_path = Some("xvdb.raw".into()));
    assert!(refusal(&relative).contains("no absolute path"));
    let mut none = running(&["xvda"]);
    none.live.as_mut().unwrap().disks[0].readwrite = 0;
    assert!(refusal(&none).contains("no disk that it can write to"));
    assert!(refusal(&inventory(&["xvda"], None, 0)).contains("is not running"));
    let crashed = inventory(&["xvda"], Some(DomainState::Crashed), 0);
    assert!(
        refusal(&crashed).contains("is crashed"),
        "{}",
        refusal(&crashed)
    );
    replicable(&inventory(&["xvda"], Some(DomainState::Paused), 0)).unwrap();
}

#[test]
fn what_the_other_side_would_not_hear_of_is_refused_as_long_as_a_domain_is_replicated() {
    let mut inventory = running(&["xvda"]);
    let name = inventory.record.snapshots[0].name().to_owned();
    let requests = [
        Request::Create(named("new")),
        Request::Revert(to(&name)),
        Request::Delete(DeleteRequest {
            name: name.clone(),
            scope: DeleteScope::Only,
        }),
        Request::ManagedSave(ManagedSaveRequest::default()),
        Request::Pull(PullRequest {
            disk: "xvda".into(),
            ..PullRequest::default()
        }),
    ];
    for request in &requests {
        request.plan(&inventory, &fresh()).unwrap();
    }
    inventory.replicated = Some("is replicated to b:9433 (running)".into());
    for request in &requests {
        let refused = request.plan(&inventory, &fresh()).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::DomainState);
        let report = refused.report();
        assert!(
            report.starts_with("domain 'g1' is replicated to b:9433 (running)"),
            "{report}"
        );
        assert!(report.contains("`xl-ext replication-stop g1`"), "{report}");
    }
}
