//! What is to be had when nothing fails.

use super::*;
use crate::error::{ErrorKind, Result};
use crate::model::disk::{DiskTarget, ImageFormat};
use crate::replication::qdisk::{Guest, NbdAddress, Pulse, checkpoint};
use crate::replication::{Mode, Phase};
use std::process::Command;
use std::sync::{Condvar, Mutex};

#[test]
fn after_a_failover_the_secondary_is_the_last_checkpoint_to_the_byte() {
    let mut lab = Lab::new(&[8 * MIB]);
    let before = lab.content();
    lab.start();
    lab.checkpoint().unwrap();
    assert!(lab.content() == before, "the primary's disk is only read");
    lab.write(0, 4096, 65536, 1);
    // In the middle of a cluster of the buffers, and of a granule of the mirror.
    lab.write(0, MIB + 512, 1024, 2);
    lab.checkpoint().unwrap();
    let kept = lab.content();
    assert!(kept != before);
    lab.write(0, 4096, 131_072, 3);
    lab.write(0, MIB, 512, 4);
    lab.write(0, 7 * MIB, MIB, 5);
    assert!(
        lab.secondary_content() == lab.content(),
        "a write is over when both have it"
    );
    lab.primary_set.error_all().unwrap();
    lab.secondary_set.error_all().unwrap();
    lab.fail_over();
    assert!(lab.secondary_content() == kept, "it is of another instant");
    assert!(!lab.has_sidecar());
    assert_eq!(std::fs::read_dir(lab.path("buffers")).unwrap().count(), 0);
    assert!(!lab.path("nbd").exists());

    // The primary, if it lives, is cut off: it goes on alone, and says so.
    lab.write(0, 0, 512, 6);
    assert!(lab.primary_set.error_all().is_err());
    assert!(
        lab.secondary_content() == kept,
        "a primary that was left behind writes to it"
    );
    lab.primary_set.stop_all(false).unwrap();
    assert!(lab.is_primary_alive());
}

#[test]
fn a_primary_that_goes_on_writing_does_not_reach_a_secondary_that_fails_over() {
    let lab = Lab::replicating(&[8 * MIB]);
    let kept = lab.content();
    let mut writes = lab.writer(0).begin_many(20_000, 8 * MIB, 3);
    while lab.secondary_content() == kept {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    lab.fail_over();
    assert!(lab.secondary_content() == kept);
    assert!(matches!(writes.try_wait(), Ok(None)), "it had ended before");
    writes.kill().unwrap();
    writes.wait().unwrap();
    // What the secondary does not take is the guest's all the same.
    lab.write(0, 0, 512, 4);
    assert!(lab.primary_set.error_all().is_err());
}

#[test]
fn all_disks_of_a_domain_are_set_back_to_one_instant() {
    let lab = Lab::replicating(&[2 * MIB, 3 * MIB, MIB]);
    for at in 0..3 {
        lab.write(at, 65536, 4096, 1);
    }
    lab.checkpoint().unwrap();
    let kept = lab.content();
    for at in [0, 2] {
        lab.write(at, 60000, 70000, 2);
    }
    lab.fail_over();
    assert!(lab.secondary_content() == kept);
}

#[test]
fn a_failover_right_after_the_first_checkpoint_gives_what_was_copied() {
    let mut lab = Lab::new(&[2 * MIB]);
    lab.start();
    lab.checkpoint().unwrap();
    let kept = lab.content();
    lab.write(0, 0, 2 * MIB, 9);
    lab.fail_over();
    assert!(lab.secondary_content() == kept);
}

#[test]
fn what_is_written_during_the_first_copy_is_in_it() {
    let mut lab = Lab::new(&[16 * MIB]);
    let writer = lab.writer(0);
    let writes = std::thread::spawn(move || {
        for at in 0..8 {
            assert!(writer.write(at * 2 * MIB + 100, 3000, 7).status.success());
        }
    });
    lab.start();
    writes.join().unwrap();
    lab.checkpoint().unwrap();
    let kept = lab.content();
    lab.fail_over();
    assert!(lab.secondary_content() == kept);
}

/// A guest that writes whenever it may.
#[derive(Default)]
struct Busy {
    now: Mutex<Doing>,
    changed: Condvar,
}

#[derive(Default)]
struct Doing {
    paused: bool,
    writing: bool,
    over: bool,
}

impl Busy {
    fn change(&self, change: impl FnOnce(&mut Doing)) {
        change(&mut self.now.lock().unwrap());
        self.changed.notify_all();
    }

    /// Waits for leave to write. There is none any more once it is over.
    fn may_write(&self) -> bool {
        let now = self.now.lock().unwrap();
        let may_not = |now: &mut Doing| now.paused && !now.over;
        let mut now = self.changed.wait_while(now, may_not).unwrap();
        now.writing = !now.over;
        now.writing
    }
}

impl Guest for Busy {
    fn pause(&self) -> Result<bool> {
        let mut now = self.now.lock().unwrap();
        now.paused = true;
        drop(self.changed.wait_while(now, |now| now.writing).unwrap());
        Ok(true)
    }

    fn resume(&self) -> Result<()> {
        self.change(|now| now.paused = false);
        Ok(())
    }
}

#[test]
fn checkpoints_of_a_guest_that_writes_are_each_of_one_instant() {
    let lab = Lab::replicating(&[4 * MIB, 4 * MIB]);
    let guest = Busy::default();
    let writers = [lab.writer(0), lab.writer(1)];
    let kept = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut number = 0_usize;
            while guest.may_write() {
                number += 1;
                let byte = u8::try_from(number % 251).unwrap();
                for writer in &writers {
                    let output = writer.write(number * 7919 % (3 * MIB), 40000, byte);
                    assert!(output.status.success(), "{output:?}");
                }
                guest.change(|now| now.writing = false);
            }
        });
        for _ in 0..12 {
            checkpoint(&guest, &lab.primary_set, &lab.secondary_set, || ()).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(60));
        }
        guest.pause().unwrap();
        checkpoint(&Still, &lab.primary_set, &lab.secondary_set, || ()).unwrap();
        let kept = lab.content();
        guest.resume().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(60));
        guest.change(|now| now.over = true);
        kept
    });
    lab.write(1, 0, 4 * MIB, 252);
    lab.fail_over();
    assert!(lab.secondary_content() == kept);
}

/// One that is paused already, and is not to go on.
struct Still;

impl Guest for Still {
    fn pause(&self) -> Result<bool> {
        Ok(false)
    }

    fn resume(&self) -> Result<()> {
        panic!("it was paused before");
    }
}

#[test]
fn a_stop_without_failover_leaves_the_last_checkpoint_and_both_can_start_anew() {
    let lab = Lab::replicating(&[2 * MIB]);
    lab.write(0, 0, 4096, 1);
    lab.checkpoint().unwrap();
    let kept = lab.content();
    lab.write(0, 0, 8192, 2);
    lab.primary_set.stop_all(false).unwrap();
    lab.secondary_set.stop_all(false).unwrap();
    assert!(lab.secondary_content() == kept);
    assert!(!lab.has_sidecar());

    lab.secondary_set.start_all(Mode::Secondary).unwrap();
    lab.primary_set.start_all(Mode::Primary).unwrap();
    lab.checkpoint().unwrap();
    lab.fail_over();
    assert!(lab.secondary_content() == lab.content());
}

#[test]
fn a_qcow2_image_can_be_the_secondary_of_a_raw_disk() {
    let mut lab = Lab::new(&[2 * MIB]);
    let image = lab.path("secondary.qcow2");
    let mut make = Command::new("qemu-img");
    make.args(["create", "-q", "-f", "qcow2"])
        .arg(&image)
        .arg("2M");
    assert!(make.status().unwrap().success());
    lab.secondary_disks = vec![DiskTarget {
        vdev: "xvda".into(),
        image: image.clone().into(),
        format: ImageFormat::Qcow2,
    }];
    lab.start();
    lab.checkpoint().unwrap();
    let kept = lab.content();
    lab.write(0, 1000, 70000, 1);
    lab.fail_over();
    let raw = lab.path("raw");
    let mut convert = Command::new("qemu-img");
    convert
        .args(["convert", "-f", "qcow2", "-O", "raw"])
        .args([&image, &raw]);
    assert!(convert.status().unwrap().success());
    assert!(std::fs::read(raw).unwrap() == kept[0]);
}

#[test]
fn buffers_and_the_monitor_are_roots_alone() {
    use std::os::unix::fs::PermissionsExt;
    let lab = Lab::replicating(&[MIB]);
    let mode = |name: &str| lab.path(name).metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!([mode("sidecar"), mode("buffers")], [0o700; 2]);
    assert_eq!(mode("buffers/active-xvda.qcow2"), 0o600);
    assert_eq!(mode("buffers/hidden-xvda.qcow2"), 0o600);
    assert_eq!(mode("sidecar/log"), 0o600);
}

#[test]
fn over_tcp_it_is_only_to_be_had_on_this_host() {
    let mut lab = Lab::new(&[MIB]);
    // One that is free now; it is taken by nobody else in the meantime, since ports are given in turn.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let address = NbdAddress::Loopback(port);
    let secondary = crate::replication::qdisk::Secondary::new(
        lab.secondary_disks.clone(),
        address.clone(),
        lab.path("sidecar"),
        lab.path("buffers"),
        lab.limits,
    );
    let id = lab
        .secondary_set
        .new_state("g1", Box::new(secondary.unwrap()))
        .unwrap();
    lab.secondary_id = Some(id);
    lab.secondary_set.start_all(Mode::Secondary).unwrap();
    let listening = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let local = format!("0100007F:{port:04X} 00000000:0000 0A");
    assert!(listening.contains(&local), "{listening}");
    let registered = crate::replication::qdisk::register(
        &lab.primary_set,
        &lab.qemu(),
        &lab.disks,
        &address,
        lab.limits,
        Pulse::FeltWhenAsked,
    );
    registered.unwrap();
    lab.primary_set.start_all(Mode::Primary).unwrap();
    lab.checkpoint().unwrap();
    let kept = lab.content();
    lab.write(0, 0, 512, 1);
    lab.fail_over();
    assert!(lab.secondary_content() == kept);
}

#[test]
fn what_makes_no_sense_in_a_phase_is_refused_on_both_sides() {
    let mut lab = Lab::new(&[MIB]);
    let not_ready = |result: Result<()>| {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DomainState, "{}", error.report());
    };
    let secondary = Box::new(lab.secondary().unwrap());
    let id = lab.secondary_set.new_state("g1", secondary).unwrap();
    not_ready(lab.secondary_set.checkpoint_all());
    not_ready(lab.secondary_set.stop_all(false));
    not_ready(lab.secondary_set.stop_all(true));
    lab.secondary_set.remove(id).unwrap();
    lab.start_secondary();
    lab.register().unwrap();
    not_ready(lab.primary_set.checkpoint_all());
    not_ready(lab.primary_set.stop_all(false));
    not_ready(lab.checkpoint());
    lab.primary_set.start_all(Mode::Primary).unwrap();
    // Twice.
    not_ready(lab.secondary_set.start_all(Mode::Secondary));
    not_ready(lab.primary_set.start_all(Mode::Primary));
    let second = lab.secondary().unwrap();
    let others = crate::replication::Registry::new();
    others.new_state("again", Box::new(second)).unwrap();
    let report = others.start_all(Mode::Secondary).unwrap_err().report();
    assert!(report.contains("are served already"), "{report}");
    let others = crate::replication::Registry::new();
    let (qemu, address) = (lab.qemu(), lab.address());
    let pulse = Pulse::FeltWhenAsked;
    crate::replication::qdisk::register(&others, &qemu, &lab.disks, &address, lab.limits, pulse)
        .unwrap();
    let report = others.start_all(Mode::Primary).unwrap_err().report();
    assert!(report.contains("replicated by somebody else"), "{report}");
    // The ones that run are none the worse for it.
    lab.checkpoint().unwrap();
    lab.primary_set.error_all().unwrap();
    lab.fail_over();
    not_ready(lab.secondary_set.stop_all(true));
    not_ready(lab.secondary_set.start_all(Mode::Secondary));
    not_ready(lab.secondary_set.checkpoint_all());
}

#[test]
fn a_side_is_not_started_as_the_other_one() {
    let mut lab = Lab::new(&[MIB]);
    lab.start_secondary();
    let ids = lab.register().unwrap();
    for (set, mode) in [
        (&lab.primary_set, Mode::Secondary),
        (&crate::replication::Registry::new(), Mode::Primary),
    ] {
        if mode == Mode::Primary {
            set.new_state("g1", Box::new(lab.secondary().unwrap()))
                .unwrap();
        }
        let report = set.start_all(mode).unwrap_err().report();
        assert!(report.contains("two registries"), "{report}");
    }
    assert_eq!(lab.primary_set.phase(ids[0]).unwrap(), Phase::Stopped);
}
