//! Which packs are needed and by which images; what nothing needs is removed.
//!
//! Nothing counts references: an image says which blocks it needs, so what is needed is what the images say that are
//! kept. If one of them cannot be read, nobody knows what it needs, and nothing is removed.

use super::needs::Blocks;
use super::pack::{Pack, partial_path, path};
use super::read::needs_of;
use super::unpack::Unpacker;
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Observer, Progress};
use crate::memory::cache::forget;
use crate::model::name::SnapshotId;
use crate::store::{absent_is_fine, atomic};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// What the images that are kept need.
#[derive(Default)]
pub(crate) struct Traced(BTreeMap<Uuid, Vec<(SnapshotId, Blocks)>>);

/// What is damaged in a pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Damage {
    /// The pack.
    pub(crate) pack: SnapshotId,
    /// The block; none if it is the pack as a whole, or its index.
    pub(crate) block: Option<u64>,
    /// The snapshots whose memory cannot be restored for it, in the order in which they were given.
    pub(crate) hurts: Vec<SnapshotId>,
    /// What was found, for a person.
    pub(crate) report: String,
}

impl Traced {
    /// Asks all of these, and says which could not be asked. As long as there is one, it is not known what is needed.
    pub(crate) fn ask(images: &[(SnapshotId, PathBuf)]) -> (Self, Vec<(SnapshotId, Error)>) {
        let mut traced = Self::default();
        let mut silent = Vec::new();
        for (id, image) in images {
            match needs_of(image) {
                Ok(needs) => traced.add(*id, needs),
                Err(error) => silent.push((*id, error)),
            }
        }
        (traced, silent)
    }

    fn add(&mut self, id: SnapshotId, needs: Vec<(Uuid, Blocks)>) {
        for (pack, blocks) in needs {
            self.0.entry(pack).or_default().push((id, blocks));
        }
    }

    /// Asks all images that are kept. Of each, no more is read than what it needs.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`], [`ErrorKind::NewerVersion`] or [`ErrorKind::Io`] for the first that cannot be asked.
    pub(crate) fn needs(images: &[(SnapshotId, PathBuf)]) -> Result<Self> {
        let mut traced = Self::default();
        for (id, image) in images {
            traced.add(*id, needs_of(image)?);
        }
        Ok(traced)
    }

    /// The packs that some image needs. A pack has the identity of the snapshot with which it was written, be that kept
    /// or not.
    pub(crate) fn packs(&self) -> impl Iterator<Item = SnapshotId> {
        self.0.keys().copied().map(SnapshotId)
    }

    /// The images that need a block of a pack, or the pack at all.
    pub(crate) fn hurt_by(&self, pack: SnapshotId, block: Option<u64>) -> Vec<SnapshotId> {
        let needing = self.0.get(&pack.0).into_iter().flatten();
        needing
            .filter(|(_, blocks)| block.is_none_or(|block| blocks.contains(block)))
            .map(|(id, _)| *id)
            .collect()
    }

    /// Looks at every block of all packs that are needed, and says which are damaged and whom that hurts.
    ///
    /// # Errors
    /// [`ErrorKind::Aborted`]; that something cannot be read is what it looks for.
    pub(crate) fn damages(&self, packs: &Path, observer: &dyn Observer) -> Result<Vec<Damage>> {
        let mut damages = Vec::new();
        let (mut unpacker, mut pages) = (Unpacker::default(), Vec::new());
        let total = self.0.len() as u64;
        for (done, id) in (1..).zip(self.packs()) {
            let mut note = |block: Option<u64>, error: &Error| {
                damages.push(Damage {
                    pack: id,
                    block,
                    hurts: self.hurt_by(id, block),
                    report: error.report(),
                });
            };
            match Pack::open(packs, id.0, |_| ()) {
                Err(error) => note(None, &error),
                Ok(pack) => {
                    for block in 0..pack.blocks() {
                        if observer.wants_abort() {
                            let context = "stopped while the packs were read";
                            return Err(Error::new(ErrorKind::Aborted, context));
                        }
                        if let Err(error) = pack.block(block, &mut unpacker, &mut pages) {
                            note(Some(block), &error);
                        }
                    }
                }
            }
            observer.progress(Progress {
                done,
                total,
                bytes: false,
            });
        }
        Ok(damages)
    }

    /// Each pack that some image needs, with these images, in the order in which they were given.
    pub(crate) fn users(&self) -> impl Iterator<Item = (SnapshotId, Vec<SnapshotId>)> {
        self.0.iter().map(|(pack, needing)| {
            let images = needing.iter().map(|(id, _)| *id);
            (SnapshotId(*pack), images.collect())
        })
    }

    /// Removes the packs that none of the images needs, and those that were not completed. For the holder of the
    /// domain's lock alone, while nothing is written, with all images of the domain asked. Returns how many went.
    /// Files that are not ours stay.
    ///
    /// # Errors
    /// [`ErrorKind::Io`].
    pub(crate) fn collect(&self, packs: &Path) -> Result<usize> {
        let mut removed = 0;
        // Not flushed: one that a power cut brings back is collected the next time.
        for (id, is_partial) in files_in(packs)? {
            if !is_partial && self.0.contains_key(&id) {
                continue;
            }
            let path = if is_partial {
                partial_path(packs, id)
            } else {
                path(packs, id)
            };
            remove(&path)?;
            removed += 1;
        }
        remove_if_empty(packs)?;
        Ok(removed)
    }
}

/// Removes the packs that none of these images needs, as [`Traced::collect`] does. If it cannot be known which they are,
/// all stay, and why is returned.
///
/// # Errors
/// [`ErrorKind::Io`].
pub(crate) fn collect(images: &[(SnapshotId, PathBuf)], packs: &Path) -> Result<Option<String>> {
    let why = match Traced::needs(images) {
        Ok(traced) => return traced.collect(packs).map(|_| None),
        Err(why) => why.report(),
    };
    let left = format!("no pack is removed, since it is not known which ones are needed: {why}");
    tracing::warn!("{left}");
    Ok(Some(left))
}

/// Makes the pack durable that was written with a snapshot's image, and gives it its name; before that is done with the
/// image, which is nothing without it. If all its pages were there already there is none. Doing it again is no error.
///
/// # Errors
/// [`ErrorKind::Io`] or [`ErrorKind::NoSpace`], if what was written did not reach the disk.
pub(crate) fn seal(packs: &Path, id: SnapshotId) -> Result<()> {
    let partial = partial_path(packs, id.0);
    if !atomic::is_there(&partial) {
        return Ok(());
    }
    atomic::sync_file(&partial)?;
    forget(atomic::open_own(&partial)?);
    fs::rename(&partial, path(packs, id.0))
        .map_err(|error| Error::io(format!("rename {}", partial.display()), error))?;
    atomic::sync_directory(packs)
}

/// Where a complete pack is.
pub(crate) fn path_of(packs: &Path, id: SnapshotId) -> PathBuf {
    path(packs, id.0)
}

/// Removes the pack of a snapshot that is taken back, so that no other image needs it. Doing it again is no error.
///
/// # Errors
/// [`ErrorKind::Io`].
pub(crate) fn discard(packs: &Path, id: SnapshotId) -> Result<()> {
    let files = [partial_path(packs, id.0), path(packs, id.0)];
    if files.iter().any(|file| atomic::is_there(file)) {
        files.iter().try_for_each(|file| remove(file))?;
        atomic::sync_directory(packs)?;
    }
    remove_if_empty(packs)
}

/// A pack in the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PackFile {
    /// The pack.
    pub(crate) id: SnapshotId,
    /// Where it is.
    pub(crate) path: PathBuf,
    /// Whether it was not completed.
    pub(crate) is_partial: bool,
    /// Bytes of the file.
    pub(crate) bytes: u64,
}

/// All packs of a directory, which need not be there.
///
/// # Errors
/// [`ErrorKind::Io`].
pub(crate) fn list(packs: &Path) -> Result<Vec<PackFile>> {
    let files = files_in(packs)?.into_iter();
    files
        .map(|(id, is_partial)| {
            let path = if is_partial {
                partial_path(packs, id)
            } else {
                path(packs, id)
            };
            let found = path.symlink_metadata();
            let found =
                found.map_err(|error| Error::io(format!("look at {}", path.display()), error))?;
            Ok(PackFile {
                id: SnapshotId(id),
                is_partial,
                bytes: found.len(),
                path,
            })
        })
        .collect()
}

/// The complete packs of a directory, in the order of their identities.
pub(super) fn packs_in(packs: &Path) -> Result<Vec<Uuid>> {
    let files = files_in(packs)?.into_iter();
    Ok(files
        .filter_map(|(id, is_partial)| (!is_partial).then_some(id))
        .collect())
}

/// Identities of all packs, and whether each is being written.
fn files_in(packs: &Path) -> Result<Vec<(Uuid, bool)>> {
    let failed = |error| Error::io(format!("list {}", packs.display()), error);
    let entries = match fs::read_dir(packs) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let name = entry.map_err(failed)?.file_name();
        let Some(name) = name.to_str() else { continue };
        let whole = name.strip_suffix(".partial");
        let Ok(id) = Uuid::parse_str(whole.unwrap_or(name)) else {
            continue;
        };
        // An identity can be written in other ways too, which are not ours.
        if whole.unwrap_or(name) == id.to_string() {
            files.push((id, whole.is_some()));
        }
    }
    files.sort_unstable();
    Ok(files)
}

/// A domain without packs has no directory of them.
fn remove_if_empty(packs: &Path) -> Result<()> {
    match fs::remove_dir(packs) {
        Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty => Ok(()),
        removed => absent_is_fine(removed)
            .map_err(|error| Error::io(format!("remove {}", packs.display()), error)),
    }
}

fn remove(path: &Path) -> Result<()> {
    absent_is_fine(fs::remove_file(path))
        .map_err(|error| Error::io(format!("remove {}", path.display()), error))
}
