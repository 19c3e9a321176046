//! Names that a user gives, and what files are called because of them.

use crate::error::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::fmt;
use uuid::Uuid;

/// Longest name of a snapshot, in bytes of UTF-8.
pub const SNAPSHOT_NAME_MAX: usize = 128;

/// Longest file name that we make of a domain's name before it is shortened, in bytes.
const DIRECTORY_NAME_MAX: usize = 200;

/// A snapshot's name: 1 to 128 bytes of UTF-8 without `/`, control characters or a leading dot.
///
/// It is shown, compared and stored; it is never part of a path, nor an argument of a command.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SnapshotName(String);

impl SnapshotName {
    /// Checks `name` against the rules.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidRequest`] that says which rule is broken.
    pub fn new(name: impl Into<String>) -> Result<Self> {
        let name = name.into();
        let complaint = if name.is_empty() {
            "is empty"
        } else if name.len() > SNAPSHOT_NAME_MAX {
            "is longer than 128 bytes"
        } else if name.starts_with('.') {
            "starts with a dot"
        } else if name.contains('/') {
            "contains a slash"
        } else if name.chars().any(char::is_control) {
            "contains a control character"
        } else {
            return Ok(Self(name));
        };
        let shown: String = name.chars().take(40).collect();
        Err(Error::new(
            ErrorKind::InvalidRequest,
            format!("snapshot name {shown:?} {complaint}"),
        ))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SnapshotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for SnapshotName {
    type Error = Error;
    fn try_from(name: String) -> Result<Self> {
        Self::new(name)
    }
}

impl From<SnapshotName> for String {
    fn from(name: SnapshotName) -> Self {
        name.0
    }
}

/// The identity of a snapshot: what files and internal snapshots are called by.
///
/// It is random, so an image that carries it can only hold the disk state that belongs to the memory
/// image of the same identity. Renaming a snapshot does not touch it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SnapshotId(pub Uuid);

impl SnapshotId {
    /// A new identity.
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }

    /// The identity of which a directory or file has the name, in the one form in which that is written.
    pub fn of_file_name(name: &OsStr) -> Option<Self> {
        let text = name.to_str()?;
        let id = Self(Uuid::try_parse(text).ok()?);
        (id.to_string() == text).then_some(id)
    }

    /// The name of the internal qcow2 snapshot that holds the disk state.
    ///
    /// `qemu-img` takes a name of digits for a snapshot number, hence the prefix.
    pub fn tag(self) -> String {
        format!("xl-ext-{}", self.0)
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The directory name under which a domain's snapshots are kept: the domain's name with every byte
/// outside `[A-Za-z0-9_-]` (and inner dots) escaped as `%XX`; a long one is cut and closed with a hash.
pub fn domain_directory(domain: &str) -> String {
    use fmt::Write as _;
    let mut escaped = String::with_capacity(domain.len());
    for (at, byte) in domain.bytes().enumerate() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-') || (byte == b'.' && at > 0) {
            escaped.push(char::from(byte));
        } else {
            let _ = write!(escaped, "%{byte:02X}");
        }
    }
    if escaped.len() > DIRECTORY_NAME_MAX {
        escaped.truncate(DIRECTORY_NAME_MAX);
        let _ = write!(
            escaped,
            "%-{:016x}",
            xxhash_rust::xxh3::xxh3_64(domain.as_bytes())
        );
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_that_could_leave_a_directory_or_a_line_are_refused() {
        for bad in [
            "", ".", "..", ".hidden", "a/b", "../x", "a\nb", "a\0b", "\u{7f}",
        ] {
            assert!(SnapshotName::new(bad).is_err(), "{bad:?} was taken");
        }
        assert!(SnapshotName::new("x".repeat(129)).is_err());
        assert!(
            SnapshotName::new("é".repeat(65)).is_err(),
            "the limit counts bytes"
        );
        for good in ["1", "-rf", "a b", "été", "x".repeat(128).as_str()] {
            assert!(SnapshotName::new(good).is_ok(), "{good:?} was refused");
        }
    }

    #[test]
    fn names_in_any_script_are_names_and_nothing_else() {
        for name in [
            "-rf",
            "--force",
            "$(reboot)",
            "a;b",
            "%2e%2e",
            "\\..\\",
            "~root",
            "\u{5e9}\u{5dc}\u{5d5}\u{5dd}",
            "\u{645}\u{631}\u{62d}\u{628}\u{627}",
            "e\u{301}\u{323}",
            "\u{65e5}\u{672c}\u{8a9e}",
            "\u{1f469}\u{200d}\u{1f680}",
        ] {
            let taken = SnapshotName::new(name).unwrap();
            assert_eq!(taken.as_str(), name, "it is kept as it was given");
            let json = serde_json::to_string(&taken).unwrap();
            assert_eq!(serde_json::from_str::<SnapshotName>(&json).unwrap(), taken);
        }
        // The same letters in another form are another name; nothing is normalised.
        let forms = ["\u{e9}", "e\u{301}"].map(|name| SnapshotName::new(name).unwrap());
        assert_ne!(forms[0], forms[1]);
        for name in [
            "x".repeat(10_000),
            "\u{301}".repeat(5_000),
            "../".repeat(3_333),
        ] {
            let report = SnapshotName::new(name.as_str()).unwrap_err().report();
            assert!(report.len() < 1000, "a long name is not repeated in full");
            let json = serde_json::to_string(&name).unwrap();
            assert!(serde_json::from_str::<SnapshotName>(&json).is_err());
        }
    }

    #[test]
    fn a_tag_is_never_a_snapshot_number() {
        assert!(SnapshotId::random().tag().starts_with("xl-ext-"));
    }

    proptest! {
        #[test]
        fn a_domain_directory_is_one_safe_component(name in ".{1,300}") {
            let directory = domain_directory(&name);
            prop_assert!(!directory.is_empty() && directory.len() <= 255);
            prop_assert!(!directory.contains('/') && !directory.starts_with('.'));
            prop_assert!(directory.is_ascii());
        }

        #[test]
        fn different_domains_have_different_directories(a in ".{1,300}", b in ".{1,300}") {
            prop_assume!(a != b);
            prop_assert_ne!(domain_directory(&a), domain_directory(&b));
        }
    }
}
