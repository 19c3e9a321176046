//! Writing outputs.

use std::fs;
use std::io;
use std::path::Path;

/// Writes a file unless it has that content already, so that a build does not repeat what depends on
/// it. Tells whether it has written.
///
/// # Errors
/// When the file cannot be written.
pub fn write_if_changed(path: &Path, content: &str) -> io::Result<bool> {
    if fs::read(path).is_ok_and(|present| present == content.as_bytes()) {
        return Ok(false);
    }
    fs::write(path, content)?;
    Ok(true)
}
