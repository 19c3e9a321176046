//! Disks that get what they lack from the images below them, until they stand on less or on nothing: block pull.
//!
//! ```text
//! begun -> under way -> completed | failed | aborted
//!    |        | ^
//!    |        v |            increments: the job stands still between two of them
//!    +------> held
//! under way, held -> interrupted    the QEMU that worked on it is gone; what was pulled stays
//! under way -> copied               of a domain that is off: only the image's header is left to be changed
//! ```
//! The last pull of each disk stays in the record, so that who comes later learns how it ended.

use crate::error::{Error, ErrorKind, Result};
use crate::model::disk::DiskTarget;
use crate::model::domain::DomainLife;
use crate::model::layer::Backing;
use crate::model::record::DomainRecord;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::Path;
use uuid::Uuid;

/// One pull of one disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pull {
    /// Its identity; cursors carry a part of it.
    pub id: Uuid,
    /// The disk.
    pub disk: DiskTarget,
    /// The images that the disk does not need afterwards, the uppermost first.
    pub from: Vec<Backing>,
    /// What the disk stands on then; none for nothing.
    pub onto: Option<Backing>,
    /// Whether it goes on only when it is told to, by a step each time.
    pub increments: bool,
    /// Most bytes per second that are copied; 0 for as many as can be.
    pub bandwidth: u64,
    /// What becomes of it if something cannot be read or written.
    pub on_error: OnError,
    /// Whether the images that nobody needs any more then are removed, also those that are not ours.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub release_base: bool,
    /// The domain's other disks when it was asked for, which may stand on the same images; none where nobody knew them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beside: Option<Vec<Backing>>,
    /// Length of the disk, in bytes.
    pub size: u64,
    /// Up to which byte everything is there: the end of the last increment, or where it was when it ended. Of one that goes on
    /// by itself only QEMU knows.
    pub position: u64,
    /// The domain whose QEMU works on it; none for one that is off.
    pub life: Option<DomainLife>,
    /// How far it is.
    pub state: PullState,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When it began, in seconds since 1970-01-01 00:00 UTC.
    pub began_at: u64,
    /// When it ended, in the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<u64>,
}

/// How far a pull is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PullState {
    /// QEMU works on it by itself.
    UnderWay,
    /// QEMU's job stands still until the next increment is asked for.
    Held,
    /// Everything is in the image, whose header does not say so yet; nobody has it open.
    Copied,
    /// Nobody works on it, because the QEMU that did is gone. The next pull goes on with it.
    Interrupted,
    /// Nothing of it is left to do.
    Completed,
    /// QEMU gave up. What was pulled until then stays, and the next pull goes on with it.
    Failed,
    /// Somebody ended it. What was pulled until then stays.
    Aborted,
}

impl fmt::Display for PullState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UnderWay => "running",
            Self::Held => "paused",
            Self::Copied => "copied",
            Self::Interrupted => "interrupted",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Aborted => "aborted",
        })
    }
}

/// A part of a disk, and which image of its chain it is read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Extent {
    /// Where it begins, in bytes of the disk.
    pub start: u64,
    /// Its length in bytes.
    pub length: u64,
    /// The image, 0 for the disk itself; where none holds it, the one at which that was seen.
    pub depth: usize,
    /// Whether an image holds it; old versions of qemu-img do not say.
    #[serde(default = "is_present")]
    pub present: bool,
    /// Whether it reads as zeros.
    pub zero: bool,
}

fn is_present() -> bool {
    true
}

/// What becomes of a pull if an image cannot be read or written, a full disk for one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnError {
    /// It fails.
    #[default]
    Fail,
    /// It stands still until it is told to go on.
    Pause,
}

/// Cursors are bytes of the disk in units of this; what is below carries the pull's identity, so that one of another
/// pull is known as such.
const CURSOR_UNIT: u64 = 1 << 12;

/// What QEMU copies at a time (block/stream.c, `STREAM_CHUNK`), in bytes.
pub(crate) const CHUNK: u64 = 512 << 10;

/// In bytes per second: so slow that a job sleeps after its first chunk until it is told otherwise.
pub(crate) const ONE_CHUNK: u64 = 1;

impl Pull {
    /// How fast a job begins, in bytes per second; 0 for as fast as can be. What belongs to increments waits after its first
    /// chunk, since nobody looks how far it is in the first instants.
    pub(crate) fn first_speed(&self) -> u64 {
        if self.increments {
            ONE_CHUNK
        } else {
            self.bandwidth
        }
    }

    /// The images that the disk consists of before it, as far as it is concerned with them.
    pub(crate) fn chain(&self) -> Vec<Backing> {
        let own = Backing::from(&self.disk);
        let below = self.from.iter().chain(&self.onto).cloned();
        [own].into_iter().chain(below).collect()
    }

    /// Whether a disk that is read as these parts say reads the same without the images that it was pulled out of.
    pub(crate) fn has_all(&self, extents: &[Extent]) -> bool {
        end_of(extents) >= self.size && extents.iter().all(|extent| self.has(extent))
    }

    /// Up to which byte it does so.
    pub(crate) fn has_up_to(&self, extents: &[Extent]) -> u64 {
        let lacking = extents.iter().find(|extent| !self.has(extent));
        let end = lacking.map_or_else(|| end_of(extents), |it| it.start);
        end.min(self.size)
    }

    fn has(&self, extent: &Extent) -> bool {
        let from = self.from.len();
        match (&self.onto, extent.depth) {
            (_, 0) => true,
            // What no image below holds is zeros without them too.
            (None, _) => extent.zero,
            // Beyond the end of the image that it then stands on.
            (Some(_), depth) if depth == from => !extent.present && extent.zero,
            (Some(_), depth) => depth > from,
        }
    }

    /// Whether a QEMU has, or may have, a job for it.
    pub fn is_under_way(&self) -> bool {
        matches!(
            self.state,
            PullState::UnderWay | PullState::Held | PullState::Copied
        )
    }

    /// Whether the next pull of the same disk goes on with it, rather than being another one.
    pub fn can_go_on(&self) -> bool {
        self.is_under_way() || matches!(self.state, PullState::Interrupted | PullState::Failed)
    }

    /// The cursor of a position in it; of its beginning it is 0, whichever pull it is.
    pub fn cursor(&self, position: u64) -> u64 {
        match position {
            0 => 0,
            position => position.next_multiple_of(CURSOR_UNIT) | self.tag(),
        }
    }

    /// The cursor with which it is at its end.
    pub fn last_cursor(&self) -> u64 {
        self.cursor(self.size)
    }

    fn tag(&self) -> u64 {
        u64::from(self.id.as_fields().0) % CURSOR_UNIT
    }

    /// Refuses a cursor that is not the one that the last increment left.
    ///
    /// # Errors
    /// [`ErrorKind::Stale`].
    pub fn require_cursor(&self, cursor: u64) -> Result<()> {
        if cursor == self.cursor(self.position) {
            return Ok(());
        }
        let what = if cursor % CURSOR_UNIT == self.tag() {
            "is an old one"
        } else {
            "belongs to another pull"
        };
        Err(Error::new(
            ErrorKind::Stale,
            format!("the cursor {cursor} of {} {what}", self.disk),
        )
        .hint(format!("it is at {}", self.cursor(self.position))))
    }
}

impl DomainRecord {
    /// The last pull of an image.
    pub fn pull_of(&self, image: &Path) -> Option<&Pull> {
        self.pulls.iter().find(|pull| &*pull.disk.image == image)
    }

    /// A pull has begun, instead of the last one of the same device or image.
    pub fn begin_pull(&mut self, pull: &Pull) {
        self.pulls.retain(|other| {
            other.disk.vdev != pull.disk.vdev && other.disk.image != pull.disk.image
        });
        self.pulls.push(pull.clone());
    }

    /// A disk has got everything from the images between it and `onto`, on which it stands now.
    pub fn pulled(&mut self, disk: &Path, onto: Option<&Backing>) {
        let below = |layer: &&crate::model::layer::Layer| layer.backing.as_ref() == onto;
        let chain = self.chain(disk);
        let mut layers = chain.iter().filter_map(|image| self.layer(image));
        // Whoever stood on it knows when it was last written to.
        let written = onto
            .and_then(|_| layers.find(below))
            .and_then(|layer| layer.below_written);
        if let Some(layer) = self.layers.iter_mut().find(|layer| &*layer.image == disk) {
            layer.backing = onto.cloned();
            layer.below_written = written;
        }
    }
}

/// Up to which byte the parts of a disk go.
fn end_of(extents: &[Extent]) -> u64 {
    let last = extents.last();
    last.map_or(0, |it| it.start.saturating_add(it.length))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::model::disk::{ImageFormat, Stamp};
    use crate::model::layer::Layer;

    fn backing(image: &str) -> Backing {
        Backing {
            image: Path::new(image).into(),
            format: ImageFormat::Qcow2,
        }
    }

    pub(crate) fn pull(image: &str, from: &[&str]) -> Pull {
        Pull {
            id: Uuid::from_u128(0x1234_5678_0000_0000_0000_0000_0000_0001),
            disk: DiskTarget {
                vdev: "xvda".into(),
                image: Path::new(image).into(),
                format: ImageFormat::Qcow2,
            },
            from: from.iter().map(|image| backing(image)).collect(),
            onto: None,
            increments: false,
            bandwidth: 0,
            on_error: OnError::Fail,
            release_base: false,
            beside: None,
            size: (64 << 20) + 512,
            position: 0,
            life: None,
            state: PullState::UnderWay,
            reason: None,
            began_at: 0,
            ended_at: None,
        }
    }

    #[test]
    fn a_cursor_is_of_one_pull_and_of_one_moment() {
        let mut one = pull("/i/a", &["/i/b"]);
        assert_eq!(one.cursor(0), 0);
        one.require_cursor(0).unwrap();
        one.position = 3 << 20;
        let cursor = one.cursor(one.position);
        one.require_cursor(cursor).unwrap();
        assert!(cursor >= one.position && cursor < one.last_cursor());
        let said = |pull: &Pull, cursor| pull.require_cursor(cursor).unwrap_err().report();
        assert!(said(&one, one.cursor(1 << 20)).contains("is an old one"));
        assert!(said(&one, 0).contains("belongs to another pull"));
        let mut other = one.clone();
        other.id = Uuid::from_u128(7 << 96);
        assert!(said(&other, cursor).contains("belongs to another pull"));
    }

    #[test]
    fn what_was_pulled_stands_on_what_was_asked_and_knows_its_last_write() {
        let stamp = |seconds| {
            Some(Stamp {
                seconds,
                nanoseconds: 0,
            })
        };
        let layer = |image: &str, on: &str, written| Layer {
            vdev: "xvda".into(),
            image: Path::new(image).into(),
            backing: Some(backing(on)),
            below_written: stamp(written),
            base: backing("/i/base"),
            active: image == "/i/c",
            merging: None,
        };
        let mut record = DomainRecord::new("g");
        let layers = [
            layer("/i/a", "/i/base", 1),
            layer("/i/b", "/i/a", 2),
            layer("/i/c", "/i/b", 3),
        ];
        record.add_layers(&layers);
        let mut other = record.clone();
        record.pulled(Path::new("/i/c"), Some(&backing("/i/a")));
        record.pulled(Path::new("/i/c"), Some(&backing("/i/a")));
        let pulled = record.layer(Path::new("/i/c")).unwrap();
        assert_eq!(pulled.backing, Some(backing("/i/a")));
        assert_eq!(pulled.below_written, stamp(2));
        other.pulled(Path::new("/i/c"), None);
        let pulled = other.layer(Path::new("/i/c")).unwrap();
        assert_eq!((&pulled.backing, pulled.below_written), (&None, None));
    }

    #[test]
    fn all_is_there_if_nothing_is_read_from_between() {
        let mut one = pull("/i/a", &["/i/b", "/i/c"]);
        let extent = |depth, present, zero| Extent {
            start: 0,
            length: (64 << 20) + 512,
            depth,
            present,
            zero,
        };
        let has = |pull: &Pull, depth, present, zero| pull.has_all(&[extent(depth, present, zero)]);
        assert!(has(&one, 0, true, false) && has(&one, 2, false, true));
        assert!(!has(&one, 1, true, false) && !has(&one, 2, true, false));
        assert!(has(&one, 1, true, true), "zeros are zeros");
        one.onto = Some(backing("/i/d"));
        assert!(has(&one, 3, true, false) && has(&one, 4, false, true));
        assert!(has(&one, 2, false, true), "the base is shorter");
        assert!(!has(&one, 1, false, true) && !has(&one, 2, true, true));
        let mut short = extent(0, true, false);
        short.length -= 1;
        assert!(!one.has_all(&[short]) && !one.has_all(&[]));
    }

    #[test]
    fn it_is_as_far_as_nothing_is_read_from_between() {
        let one = pull("/i/a", &["/i/b"]);
        let parts = |holders: &[(usize, bool)]| -> Vec<_> {
            let starts = (0..).map(|number| number * (16 << 20));
            let parts = starts.zip(holders);
            parts
                .map(|(start, &(depth, zero))| Extent {
                    start,
                    length: 16 << 20,
                    depth,
                    present: !zero,
                    zero,
                })
                .collect()
        };
        let up_to = |holders: &[(usize, bool)]| one.has_up_to(&parts(holders)) >> 20;
        assert_eq!(up_to(&[(1, false), (0, false)]), 0);
        assert_eq!(up_to(&[(0, false), (1, true), (1, false), (0, false)]), 32);
        assert_eq!(up_to(&[(0, false); 2]), 32, "no more is known");
        assert_eq!(one.has_up_to(&parts(&[(0, false); 5])), one.size);
        assert_eq!(one.has_up_to(&[]), 0);
    }

    #[test]
    fn a_disk_has_one_pull() {
        let mut record = DomainRecord::new("g");
        record.begin_pull(&pull("/i/a", &["/i/b"]));
        let mut next = pull("/i/c", &["/i/a"]);
        record.begin_pull(&next);
        assert_eq!(record.pulls, [next.clone()]);
        next.disk.vdev = "xvdb".into();
        record.begin_pull(&next);
        assert_eq!(record.pulls, [next], "the image is another device's now");
    }
}
