//! The steps of a pull, and what it changes in the record.

use crate::model::domain::DomainLife;
use crate::model::layer::Backing;
use crate::model::pull::{Pull, PullState};
use crate::plan::Step;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A step of a pull.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum PullStep {
    /// Let the domain's QEMU work on it.
    Start {
        /// The domain.
        life: DomainLife,
        /// The pull.
        pull: Pull,
        /// Whether there is no job for it yet; else it goes on.
        anew: bool,
        /// How fast that went on by itself until now, in bytes per second; none if it stood still.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        was: Option<u64>,
    },
    /// Wait until everything up to a byte of the disk is there.
    Await {
        /// The domain.
        life: DomainLife,
        /// The pull.
        pull: Pull,
        /// The byte.
        until: u64,
    },
    /// Let the job stand still.
    Hold {
        /// The domain.
        life: DomainLife,
        /// The pull.
        pull: Pull,
    },
    /// Let the job go on by itself as it did.
    GoOn {
        /// The domain.
        life: DomainLife,
        /// The pull.
        pull: Pull,
        /// Most bytes per second that it copies; 0 for as many as can be.
        speed: u64,
    },
    /// End the job, if there is one, and forget it.
    End {
        /// The domain.
        life: DomainLife,
        /// The pull.
        pull: Pull,
    },
    /// Copy what is below the disk of a domain that is off, up to a byte of it or all.
    CopyOff {
        /// The pull.
        pull: Pull,
        /// All images that the disk consists of, the uppermost first.
        chain: Vec<Backing>,
        /// The byte.
        until: Option<u64>,
    },
    /// Let the image, which has everything, stand on no more than it needs.
    Complete {
        /// The domain, if its QEMU has the image open.
        life: Option<DomainLife>,
        /// The pull.
        pull: Pull,
    },
    /// Remove images that are not ours, that the disk does not need any more and that nobody has open.
    Release {
        /// The pull.
        pull: Pull,
        /// The images.
        images: Vec<Backing>,
    },
}

/// What a pull changes in the record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "kebab-case")]
pub enum PullChange {
    /// QEMU works on it.
    Begun {
        /// The pull.
        pull: Pull,
    },
    /// An increment is done, or all is copied. How far it is, is measured.
    Advanced {
        /// The pull.
        pull: Pull,
    },
    /// Nobody works on it any more.
    Ended {
        /// The pull.
        pull: Pull,
        /// How it ended.
        state: PullState,
        /// Why.
        reason: Option<String>,
        /// When, in seconds since 1970-01-01 00:00 UTC.
        at: u64,
    },
}

impl PullStep {
    /// The steps that take it back.
    pub(in crate::plan) fn taken_back_by(&self) -> Vec<Step> {
        let step = match self {
            Self::Start {
                life,
                pull,
                anew,
                was,
            } => {
                let (life, pull) = (*life, pull.clone());
                match *was {
                    _ if *anew => Self::End { life, pull },
                    Some(speed) => Self::GoOn { life, pull, speed },
                    None => Self::Hold { life, pull },
                }
            }
            Self::Await { .. }
            | Self::Hold { .. }
            | Self::GoOn { .. }
            | Self::End { .. }
            | Self::CopyOff { .. }
            | Self::Complete { .. }
            | Self::Release { .. } => return Vec::new(),
        };
        vec![Step::Pull { step }]
    }

    /// The pull that it is about.
    pub(crate) fn pull(&self) -> &Pull {
        match self {
            Self::Start { pull, .. }
            | Self::Await { pull, .. }
            | Self::Hold { pull, .. }
            | Self::GoOn { pull, .. }
            | Self::End { pull, .. }
            | Self::CopyOff { pull, .. }
            | Self::Complete { pull, .. }
            | Self::Release { pull, .. } => pull,
        }
    }
}

/// Where a disk stands afterwards.
struct Onto<'a>(Option<&'a Backing>);

impl fmt::Display for Onto<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(onto) => write!(f, "{}", onto.image.display()),
            None => f.write_str("nothing"),
        }
    }
}

impl fmt::Display for PullStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let disk = &self.pull().disk;
        match self {
            Self::Start { life, anew, .. } => {
                let how = if *anew { "copies" } else { "goes on copying" };
                write!(
                    f,
                    "see that domain {}'s QEMU {how} what {disk} lacks",
                    life.domid
                )
            }
            Self::Await { until, .. } => {
                write!(f, "wait until {disk} has its first {until} bytes")
            }
            Self::Hold { .. } => write!(f, "let the pull of {disk} stand still"),
            Self::GoOn { .. } => write!(f, "let the pull of {disk} go on as before"),
            Self::End { .. } => write!(f, "end the pull of {disk}"),
            Self::CopyOff { until, .. } => {
                write!(f, "copy what {disk} lacks")?;
                match until {
                    Some(until) => write!(f, " of its first {until} bytes"),
                    None => Ok(()),
                }
            }
            Self::Complete { pull, .. } => {
                write!(f, "let {disk} stand on {}", Onto(pull.onto.as_ref()))
            }
            Self::Release { images, .. } => {
                f.write_str("remove, unless something stands on them or has them open, ")?;
                let images: Vec<_> = images.iter().map(|it| it.image.display()).collect();
                for (at, image) in images.iter().enumerate() {
                    write!(f, "{}{image}", if at == 0 { "" } else { ", " })?;
                }
                Ok(())
            }
        }
    }
}

impl fmt::Display for PullChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Begun { pull } => {
                write!(f, "record that {} is being pulled", pull.disk)
            }
            Self::Advanced { pull } => {
                write!(f, "record how far the pull of {} is", pull.disk)
            }
            Self::Ended {
                pull,
                state: PullState::Completed,
                ..
            } => {
                let onto = Onto(pull.onto.as_ref());
                write!(f, "record that {} stands on {onto}", pull.disk)
            }
            Self::Ended { pull, state, .. } => {
                write!(f, "record that the pull of {} is {state}", pull.disk)
            }
        }
    }
}
