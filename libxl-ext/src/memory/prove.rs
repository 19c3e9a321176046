//! Proving a file of `xl save` whole, and making one.

use super::cache::{KeptOutOfCache, forget};
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Observer, Progress};
use crate::model::record::MemoryProof;
use crate::store::{atomic, room};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use xxhash_rust::xxh3::Xxh3;

/// How much is read at a time, in bytes.
const CHUNK: usize = 1 << 20;

/// Reads the file at `path` and compares it with what is recorded of it.
///
/// # Errors
/// As [`scan`].
pub(super) fn prove(path: &Path, proof: &MemoryProof, observer: &dyn Observer) -> Result<()> {
    scan(path, proof, observer, |_| Ok(()))
}

/// Makes a new file of what `fill` gives to the function that it is given. One that is not whole is removed.
///
/// # Errors
/// What `fill` says; [`ErrorKind::Io`] and [`ErrorKind::NoSpace`] if it cannot be written, also when there is a file
/// of that name.
pub(super) fn to_new_file(
    to: &Path,
    fill: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()>,
) -> Result<()> {
    let failed = |error| Error::io(format!("write {}", to.display()), error);
    let mut copy = atomic::create_new(to)?;
    let mut kept_out = KeptOutOfCache::new();
    let done = fill(&mut |chunk| {
        room::write_all(&mut copy, chunk).map_err(failed)?;
        kept_out.wrote(&copy, chunk.len());
        Ok(())
    })
    .and_then(|()| copy.sync_all().map_err(failed))
    .and_then(|()| atomic::sync_parent(to));
    forget(&copy);
    if done.is_err() {
        // The file is the one that we created; the failure above is the one to report.
        let _ = std::fs::remove_file(to);
    }
    done
}

/// What a file of which nothing is recorded is known by from now on.
///
/// # Errors
/// [`ErrorKind::Io`] if it cannot be read.
pub(super) fn measure(path: &Path, observer: &dyn Observer) -> Result<MemoryProof> {
    let mut file = atomic::open_own(path)?;
    let unreadable = |error| Error::io(format!("read {}", path.display()), error);
    let bytes = file.metadata().map_err(unreadable)?.len();
    read(path, &mut file, bytes, observer, |_| Ok(()))
}

/// Reads a file and compares it with what is recorded of it; `each` gets its bytes.
///
/// # Errors
/// [`ErrorKind::Corrupt`] if it is another length or content, [`ErrorKind::Io`] if it cannot be read; what `each` says.
pub(super) fn scan(
    path: &Path,
    proof: &MemoryProof,
    observer: &dyn Observer,
    each: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let corrupt = |how: String| {
        Error::new(
            ErrorKind::Corrupt,
            format!("memory image {} {how}", path.display()),
        )
    };
    let unreadable = |error| Error::io(format!("read {}", path.display()), error);
    let mut file: File = atomic::open_own(path)?;
    let length = file.metadata().map_err(unreadable)?.len();
    if length != proof.bytes {
        return Err(corrupt(format!(
            "has {length} bytes instead of {}",
            proof.bytes
        )));
    }
    let read = read(path, &mut file, proof.bytes, observer, each)?;
    if read.xxh3 != proof.xxh3 {
        return Err(corrupt("is damaged: its checksum does not match".into()));
    }
    Ok(())
}

/// Reads a file to its end. `total` is what the progress goes to, in bytes.
fn read(
    path: &Path,
    file: &mut File,
    total: u64,
    observer: &dyn Observer,
    mut each: impl FnMut(&[u8]) -> Result<()>,
) -> Result<MemoryProof> {
    let unreadable = |error| Error::io(format!("read {}", path.display()), error);
    let mut hash = Xxh3::new();
    let mut chunk = vec![0; CHUNK];
    let mut done = 0;
    loop {
        if observer.wants_abort() {
            return Err(Error::new(
                ErrorKind::Aborted,
                "stopped while the memory image was read",
            ));
        }
        let length = file.read(&mut chunk).map_err(unreadable)?;
        if length == 0 {
            break;
        }
        hash.update(&chunk[..length]);
        each(&chunk[..length])?;
        done += length as u64;
        observer.progress(Progress {
            done,
            total,
            bytes: true,
        });
    }
    Ok(MemoryProof::plain(
        done,
        format!("{:032x}", hash.digest128()),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Unobserved;
    use std::fs;

    fn image() -> (tempfile::TempDir, std::path::PathBuf, MemoryProof) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("memory");
        let content = vec![7_u8; CHUNK + 5];
        fs::write(&path, &content).unwrap();
        let xxh3 = format!("{:032x}", xxhash_rust::xxh3::xxh3_128(&content));
        let proof = MemoryProof::plain(content.len() as u64, xxh3);
        (directory, path, proof)
    }

    #[test]
    fn one_changed_byte_or_a_missing_one_is_found() {
        let (_keep, path, proof) = image();
        prove(&path, &proof, &Unobserved).unwrap();
        let mut content = fs::read(&path).unwrap();
        content[CHUNK] ^= 1;
        fs::write(&path, &content).unwrap();
        assert_eq!(
            prove(&path, &proof, &Unobserved).unwrap_err().kind(),
            ErrorKind::Corrupt
        );
        fs::write(&path, &content[1..]).unwrap();
        assert_eq!(
            prove(&path, &proof, &Unobserved).unwrap_err().kind(),
            ErrorKind::Corrupt
        );
    }

    #[test]
    fn a_link_planted_in_its_place_is_refused() {
        let (directory, path, proof) = image();
        let moved = directory.path().join("elsewhere");
        fs::rename(&path, &moved).unwrap();
        std::os::unix::fs::symlink(&moved, &path).unwrap();
        assert!(prove(&path, &proof, &Unobserved).is_err());
    }
}
