//! What the library and the agent say to each other: one JSON text a line. The library sends an
//! [`Order`] and perhaps [`ABORT`], the agent any number of [`Report`]s, of which the last is
//! [`Report::Done`] or [`Report::Failed`]. The end of the library's side means what `ABORT` means.

use crate::event::Progress;
use crate::model::domain::GuestState;
use crate::plan::DiskChoice;
use crate::types::DomainSnapshot;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The protocol of this version. An agent refuses another one: it was not installed with the library.
pub const VERSION: u32 = 4;

/// The line that asks the agent to stop.
pub const ABORT: &str = "abort";

/// Longest line, in bytes; a list of snapshots is the longest.
pub const LINE_MAX: usize = 64 << 20;

/// What to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Order {
    /// [`VERSION`].
    pub version: u32,
    /// The process that wants it. Its end means what [`ABORT`] means; that of the socket would not do, of
    /// which a child of the application's may have a copy.
    pub application: u32,
    /// Directory of the snapshots; the default one if there is none.
    pub store: Option<PathBuf>,
    /// Name of the domain.
    pub domain: String,
    /// The call.
    pub call: Call,
}

/// The calls, with what they need.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Call {
    /// `libxl_domain_snapshot_create`
    Create {
        /// The name; the time if there is none.
        name: Option<String>,
        /// Words of the user's own.
        description: Option<String>,
        /// Whether the guest runs while most of its memory is written.
        live: bool,
        /// Only the disks, of a domain that is off.
        disk_only: bool,
        /// Where the memory image goes, if not to the store.
        memory_file: Option<PathBuf>,
        /// What is said of single disks.
        disks: Vec<DiskChoice>,
    },
    /// `libxl_domain_snapshot_revert`
    Revert {
        /// The snapshot.
        name: String,
        /// How the guest shall be afterwards; as it was in the snapshot if not said.
        state: Option<GuestState>,
        /// Whether the present state may be lost by it.
        force: bool,
    },
    /// `libxl_domain_snapshot_delete`
    Delete {
        /// The snapshot.
        name: String,
        /// Whether its descendants go with it.
        children: bool,
    },
    /// `libxl_domain_snapshot_list`
    List,
    /// `libxl_domain_managed_save`
    ManagedSave,
    /// `libxl_domain_has_managed_save_image`
    HasManagedSaveImage,
    /// `libxl_domain_managed_save_remove`
    ManagedSaveRemove,
    /// `libxl_domain_managed_start`
    ManagedStart,
    /// `libxl_domain_block_pull`
    Pull {
        /// The disk, by its device or its image.
        disk: String,
        /// Bytes of an increment, and the cursor that it begins with; all of it if there is none.
        increment: Option<(u64, u64)>,
    },
    /// `libxl_domain_block_pull_abort`
    PullAbort {
        /// The disk.
        disk: String,
    },
    /// `libxl_domain_get_block_pull_info`
    PullInfo {
        /// The disk.
        disk: String,
    },
    /// `libxl_ext_evenable_block_pull`
    PullWatch {
        /// The disk.
        disk: String,
    },
}

/// What the agent says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Report {
    /// For the log.
    Log(Level, String),
    /// A step goes on; its name comes with every report, so that any of them can be dropped.
    Progress(String, Progress),
    /// The operation did what it should.
    Done(Answer),
    /// It failed, with libxl's `ERROR_*`; the text is for the log.
    Failed(i32, String),
}

/// How much a log line matters, after `xentoollog_level`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// For whoever looks for a fault.
    Debug,
    /// What is being done.
    Detail,
    /// What a user should know.
    Notice,
    /// What looks wrong.
    Warn,
    /// What failed.
    Error,
}

/// What comes back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// Nothing.
    Nothing,
    /// The snapshot as it was recorded.
    Created(Box<DomainSnapshot>),
    /// All snapshots, parents before children.
    Snapshots(Vec<DomainSnapshot>),
    /// Whether the domain was saved.
    IsSaved(bool),
    /// The number that the domain has now.
    Started(u32),
    /// How far a pull is, if there is or was one.
    Pull(Option<PullAnswer>),
    /// How a pull ended.
    PullEnded(PullEnded),
}

/// How far a pull is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullAnswer {
    /// What the next increment begins with.
    pub cursor: u64,
    /// Where it is, as a cursor.
    pub cur: u64,
    /// Where it ends, as a cursor.
    pub end: u64,
}

/// How a pull ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullEnded {
    /// The domain.
    pub domain: String,
    /// The disk, as it was asked for.
    pub path: String,
    /// How.
    pub status: PullStatus,
    /// Why it failed.
    pub reason: Option<String>,
}

/// How a pull ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PullStatus {
    /// The disk does not need the images below it any more.
    Completed,
    /// It does.
    Failed,
    /// It does, since somebody ended it.
    Aborted,
}
