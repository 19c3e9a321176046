//! Pulls by QEMU's `block-stream`: in a domain's own QEMU, or in a storage daemon where the domain is off.
//!
//! QEMU 7.2 takes the name of the image below out of the header before what it copied is sure to be in the file: one that is
//! killed in that instant leaves an image that stands on nothing and lacks what was below it. So a job of ours waits
//! before its last act (`auto-finalize` off), and is told to do that after a flush.

use super::job::{self, Forgotten, OnIoError, Status};
use super::qmp::{
    LONGEST_PAUSE, Locked, QemuMonitors, RUN_DIRECTORY, SHORTEST_PAUSE, node_of, require_open_once,
    short,
};
use super::qmp_wire::{USUAL, is_refusal};
use super::storage_daemon::StorageDaemon;
use super::{BlockNode, PullJob, PullJobState, Pulls, StorageServer, Word, Worker};
use crate::error::{Error, ErrorKind, Result};
use crate::model::disk::ImageFormat;
use crate::model::domain::DomainLife;
use crate::model::layer::Backing;
use crate::model::pull::{OnError, Pull};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a job may take to end that was told to.
const END_LIMIT: Duration = Duration::from_secs(120);

/// What QEMU says of a job that was cancelled: `strerror(ECANCELED)`.
const CANCELLED: &str = "Operation canceled";

impl Pulls for QemuMonitors {
    fn start(&self, by: &Worker, pull: &Pull) -> Result<()> {
        let mut qemu = Locked::connect_to(by, USUAL)?;
        let nodes = qemu.nodes()?;
        require_open_once(&nodes, &pull.disk.image)?;
        let top = node_of(&nodes, &pull.disk)?;
        let id = job::Id::of_pull(&pull.disk.image);
        Forgotten::HERE.remove(&id)?;
        let speed = pull.first_speed();
        let start = |qemu: &mut Locked, base_node: Option<&str>| {
            qemu.monitor.run(&job::BlockStream {
                job_id: &id,
                device: &top.node_name,
                base_node,
                backing_file: pull.onto.as_ref().map(|onto| &*onto.image),
                speed,
                on_error: match pull.on_error {
                    OnError::Fail => OnIoError::Report,
                    OnError::Pause => OnIoError::Stop,
                },
                auto_finalize: false,
                auto_dismiss: false,
            })
        };
        let Some(onto) = &pull.onto else {
            return start(&mut qemu, None).map(drop);
        };
        // Two disks may stand on one image, and each has a node of its own for it: QEMU says which is whose.
        let mut refused = None;
        for node in nodes_of(&nodes, onto) {
            match start(&mut qemu, Some(&node.node_name)) {
                Err(error) if is_refusal(&error) => refused = Some(error),
                other => return other.map(drop),
            }
        }
        Err(refused.unwrap_or_else(|| {
            let image = onto.image.display();
            Error::new(ErrorKind::Stale, format!("QEMU does not have {image} open"))
        }))
    }

    fn look(&self, by: &Worker, image: &Path) -> Result<Option<PullJob>> {
        let mut qemu = Locked::connect_to(by, USUAL)?;
        look(&mut qemu, &job::Id::of_pull(image))
    }

    fn tell(&self, by: &Worker, image: &Path, word: Word) -> Result<()> {
        let mut qemu = Locked::connect_to(by, USUAL)?;
        let id = job::Id::of_pull(image);
        let Some(job) = id.look(&mut qemu.monitor)? else {
            return match word {
                Word::Dismiss => Forgotten::HERE.remove(&id),
                _ => Ok(()),
            };
        };
        if word == Word::Rest {
            say(&mut qemu, &id, Word::Hold, job.status)?;
            let nodes = qemu.nodes()?;
            return qemu.flush_image(&nodes, image);
        }
        let said = say(&mut qemu, &id, word, job.status);
        // It may have gone on between the look and the word.
        if said.as_ref().is_err_and(is_refusal) {
            let now = id.look(&mut qemu.monitor)?.map(|job| job.status);
            let is_too_late = match (word, now) {
                (_, None | Some(Status::Concluded)) => true,
                (Word::Hold | Word::GoOn | Word::Speed(_), Some(now)) => now == Status::Pending,
                _ => false,
            };
            if is_too_late {
                return Ok(());
            }
        }
        said
    }

    fn complete(
        &self,
        life: DomainLife,
        pull: &Pull,
        is_all_there: &dyn Fn() -> Result<()>,
    ) -> Result<()> {
        let mut qemu = Locked::connect(life)?;
        let id = job::Id::of_pull(&pull.disk.image);
        if let Some(job) = id.look(&mut qemu.monitor)? {
            if job.status == Status::Pending {
                let nodes = qemu.nodes()?;
                // QEMU 7.2 answers the same if this fails.
                qemu.flush_node(node_of(&nodes, &pull.disk)?)?;
                is_all_there()?;
                qemu.monitor.run(&job::JobFinalize { id: &id })?;
                wait_for_end(&mut qemu, &id)?;
            }
            // Its error, if any, is said here.
            id.progress(&mut qemu.monitor)?;
        }
        let nodes = qemu.nodes()?;
        let top = node_of(&nodes, &pull.disk)?;
        if !top.facts.stands_on(pull.onto.as_ref()) {
            let how = top.facts.stands_instead_of(pull.onto.as_ref());
            return Err(Error::new(
                ErrorKind::Toolstack,
                format!("{} {how} though QEMU says that it was pulled", pull.disk),
            ));
        }
        // Where another disk stands on it too, QEMU keeps that one's node.
        for node in pull.from.iter().flat_map(|from| nodes_of(&nodes, from)) {
            qemu.close_unused(node)?;
        }
        Ok(())
    }

    fn serve(&self, directory: &Path, chain: &[Backing]) -> Result<Box<dyn StorageServer>> {
        StorageDaemon::start(directory, chain).map(|it| Box::new(it) as Box<dyn StorageServer>)
    }

    fn directory(&self, of_domain: &Path) -> PathBuf {
        // Names of sockets have to be short.
        Path::new(RUN_DIRECTORY).join(format!("xl-ext-pull-{}", short(of_domain)))
    }
}

fn nodes_of<'a>(nodes: &'a [BlockNode], image: &'a Backing) -> impl Iterator<Item = &'a BlockNode> {
    let is_it = |node: &&BlockNode| {
        node.image == image.image && ImageFormat::of(&node.driver) == Some(image.format)
    };
    nodes.iter().filter(is_it)
}

/// One that QEMU had to forget, and why it had ended.
fn forgotten(why: String) -> PullJob {
    PullJob {
        state: ended(Some(&why)),
        done: 0,
        total: 0,
        speed: 0,
        error: Some(why),
    }
}

fn ended(why: Option<&str>) -> PullJobState {
    match why {
        Some(CANCELLED) => PullJobState::Cancelled,
        _ => PullJobState::Ended,
    }
}

fn look(qemu: &mut Locked, id: &job::Id) -> Result<Option<PullJob>> {
    let Some(job) = id.look(&mut qemu.monitor)? else {
        return Ok(Forgotten::HERE.find(id)?.map(forgotten));
    };
    let mut found = PullJob {
        state: PullJobState::Running,
        done: job.done,
        total: job.total,
        speed: 0,
        error: job.error,
    };
    match job.status {
        Status::Concluded => {
            found.state = ended(found.error.as_deref());
            return Ok(Some(found));
        }
        Status::Pending => found.state = PullJobState::Copied,
        Status::Paused => found.state = PullJobState::Held,
        Status::Ready | Status::Busy => {}
    }
    if let Some(pace) = id.pace(&mut qemu.monitor)? {
        found.speed = pace.speed;
        let trouble = match &*pace.io_status {
            "ok" => None,
            "nospace" => Some("No space left on device"),
            _ => Some("an image cannot be read or written"),
        };
        if let Some(trouble) = trouble.filter(|_| found.state == PullJobState::Held) {
            found.state = PullJobState::Stalled;
            found.error = Some(trouble.into());
        }
    }
    Ok(Some(found))
}

/// Says something to a job that was seen to be in this state.
fn say(qemu: &mut Locked, id: &job::Id, word: Word, status: Status) -> Result<()> {
    let monitor = &mut qemu.monitor;
    match (word, status) {
        (Word::Dismiss, Status::Concluded) => id.dismiss(monitor),
        (Word::GoOn, Status::Paused) => monitor.run(&job::JobResume { id }).map(drop),
        (Word::Hold, Status::Busy) => {
            monitor.run(&job::JobPause { id })?;
            stands_still(qemu, id)
        }
        (Word::Cancel, status) if status != Status::Concluded => {
            monitor.run(&job::JobCancel { id })?;
            wait_for_end(qemu, id)
        }
        (Word::Speed(speed), status) if status != Status::Concluded => {
            let command = job::BlockJobSetSpeed { device: id, speed };
            monitor.run(&command).map(drop)
        }
        _ => Ok(()),
    }
}

/// Waits until a job that was told to stand still does.
fn stands_still(qemu: &mut Locked, id: &job::Id) -> Result<()> {
    wait(|| {
        let pace = id.pace(&mut qemu.monitor)?;
        let job = id.look(&mut qemu.monitor)?;
        let may_move = job.is_some_and(|job| matches!(job.status, Status::Busy | Status::Paused));
        Ok(!may_move || pace.is_none_or(|pace| !pace.busy))
    })
}

fn wait_for_end(qemu: &mut Locked, id: &job::Id) -> Result<()> {
    wait(|| {
        let job = id.look(&mut qemu.monitor)?;
        Ok(job.is_none_or(|job| job.status == Status::Concluded))
    })
}

fn wait(mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + END_LIMIT;
    let mut pause = SHORTEST_PAUSE / 4;
    while !is_so()? {
        if Instant::now() >= deadline {
            return Err(Error::new(
                ErrorKind::Toolstack,
                "QEMU's job does not do what it was told",
            ));
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pull_that_was_ended_is_known_as_such_also_when_qemu_had_to_forget_it() {
        assert_eq!(forgotten(CANCELLED.into()).state, PullJobState::Cancelled);
        let full = forgotten("No space left on device".into());
        assert_eq!(full.state, PullJobState::Ended);
        assert!(full.error.is_some());
    }
}
