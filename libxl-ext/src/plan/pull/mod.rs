//! Planning pulls: what a disk lacks is copied from the images below it, until it stands on one of those or on nothing.
//!
//! Nothing is taken away by it. The images below stay as they are, so what stands on them or is a snapshot's state is not
//! touched; only layers of ours that nothing needs any more are removed in the end.

mod disk;
mod step;

pub use step::{PullChange, PullStep};

use super::claims::require_unclaimed;
use super::disks::require_as_recorded;
use super::managed_save::require_none_saved;
use super::replicate::require_not_replicated;
use super::revert::collect_garbage;
use super::{Fresh, Operation, Plan, Step, StoreChange};
use crate::error::{Error, ErrorKind, Result};
use crate::model::below::follow;
use crate::model::disk::{DiskTarget, ImageFormat};
use crate::model::domain::DomainLife;
use crate::model::layer::Backing;
use crate::model::pull::{OnError, Pull, PullState};
use crate::model::record::DomainRecord;
use crate::observe::Inventory;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;

/// What the user asks for.
#[derive(Clone, Debug, Default)]
pub struct PullRequest {
    /// The disk, by its virtual device or its image.
    pub disk: String,
    /// The image that it shall stand on in the end, by its path or by the snapshot whose state it is; none for nothing.
    pub base: Option<String>,
    /// Most bytes per second that are copied; 0 for as many as can be.
    pub bandwidth: u64,
    /// What becomes of it if something cannot be read or written.
    pub on_error: OnError,
    /// Only a part of it; all of it, if not said.
    pub increment: Option<Increment>,
    /// Whether images that no record names any more in the end are removed, also those that are not ours.
    pub release_base: bool,
    /// What the domain is made of where it is off, in libxl's JSON; as its snapshots tell, if not said.
    pub configuration: Option<Value>,
}

/// A part of a pull.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Increment {
    /// Its length, in bytes of the disk.
    pub bytes: u64,
    /// The cursor that the last one left, 0 for the first; not looked at, if not said.
    pub cursor: Option<u64>,
}

/// How a pull ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PullEnd {
    /// Everything is copied.
    Copied,
    /// It failed, because of this.
    Failed(String),
    /// Somebody ended it.
    Aborted,
    /// Whoever worked on it is gone.
    Interrupted,
}

/// Plans a pull, or a part of it. Where there is nothing to pull, the plan has no steps.
///
/// # Errors
/// [`ErrorKind::InvalidRequest`] for a disk, a base or a length that there is not; [`ErrorKind::Unsupported`] for a disk that
/// cannot be pulled; [`ErrorKind::Stale`] for a cursor of another pull or another moment, and for images that are not
/// what they were; [`ErrorKind::DomainState`] if it is being pulled already, or the domain was saved.
pub(super) fn pull(inventory: &Inventory, request: &PullRequest, fresh: &Fresh) -> Result<Plan> {
    require_unclaimed(inventory)?;
    require_none_saved(inventory)?;
    require_not_replicated(inventory)?;
    let disk = disk::find(inventory, &request.disk)?;
    let own = disk::facts(inventory, &disk.image)?;
    require_as_recorded(inventory, &disk)?;
    let record = &inventory.record;
    let images = &inventory.images;
    record.require_chain(&disk, |image| images.get(image).and_then(Option::as_ref))?;
    let mut plan = Plan::new(inventory, Operation::BlockPull, fresh, "");
    let below = disk::all_below(inventory, &disk)?;
    let earlier = record.pull_of(&disk.image);
    let onto = match (&request.base, earlier) {
        (Some(named), _) => Some(disk::base(inventory, &disk, &below, named)?),
        // Increments go on to where the first one was to lead.
        (None, Some(earlier)) if request.increment.is_some() && earlier.can_go_on() => {
            let still_there = |onto: &&Backing| below.contains(onto);
            earlier.onto.as_ref().filter(still_there).cloned()
        }
        (None, _) => None,
    };
    let at = onto
        .as_ref()
        .and_then(|onto| below.iter().position(|it| it == onto));
    let from = below[..at.unwrap_or(below.len())].to_vec();
    if from.is_empty() {
        return nothing_to_do(plan, earlier, request, &disk, onto.as_ref());
    }
    disk::require_no_tags(inventory, &disk)?;
    disk::require_nothing_uncovered(inventory, &disk, &from, onto.as_ref())?;
    let goes_on = earlier.filter(|earlier| earlier.can_go_on() && earlier.onto == onto);
    let is_there = earlier.is_some_and(Pull::is_under_way);
    let mut pull = goes_on.cloned().unwrap_or_else(|| Pull {
        id: fresh.operation,
        disk: disk.clone(),
        from: Vec::new(),
        onto: onto.clone(),
        increments: false,
        bandwidth: 0,
        on_error: OnError::Fail,
        release_base: false,
        beside: None,
        size: own.virtual_size,
        position: 0,
        life: None,
        state: PullState::UnderWay,
        reason: None,
        began_at: fresh.now,
        ended_at: None,
    });
    // A device has one pull in the record: that of another image would be lost sight of.
    let is_another = |other: &&Pull| other.disk.vdev == disk.vdev && other.disk.image != disk.image;
    let mut under_way = record.pulls.iter().filter(|other| other.is_under_way());
    if let Some(other) = under_way.find(is_another) {
        return Err(busy(inventory, &other.disk));
    }
    if is_there && goes_on.is_none() {
        return Err(busy(inventory, &pull.disk));
    }
    // What goes on by itself is not told to stop here and there.
    if is_there && !pull.increments && request.increment.is_some() {
        return Err(busy(inventory, &pull.disk));
    }
    if let Some(cursor) = request.increment.and_then(|increment| increment.cursor) {
        pull.require_cursor(cursor)?;
    }
    let anew = !is_there || inventory.live.is_none();
    let was = earlier
        .filter(|earlier| earlier.state == PullState::UnderWay)
        .map(Pull::first_speed);
    pull.from = from;
    pull.increments = request.increment.is_some();
    pull.bandwidth = request.bandwidth;
    if anew {
        pull.on_error = request.on_error;
    } else if pull.on_error != request.on_error {
        let does = match pull.on_error {
            OnError::Fail => "fails",
            OnError::Pause => "stands still",
        };
        plan.notes.push(format!(
            "the pull of {disk} has begun already: it {does} on an error, as was said then"
        ));
    }
    pull.release_base = request.release_base || (is_there && pull.release_base);
    if let Some(beside) = disk::beside(inventory, &disk) {
        pull.beside = Some(beside);
    }
    pull.life = inventory.live.as_ref().map(|live| live.life);
    pull.state = PullState::UnderWay;
    pull.reason = None;
    pull.ended_at = None;
    let until = request
        .increment
        .map(|increment| until(&pull, increment))
        .transpose()?;
    let allocated = |below: &Backing| disk::facts(inventory, &below.image).map(|it| it.allocated);
    for below in &pull.from {
        plan.cost.disk_copied += allocated(below)?;
    }
    if let Some(increment) = request.increment {
        plan.cost.disk_copied = plan.cost.disk_copied.min(increment.bytes);
    }
    note_what_stays(inventory, &pull, &mut plan);
    if let Some(life) = pull.life {
        plan.steps.extend(with_qemu(life, pull, until, (anew, was)));
        return Ok(plan);
    }
    let own = Backing::from(&pull.disk);
    let copy = PullStep::CopyOff {
        pull: pull.clone(),
        chain: [own].into_iter().chain(below).collect(),
        until,
    };
    plan.steps.extend([
        Step::RequireOff,
        Step::Pull { step: copy },
        commit(PullChange::Advanced { pull }),
    ]);
    Ok(plan)
}

fn with_qemu(
    life: DomainLife,
    pull: Pull,
    until: Option<u64>,
    (anew, was): (bool, Option<u64>),
) -> impl Iterator<Item = Step> {
    let start = PullStep::Start {
        life,
        pull: pull.clone(),
        anew,
        was,
    };
    let (increment, change) = match until {
        None => (Vec::new(), PullChange::Begun { pull }),
        Some(until) => {
            let wait = PullStep::Await {
                life,
                pull: pull.clone(),
                until,
            };
            let hold = PullStep::Hold {
                life,
                pull: pull.clone(),
            };
            (vec![wait, hold], PullChange::Advanced { pull })
        }
    };
    let steps = [start].into_iter().chain(increment);
    steps
        .map(|step| Step::Pull { step })
        .chain([commit(change)])
}

/// Plans the end of what is left of a pull in the record. `live` is the domain whose QEMU had it to do, if that is there
/// still.
pub(crate) fn end(
    inventory: &Inventory,
    pull: &Pull,
    how: &PullEnd,
    live: Option<DomainLife>,
    fresh: &Fresh,
) -> Plan {
    let mut plan = Plan::new(inventory, Operation::BlockPull, fresh, "");
    let (state, reason) = match how {
        PullEnd::Copied => (PullState::Completed, None),
        PullEnd::Failed(why) => (PullState::Failed, Some(why.clone())),
        PullEnd::Aborted => (PullState::Aborted, None),
        PullEnd::Interrupted => (PullState::Interrupted, None),
    };
    let ended = commit(PullChange::Ended {
        pull: pull.clone(),
        state,
        reason,
        at: fresh.now,
    });
    if *how == PullEnd::Copied {
        let complete = PullStep::Complete {
            life: live,
            pull: pull.clone(),
        };
        plan.steps.extend([Step::Pull { step: complete }, ended]);
        let mut after = inventory.record.clone();
        after.pulled(&pull.disk.image, pull.onto.as_ref());
        plan.steps.extend(collect_garbage(&after));
        let images = released(inventory, &after, pull);
        plan.steps.extend((!images.is_empty()).then(|| Step::Pull {
            step: PullStep::Release {
                pull: pull.clone(),
                images,
            },
        }));
        return plan;
    }
    // The record first: once QEMU has forgotten the job, nobody else knows why it ended.
    plan.steps.push(ended);
    plan.steps.extend(live.map(|life| Step::Pull {
        step: PullStep::End {
            life,
            pull: pull.clone(),
        },
    }));
    plan
}

/// The images that are removed with the user's consent: once the pull is recorded no record names them, and none of those
/// that are named, or are the domain's disks, stands on them, as far as that is seen here. It is looked at again before one
/// is removed.
fn released(inventory: &Inventory, after: &DomainRecord, pull: &Pull) -> Vec<Backing> {
    if !pull.release_base {
        return Vec::new();
    }
    let mut needed = BTreeSet::new();
    let claimed = inventory.claimed.keys().map(|image| Backing {
        image: image.as_path().into(),
        format: ImageFormat::Qcow2,
    });
    let beside = pull.beside.iter().flatten().cloned();
    for disk in after.image_files().chain(claimed).chain(beside) {
        let seen = |at: &Backing| {
            let mut facts = disk::facts(inventory, &at.image)?.clone();
            if at.image == pull.disk.image {
                let onto = pull.onto.as_ref();
                facts.backing = onto.map(|onto| onto.image.to_path_buf());
                facts.backing_format = onto.map(|onto| onto.format.driver().to_owned());
            }
            Ok(facts)
        };
        // What is not seen now is looked at then.
        let _ = follow(&disk, seen, &mut needed);
    }
    let is_needed = |image: &Path| needed.contains(image);
    let from = pull.from.iter();
    from.filter(|below| !is_needed(&below.image))
        .cloned()
        .collect()
}

fn commit(of: PullChange) -> Step {
    Step::Commit {
        change: StoreChange::Pull { of },
    }
}

/// Refuses what would change the chain of a disk, or its content, while it is being pulled.
///
/// # Errors
/// [`ErrorKind::DomainState`] with the way out.
pub(super) fn require_none_pulled(inventory: &Inventory) -> Result<()> {
    let mut pulls = inventory.record.pulls.iter();
    match pulls.find(|pull| pull.is_under_way()) {
        Some(pull) => Err(busy(inventory, &pull.disk)),
        None => Ok(()),
    }
}

fn busy(inventory: &Inventory, disk: &DiskTarget) -> Error {
    let (domain, vdev) = (&inventory.domain, &disk.vdev);
    Error::new(ErrorKind::DomainState, format!("{disk} is being pulled")).hint(format!(
        "`xl-ext block-pull-info --watch {domain} {vdev}` waits for its end; `xl-ext block-pull-abort {domain} {vdev}` ends \
         it, and what was pulled until then stays"
    ))
}

/// Up to which byte an increment goes.
fn until(pull: &Pull, increment: Increment) -> Result<u64> {
    if increment.bytes == 0 {
        return Err(Error::new(
            ErrorKind::InvalidRequest,
            "an increment has at least one byte",
        ));
    }
    Ok(pull.position.saturating_add(increment.bytes).min(pull.size))
}

fn nothing_to_do(
    mut plan: Plan,
    earlier: Option<&Pull>,
    request: &PullRequest,
    disk: &DiskTarget,
    onto: Option<&Backing>,
) -> Result<Plan> {
    let cursor = request.increment.and_then(|increment| increment.cursor);
    if let (Some(earlier), Some(cursor)) = (earlier, cursor) {
        earlier.require_cursor(cursor)?;
    }
    plan.notes.push(match onto {
        None => format!("{disk} stands on nothing: there is nothing to pull"),
        Some(onto) => format!(
            "{disk} stands on {} directly: there is nothing to pull",
            onto.image.display()
        ),
    });
    Ok(plan)
}

/// Says what becomes of the images that the disk does not need any more.
fn note_what_stays(inventory: &Inventory, pull: &Pull, plan: &mut Plan) {
    let mut after = inventory.record.clone();
    after.pulled(&pull.disk.image, pull.onto.as_ref());
    let garbage = after.garbage();
    for below in &pull.from {
        let image = &*below.image;
        let what = image.display();
        let is_state_of = |image: &Path| {
            let snapshots = inventory.record.snapshots.iter();
            let names = snapshots.filter(|snapshot| {
                let mut disks = snapshot.disks.iter();
                disks.any(|proof| after.chain(&proof.target.image).contains(&image))
            });
            names
                .map(|it| format!("'{}'", it.name()))
                .collect::<Vec<_>>()
        };
        let needed_by = is_state_of(image);
        if !needed_by.is_empty() {
            plan.notes.push(format!(
                "{what} stays: snapshot {} needs it",
                needed_by.join(", ")
            ));
        } else if garbage.iter().any(|layer| &*layer.image == image) {
            plan.notes.push(format!(
                "{what} is removed in the end: nothing needs it then"
            ));
        } else if released(inventory, &after, pull).contains(below) {
            plan.notes.push(format!(
                "{what} is removed in the end, unless something stands on it then or has it open"
            ));
        } else if pull.release_base {
            plan.notes
                .push(format!("{what} stays: something else needs it"));
        } else {
            plan.notes.push(format!(
                "{what} stays, and this disk does not need it any more then"
            ));
        }
    }
}
