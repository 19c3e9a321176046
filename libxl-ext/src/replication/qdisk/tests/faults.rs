//! What is left when something fails.

use super::lab::{PATIENT, noise};
use super::*;
use crate::error::ErrorKind;
use crate::replication::qdisk::Limits;
use crate::replication::{Mode, Phase};
use rustix::process::Signal;
use std::time::Duration;

#[test]
fn disks_of_other_lengths_are_refused_before_anything_starts() {
    for secondary in [MIB - 512, MIB + 512] {
        let mut lab = Lab::with(&[MIB, MIB], &[MIB, secondary], PATIENT);
        lab.start_secondary();
        let before = lab.secondary_content();
        let error = lab.register().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest);
        let said = format!("has 1048576 bytes, and the secondary's disk xvdb has {secondary}");
        assert!(error.report().contains(&said), "{}", error.report());
        assert!(
            lab.primary_set.start_all(Mode::Primary).is_err(),
            "one was registered"
        );
        assert!(lab.secondary_content() == before, "something was copied");
    }
}

#[test]
fn a_disk_that_does_not_start_takes_the_others_back() {
    let mut lab = Lab::new(&[MIB, MIB]);
    lab.start_secondary();
    let ids = lab.register().unwrap();
    // Its name is taken in the primary's QEMU.
    let taken = lab.claim_node("xl-repl-xvdb");
    let report = lab
        .primary_set
        .start_all(Mode::Primary)
        .unwrap_err()
        .report();
    assert!(report.contains("'xvdb' did not start"), "{report}");
    for id in &ids {
        assert_eq!(lab.primary_set.phase(*id).unwrap(), Phase::Stopped);
    }
    assert_eq!(lab.nodes_of_mirrors(), ["xl-repl-xvdb"]);
    lab.release_node(&taken);
    lab.primary_set.start_all(Mode::Primary).unwrap();
    lab.checkpoint().unwrap();
}

#[test]
fn a_secondary_that_does_not_start_leaves_nothing() {
    let mut lab = Lab::new(&[MIB]);
    lab.secondary_disks[0].image = lab.path("not-there").into();
    let id = lab
        .secondary_set
        .new_state("g1", Box::new(lab.secondary().unwrap()))
        .unwrap();
    let report = lab
        .secondary_set
        .start_all(Mode::Secondary)
        .unwrap_err()
        .report();
    assert!(report.contains("there is no such image"), "{report}");
    lab.secondary_set.remove(id).unwrap();

    // It has come as far as listening.
    lab.secondary_disks[0].image = lab.path("secondary0").into();
    std::fs::create_dir(lab.path("nbd")).unwrap();
    lab.secondary_set
        .new_state("g1", Box::new(lab.secondary().unwrap()))
        .unwrap();
    lab.secondary_set.start_all(Mode::Secondary).unwrap_err();
    assert!(!lab.has_sidecar());
    assert_eq!(std::fs::read_dir(lab.path("buffers")).unwrap().count(), 0);
    std::fs::remove_dir(lab.path("nbd")).unwrap();
    lab.secondary_set.start_all(Mode::Secondary).unwrap();
}

#[test]
fn before_the_first_checkpoint_there_is_nothing_to_fail_over_to() {
    let mut lab = Lab::new(&[MIB]);
    lab.start();
    let report = lab.secondary_set.stop_all(true).unwrap_err().report();
    assert!(report.contains("no instant"), "{report}");
    // It still receives.
    lab.write(0, 0, 512, 1);
    assert!(lab.secondary_content() == lab.content());
}

#[test]
fn a_primary_goes_on_without_a_secondary_that_is_killed_and_says_so() {
    let mut lab = Lab::replicating(&[2 * MIB]);
    lab.signal_sidecar(Signal::KILL);
    while lab.has_sidecar() {
        std::thread::sleep(Duration::from_millis(5));
    }
    // One that is idle notices too.
    let report = lab.primary_set.error_all().unwrap_err().report();
    assert!(report.contains("the guest goes on alone"), "{report}");
    lab.write(0, 0, 65536, 1);
    assert!(lab.content()[0][..65536] == vec![1; 65536]);
    let report = lab.primary_set.error_all().unwrap_err().report();
    assert!(report.contains("lacks what was written"), "{report}");
    let report = lab.checkpoint().unwrap_err().report();
    assert!(
        report.contains("no checkpoint of replication 'xvda'"),
        "{report}"
    );
    let report = lab.secondary_set.error_all().unwrap_err().report();
    assert!(report.contains("has ended"), "{report}");
    lab.secondary_set.stop_all(true).unwrap_err();
    assert!(lab.is_primary_alive());

    // All anew, which copies everything.
    lab.primary_set.stop_all(false).unwrap();
    lab.secondary_set.remove(lab.secondary_id.unwrap()).unwrap();
    lab.start_secondary();
    lab.primary_set.start_all(Mode::Primary).unwrap();
    lab.checkpoint().unwrap();
    let kept = lab.content();
    lab.write(0, MIB, 512, 2);
    lab.fail_over();
    assert!(lab.secondary_content() == kept);
}

#[test]
fn a_secondary_that_was_started_anew_behind_a_primary_is_not_taken_for_its_own() {
    let mut lab = Lab::replicating(&[MIB]);
    lab.signal_sidecar(Signal::KILL);
    while lab.has_sidecar() {
        std::thread::sleep(Duration::from_millis(5));
    }
    lab.secondary_set.stop_all(false).unwrap();
    lab.secondary_set.start_all(Mode::Secondary).unwrap();
    lab.write(0, 0, 512, 1);
    assert!(lab.primary_set.error_all().is_err());
    assert!(lab.checkpoint().is_err());
    assert!(lab.is_primary_alive());
}

/// Short, for those who wait for one that does not answer.
const IMPATIENT: Limits = Limits {
    answer: Duration::from_secs(4),
    pulse: Duration::from_secs(2),
    ..PATIENT
};

fn with_silent_secondary() -> Lab {
    let mut lab = Lab::with(&[MIB, MIB], &[MIB, MIB], IMPATIENT);
    lab.start();
    lab.checkpoint().unwrap();
    lab.signal_sidecar(Signal::STOP);
    lab
}

#[test]
fn a_secondary_that_falls_silent_is_cut_off_and_the_guests_write_goes_on() {
    let mut lab = with_silent_secondary();
    let mut write = lab.writer(0).begin(0, 65536, 1);
    let report = lab.primary_set.error_all().unwrap_err().report();
    assert!(report.contains("it says nothing"), "{report}");
    assert!(report.contains("it is cut off"), "{report}");
    // It would hang for ever.
    assert!(write.wait().unwrap().success());
    assert!(lab.content()[0][..65536] == vec![1; 65536]);
    lab.primary_set.stop_all(false).unwrap();
    assert!(lab.nodes_of_mirrors().is_empty());
    lab.write(1, 0, 512, 2);
    assert!(lab.is_primary_alive());
    lab.signal_sidecar(Signal::CONT);
    // What it was sent when it was stopped came after the checkpoint.
    lab.fail_over();
    assert!(lab.secondary_content()[0] == noise(1, MIB));
}

#[test]
fn a_checkpoint_with_a_silent_secondary_ends_and_the_guests_write_goes_on() {
    let mut lab = with_silent_secondary();
    let mut write = lab.writer(0).begin(0, 65536, 1);
    while lab.bytes_under_way() == 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    let report = lab.checkpoint().unwrap_err().report();
    assert!(
        report.contains("waited for too long and was ended by yank"),
        "{report}"
    );
    assert!(write.wait().unwrap().success());
    assert!(lab.primary_set.error_all().is_err());
    lab.primary_set.stop_all(false).unwrap();
    assert!(lab.nodes_of_mirrors().is_empty() && lab.is_primary_alive());
    lab.signal_sidecar(Signal::CONT);
    lab.fail_over();
    assert!(lab.secondary_content()[0] == noise(1, MIB));
}

#[test]
fn a_stop_does_not_wait_for_a_silent_secondary() {
    let mut lab = with_silent_secondary();
    let mut write = lab.writer(1).begin(0, 65536, 1);
    while lab.bytes_under_way() == 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    lab.primary_set.stop_all(true).unwrap();
    assert!(write.wait().unwrap().success());
    assert!(lab.nodes_of_mirrors().is_empty() && lab.is_primary_alive());
}

#[test]
fn a_silent_secondary_is_not_started_with() {
    let mut lab = Lab::with(&[MIB], &[MIB], IMPATIENT);
    lab.start_secondary();
    lab.register().unwrap();
    lab.signal_sidecar(Signal::STOP);
    let report = lab
        .primary_set
        .start_all(Mode::Primary)
        .unwrap_err()
        .report();
    assert!(report.contains("it says nothing"), "{report}");
    assert!(lab.nodes_of_mirrors().is_empty());
    lab.signal_sidecar(Signal::CONT);
    lab.primary_set.start_all(Mode::Primary).unwrap();
}
