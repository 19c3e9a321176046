//! Checkpoints of memory and disks between two hosts on one: what is on the way may be cut anywhere, and what the secondary
//! goes on from is of one instant.

use super::lab::{MIB, noise};
use super::wire::{DOMAIN, Hosts, PATIENT};
use crate::error::{Error, ErrorKind, Result};
use crate::event::Unobserved;
use crate::memory::{Kept, PAGE, read_header, stream_of};
use crate::model::domain::{GuestState, GuestType};
use crate::model::record::ManagedImage;
use crate::model::replica::{
    PrimaryState, Replica, ReplicaState, ReplicationRecord, Role, Standing,
};
use crate::port::Images;
use crate::port::qemu_img::QemuImg;
use crate::replication::keeper::{Keeper, Setup};
use crate::replication::link::Link;
use crate::replication::protocol::{Answer, Offer, Purpose};
use crate::replication::qdisk::{Each, Guest, GuestMemory, MemoryGuest};
use crate::replication::remote::greeted;
use crate::replication::transfer::Outgoing;
use std::io::Read;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use uuid::Uuid;

const LIMIT: Duration = Duration::from_secs(60);

/// Pages of the guest's memory.
const PAGES: usize = 600;

/// A guest with memory, which does not write to its disks while it is asked for a checkpoint.
struct Remembering {
    memory: Mutex<Vec<u8>>,
    /// After how many bytes of it libxl fails.
    fails_after: AtomicUsize,
    /// How often it went on after a suspend.
    went_on: AtomicUsize,
}

impl Remembering {
    fn new() -> Self {
        Self {
            memory: Mutex::new(memory(0)),
            fails_after: AtomicUsize::new(usize::MAX),
            went_on: AtomicUsize::new(0),
        }
    }

    fn becomes(&self, changed: usize) -> Vec<u8> {
        let memory = memory(changed);
        self.memory.lock().unwrap().clone_from(&memory);
        memory
    }
}

/// libxl's stream of a memory of which so many pages have changed.
fn memory(changed: usize) -> Vec<u8> {
    let page = |number: usize| {
        let content = match number {
            _ if number < changed => noise(9000 + number as u64 + changed as u64 * 7, PAGE),
            _ if number.is_multiple_of(3) => noise(number as u64, PAGE),
            _ => vec![0; PAGE],
        };
        (number as u64, Some(content))
    };
    stream_of(&[(0..PAGES).map(page).collect()])
}

const STANDING: Standing = Standing {
    guest: GuestState::Running,
    monitor: None,
};

impl Guest for Remembering {
    fn pause(&self) -> Result<bool> {
        panic!("it is to be suspended")
    }

    fn resume(&self) -> Result<()> {
        panic!("it is not paused")
    }

    fn with_memory(&self) -> Option<&dyn MemoryGuest> {
        Some(self)
    }
}

impl MemoryGuest for Remembering {
    fn memory(&self) -> Result<GuestMemory> {
        Ok(GuestMemory {
            configuration: CONFIGURATION.into(),
            guest_type: GuestType::Pv,
            uuid: Uuid::from_u128(5),
            at_most: 64 << 20,
            standing: STANDING,
        })
    }

    fn suspend(&self, _: &GuestMemory, each: Each<'_>) -> Result<Option<Instant>> {
        let memory = self.memory.lock().unwrap();
        let mut left = self.fails_after.load(Ordering::Relaxed);
        for part in memory.chunks(300_001) {
            each(&part[..part.len().min(left)])?;
            left -= part.len().min(left);
            if left == 0 {
                return Err(Error::new(ErrorKind::Toolstack, "libxl fails"));
            }
        }
        Ok(None)
    }

    fn go_on(&self, standing: Standing, _: bool) -> Result<()> {
        assert_eq!(standing, STANDING);
        self.went_on.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

const CONFIGURATION: &str = r#"{"c_info":{"name":"other","uuid":"00000000-0000-0000-0000-000000000001"},
    "b_info":{"kernel":"/boot/vmlinuz"},
    "disks":[{"vdev":"xvda","pdev_path":"/over/there","format":"raw","readwrite":1}]}"#;

fn setup<'a>(hosts: &'a Hosts, record: ReplicationRecord, guest: &'a Remembering) -> Setup<'a> {
    let mut setup = hosts.setup(record);
    if let Role::Primary(primary) = &mut setup.record.role {
        primary.memory = true;
    }
    Setup { guest, ..setup }
}

fn start<'a>(hosts: &'a Hosts, generation: u64, guest: &'a Remembering) -> Keeper<'a> {
    let record = hosts.record(generation, PATIENT);
    Keeper::start(setup(hosts, record, guest), &Unobserved).unwrap()
}

/// The stream in a memory image, and the configuration in front of it.
fn content(kept: &Kept) -> (String, Vec<u8>) {
    let mut content = kept.open().unwrap();
    let configuration = read_header(&mut content).unwrap();
    let mut stream = Vec::new();
    content.read_to_end(&mut stream).unwrap();
    (configuration, stream)
}

fn received(hosts: &Hosts, image: &ManagedImage) -> Vec<u8> {
    let memory = hosts.replicas.store.domain(DOMAIN).replica_memory();
    content(&memory.kept_in_store(image.id)).1
}

/// Waits until of all that was received nothing is there but so many images.
fn wait_for_images(hosts: &Hosts, count: usize) {
    let memory = hosts.replicas.store.domain(DOMAIN).replica_memory();
    let end = Instant::now() + LIMIT;
    loop {
        let images = memory.memory_directories().unwrap();
        let pending = hosts.replica().1.pending;
        if images.len() == count && pending.is_none() {
            let partial = images.iter().map(|id| memory.partial_memory_path(*id));
            assert!(!partial.into_iter().any(|path| path.exists()));
            let packs = std::fs::read_dir(memory.packs_directory())
                .into_iter()
                .flatten();
            let names = packs.map(|pack| pack.unwrap().file_name().into_string().unwrap());
            assert!(!names.into_iter().any(|name| name.ends_with(".partial")));
            return;
        }
        assert!(Instant::now() < end, "{images:?}, {pending:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The domain as it failed over: its disks, and what it goes on from.
fn assert_goes_on(hosts: &Hosts, disks: &[Vec<u8>], memory: &[u8]) {
    assert!(hosts.content_there() == disks, "disks of another instant");
    let own = hosts.replicas.store.domain(DOMAIN);
    let saved = own.load().unwrap().managed.expect("nothing to go on from");
    let (configuration, stream) = content(&own.kept_in_store(saved.id));
    assert!(stream == memory, "memory of another instant");
    let kept = own.kept_in_store(saved.id);
    kept.prove(saved.memory.as_ref().unwrap(), &Unobserved)
        .unwrap();
    let value: serde_json::Value = serde_json::from_str(&configuration).unwrap();
    let here = &hosts.replica().1.disks;
    assert_eq!(value["c_info"]["name"], DOMAIN);
    assert_eq!(
        value["c_info"]["uuid"],
        Uuid::from_u128(5).to_string().as_str()
    );
    assert_eq!(
        value["disks"][0]["pdev_path"],
        here[0].image.to_str().unwrap()
    );
    assert_eq!(value["b_info"]["kernel"], "/boot/vmlinuz");
    for (proof, disk) in saved.disks.iter().zip(here) {
        assert_eq!(proof.target, *disk);
        assert!(proof.stamp.is_some());
        assert_eq!(proof.stamp, QemuImg.last_write(&disk.image));
    }
    let left = own.replica_memory().memory_directories().unwrap();
    assert_eq!(left, [], "memory is left over");
}

fn stored(replica: &Replica) -> u64 {
    let image = replica.memory.as_ref().expect("no memory");
    image.memory.as_ref().unwrap().stored_bytes()
}

#[test]
fn a_domain_goes_on_from_memory_and_disks_of_the_last_checkpoint() {
    let hosts = Hosts::new(&[2 * MIB]);
    let guest = Remembering::new();
    let mut keeper = start(&hosts, 1, &guest);
    let first = hosts.replica().1;
    assert_eq!(received(&hosts, first.memory.as_ref().unwrap()), memory(0));
    hosts.lab.write(0, 4096, 65536, 1);
    let kept = (hosts.lab.content(), guest.becomes(5));
    assert_eq!(keeper.checkpoint().unwrap().number, 2);
    let bytes = keeper.progress().memory_bytes;
    assert_eq!(bytes, Some(kept.1.len() as u64));
    let second = hosts.replica().1;
    assert!(
        stored(&second) * 8 < stored(&first),
        "{} bytes, then {}",
        stored(&first),
        stored(&second)
    );
    wait_for_images(&hosts, 1);
    guest.becomes(9);
    hosts.lab.write(0, 0, MIB, 2);
    assert_eq!(guest.went_on.load(Ordering::Relaxed), 2);
    let failed_over = hosts.replicas.fail_over(DOMAIN, &Unobserved).unwrap();
    assert!(failed_over.memory.unwrap().contains("/boot/vmlinuz"));
    assert_goes_on(&hosts, &kept.0, &kept.1);
    keeper.check();
    assert!(matches!(hosts.written_down(), PrimaryState::Lost { .. }));
}

/// Wherever it fails, the guest goes on alone, the secondary keeps what it had, and nothing half is left.
#[test]
fn a_memory_that_does_not_come_to_its_end_counts_for_nothing() {
    let hosts = Hosts::new(&[2 * MIB]);
    let guest = Remembering::new();
    let mut generation = 0;
    let (mut kept, mut went_on) = (None, 0);
    for fails_after in [0, 1, 700_000] {
        generation += 1;
        guest.fails_after.store(usize::MAX, Ordering::Relaxed);
        let memory = guest.becomes(generation);
        let mut keeper = start(&hosts, generation as u64, &guest);
        kept = Some((hosts.lab.content(), memory));
        guest.becomes(100 + generation);
        guest.fails_after.store(fails_after, Ordering::Relaxed);
        hosts.lab.write(0, 0, MIB, 7);
        let failed = keeper.checkpoint().unwrap_err();
        assert!(
            failed.report().contains("libxl fails"),
            "{}",
            failed.report()
        );
        went_on += 2;
        assert_eq!(guest.went_on.load(Ordering::Relaxed), went_on);
        // What it writes now reaches nobody.
        hosts.lab.write(0, 0, MIB, 8);
        drop(keeper);
        wait_for_images(&hosts, 1);
        assert_eq!(
            hosts.replica().1.checkpoint.unwrap().number,
            generation as u64
        );
    }
    let kept = kept.unwrap();
    hosts.replicas.fail_over(DOMAIN, &Unobserved).unwrap();
    assert_goes_on(&hosts, &kept.0, &kept.1);
}

/// A memory that is stored, as by a primary that asks for no checkpoint yet.
fn store(hosts: &Hosts, session: Uuid, memory: &[u8]) -> Link {
    let mut link = offer(hosts, session, 64 << 20);
    assert!(matches!(link.hear(LIMIT).unwrap(), Answer::Done));
    let mut out = Outgoing::new().unwrap();
    out.send(memory, &mut link.sender).unwrap();
    out.end(&mut link.sender).unwrap();
    let Answer::Stored { bytes, .. } = link.hear(LIMIT).unwrap() else {
        panic!("it is not stored");
    };
    assert_eq!(bytes, memory.len() as u64);
    link
}

fn offer(hosts: &Hosts, session: Uuid, at_most: u64) -> Link {
    let purpose = Purpose::Memory { session };
    let mut link = greeted(&hosts.peer, &hosts.key, DOMAIN, purpose, LIMIT).unwrap();
    let offer = Offer {
        configuration: CONFIGURATION.into(),
        guest: GuestState::Running,
        guest_type: GuestType::Pv,
        domain_uuid: Uuid::from_u128(5),
        at_most,
    };
    link.say(&offer, LIMIT).unwrap();
    link
}

/// The secondary decides: before the primary's word what is pending is dropped, after it the checkpoint is completed.
#[test]
fn what_is_pending_counts_once_it_is_decided_on() {
    for is_decided in [false, true] {
        let hosts = Hosts::new(&[2 * MIB]);
        let guest = Remembering::new();
        let keeper = start(&hosts, 1, &guest);
        let mut kept = (hosts.lab.content(), memory(0));
        hosts.lab.write(0, 4096, MIB, 3);
        let (generation, replica) = hosts.replica();
        let later = memory(50);
        let link = store(&hosts, replica.session, &later);
        let mut replica = hosts.replica().1;
        let pending = replica.pending.as_mut().expect("nothing is pending");
        if is_decided {
            // As if the process that listens had been killed before the disks' part, or after it.
            pending.is_decided = true;
            kept = (hosts.lab.content(), later);
            let record = ReplicationRecord {
                domain: DOMAIN.into(),
                generation,
                role: Role::Secondary(replica),
            };
            let own = hosts.replicas.store.domain(DOMAIN);
            own.remember_replication(&record).unwrap();
        }
        drop(keeper);
        drop(link);
        let failed_over = hosts.replicas.fail_over(DOMAIN, &Unobserved).unwrap();
        let number = failed_over.replica.checkpoint.unwrap().number;
        assert_eq!(number, 1 + u64::from(is_decided));
        wait_for_images(&hosts, 0);
        assert_goes_on(&hosts, &kept.0, &kept.1);
    }
}

/// What no primary of ours sends is refused, and nothing of it is left.
#[test]
fn a_peer_that_sends_something_else_is_sent_away() {
    let hosts = Hosts::new(&[MIB]);
    let guest = Remembering::new();
    let mut keeper = start(&hosts, 1, &guest);
    let session = hosts.replica().1.session;
    let sent = |at_most: u64, messages: &[&[u8]]| {
        let mut link = offer(&hosts, session, at_most);
        match link.hear(LIMIT).unwrap() {
            Answer::Done => {}
            Answer::Refused(refusal) => return Some(refusal.text),
            other => panic!("{other:?}"),
        }
        for message in messages {
            if link.sender.send(message).is_err() {
                break;
            }
        }
        match link.hear(LIMIT) {
            Ok(Answer::Refused(refusal)) => Some(refusal.text),
            Ok(other) => panic!("{other:?}"),
            Err(_) => None,
        }
    };
    let end = |bytes: u64| [&[2][..], &bytes.to_be_bytes()].concat();
    let bomb = zstd::bulk::compress(&vec![0; 200_000], 1).unwrap();
    let bomb = [&[1][..], &bomb].concat();
    for messages in [
        &[&[][..]][..],
        &[&[3, 1, 2]],
        &[&[1, 1, 2]],
        &[&bomb],
        &[&[0, 1, 2], &end(3)],
        &[&[2, 0]],
        &[&[0; 600], &end(599)],
    ] {
        assert_eq!(sent(500, messages), None, "{messages:?}");
        wait_for_images(&hosts, 1);
    }
    let much = sent(u64::MAX, &[]).expect("more than there is room for is taken");
    assert!(much.contains("are free"), "{much}");
    // Another start's.
    let purpose = Purpose::Memory {
        session: Uuid::new_v4(),
    };
    let refused = greeted(&hosts.peer, &hosts.key, DOMAIN, purpose, LIMIT);
    let refused = refused.map(drop).unwrap_err();
    assert!(refused.report().contains("newer"), "{}", refused.report());
    // None of it broke what runs.
    assert_eq!(keeper.checkpoint().unwrap().number, 2);
    wait_for_images(&hosts, 1);
}

/// Where a failover was interrupted while the memory was handed over.
#[test]
fn a_failover_that_was_interrupted_in_the_memory_goes_on() {
    for moved in 0..3 {
        let hosts = Hosts::new(&[MIB]);
        let guest = Remembering::new();
        drop(start(&hosts, 1, &guest));
        let kept = hosts.lab.content();
        let own = hosts.replicas.store.domain(DOMAIN);
        let memory_store = own.replica_memory();
        let (generation, mut replica) = hosts.replica();
        replica.state = ReplicaState::FailingOver { at: 7 };
        let image = replica.memory.clone().unwrap();
        let record = ReplicationRecord {
            domain: DOMAIN.into(),
            generation: generation + 1,
            role: Role::Secondary(replica),
        };
        own.remember_replication(&record).unwrap();
        if moved > 0 {
            let (from, to) = (memory_store.packs_directory(), own.packs_directory());
            std::fs::create_dir(&to).unwrap();
            for pack in std::fs::read_dir(from).unwrap().map(|pack| pack.unwrap()) {
                std::fs::rename(pack.path(), to.join(pack.file_name())).unwrap();
            }
        }
        if moved > 1 {
            let directory = |store: &crate::store::DomainStore| store.snapshot_directory(image.id);
            std::fs::rename(directory(&memory_store), directory(&own)).unwrap();
        }
        hosts.replicas.fail_over(DOMAIN, &Unobserved).unwrap();
        assert_goes_on(&hosts, &kept, &memory(0));
    }
}

/// Without its memory, or with one that is damaged, the domain can still boot from its disks.
#[test]
fn the_disks_go_on_alone_if_that_is_wanted() {
    let hosts = Hosts::new(&[MIB]);
    let guest = Remembering::new();
    drop(start(&hosts, 1, &guest));
    let kept = hosts.lab.content();
    let own = hosts.replicas.store.domain(DOMAIN);
    let image = hosts.replica().1.memory.unwrap();
    let path = own.replica_memory().memory_path(image.id);
    std::fs::write(path, b"libxl-ext image of nothing").unwrap();
    let refused = hosts.replicas.fail_over(DOMAIN, &Unobserved).unwrap_err();
    assert!(
        refused.report().contains("--disks-only"),
        "{}",
        refused.report()
    );
    let failed_over = hosts.replicas.fail_over_disks(DOMAIN, &Unobserved).unwrap();
    assert_eq!(failed_over.memory, None);
    assert!(hosts.content_there() == kept);
    assert_eq!(own.load().unwrap().managed, None);
    wait_for_images(&hosts, 0);
}
