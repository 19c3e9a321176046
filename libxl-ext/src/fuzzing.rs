//! What the fuzz targets in `tests/fuzz` reach of this crate. It is compiled for them alone.

use crate::error::Result;
use crate::model::disk::ImageFacts;
use crate::model::record::DomainRecord;
use crate::store::Envelope;
use serde_json::Value;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;

/// The first frame of a file, and what follows it.
///
/// # Errors
/// As [`Envelope::open_next`].
pub fn frame(kind: Envelope, bytes: &[u8]) -> Result<(Value, &[u8])> {
    kind.open_next(bytes, Path::new("file"))
}

/// A record as the store takes it, from a whole file.
///
/// # Errors
/// What the store says.
pub fn record(bytes: &[u8]) -> Result<DomainRecord> {
    let record: DomainRecord = Envelope::RECORD.open(bytes, Path::new("domain"))?;
    record.check()?;
    Ok(record)
}

/// How many bytes of a journal are whole entries, and what these come to.
///
/// # Errors
/// What recovery says.
pub fn journal(bytes: &[u8]) -> Result<(usize, String)> {
    crate::exec::read_back(bytes)
}

/// The configuration in a memory image's header.
///
/// # Errors
/// If it is no memory image.
pub fn read_header(image: &mut impl Read) -> Result<String> {
    crate::memory::read_header(image)
}

/// A memory image's header.
///
/// # Errors
/// If the configuration is too long.
pub fn write_header(configuration: &str) -> Result<Vec<u8>> {
    crate::memory::header(configuration)
}

/// What `qemu-img` said.
///
/// # Errors
/// If it is not what it says of an image.
pub fn qemu_img(output: &[u8]) -> serde_json::Result<ImageFacts> {
    crate::port::qemu_img::facts_in(output)
}

/// What is read of a qcow2 image of these bytes.
///
/// # Panics
/// If there is no room for it.
pub fn qcow2(bytes: &[u8]) -> Option<ImageFacts> {
    let mut file = tempfile::NamedTempFile::new_in("/dev/shm").expect("there is room");
    file.write_all(bytes).expect("there is room");
    crate::port::qemu_img::facts_at_a_glance(file.path())
}

/// What a QEMU says that sends `bytes` and closes the connection.
///
/// # Errors
/// What the monitor says.
pub fn qmp(bytes: &[u8]) -> Result<(Value, Vec<Value>)> {
    let (ours, mut qemus) = UnixStream::pair().expect("sockets can be made");
    qemus.write_all(bytes).expect("the buffer holds an input");
    qemus.shutdown(Shutdown::Write).expect("it is connected");
    crate::port::qmp_converse(ours)
}

/// What comes out of a memory image that is told to be of `parts`, each with a checksum that fits; with one pack of
/// `pack_parts` that it may need. It is read in a directory that is given.
///
/// # Errors
/// If it is no image, or its pack no pack.
pub fn packed(
    directory: &Path,
    parts: &[(u32, u32, &[u8])],
    pack_parts: &[(u32, u32, &[u8])],
) -> Result<u64> {
    crate::memory::packed::forged(directory, parts, pack_parts)
}

/// What is read of a file that was taken as one of `xl save`, in pieces of `length` bytes.
///
/// # Errors
/// If it cannot be written or read.
pub fn pack(directory: &Path, bytes: &[u8], length: usize) -> Result<Vec<u8>> {
    crate::memory::packed::there_and_back(directory, bytes, length)
}
