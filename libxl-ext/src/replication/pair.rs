//! The key that two hosts have in common. Who has it may replicate domains to the host, and have them go on there.

use crate::error::{Error, ErrorKind, Result};
use crate::store::{Store, atomic, private_directory};
use std::fmt;
use std::fmt::Write as _;
use std::path::PathBuf;

/// Where keys are in a store. No directory of a domain begins with a dot.
const DIRECTORY: &str = ".pairs";

/// How the text of a key begins: what it is, and in which version.
const FIRST_WORDS: &str = "libxl-ext pair 1";

/// Longest name of a key, in bytes.
const NAME_MAX: usize = 64;

/// Most keys of a host: whoever connects may have any of them, so each is tried.
const KEYS_MAX: usize = 64;

/// Longest text of a key, in bytes.
pub const TEXT_MAX: usize = 256;

/// A key of 32 random bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Key([u8; 32]);

impl Key {
    pub(super) const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// A new one.
    ///
    /// # Errors
    /// If the kernel has no random numbers.
    pub fn random() -> Result<Self> {
        let mut bytes = [0; 32];
        let got = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
            .map_err(|error| Error::io("ask the kernel for random bytes", error))?;
        if got != bytes.len() {
            return Err(Error::new(
                ErrorKind::Io,
                "the kernel gave too few random bytes",
            ));
        }
        Ok(Self(bytes))
    }
}

/// Nobody is to find it in a log.
impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key")
    }
}

/// A key with the name by which both hosts know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// Its name.
    pub name: String,
    /// The key.
    pub key: Key,
}

impl Pair {
    /// A new key of a name.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidRequest`] if the name is none.
    pub fn new(name: &str) -> Result<Self> {
        check_name(name)?;
        Ok(Self {
            name: name.to_owned(),
            key: Key::random()?,
        })
    }

    /// What is to be carried over to the other host. It is a secret.
    pub fn text(&self) -> String {
        let mut text = format!("{FIRST_WORDS} {} ", self.name);
        for byte in self.key.0 {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
        text.push('\n');
        text
    }

    /// Reads such a text.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidRequest`] if it is none.
    pub fn read(text: &[u8]) -> Result<Self> {
        let none = || {
            Error::new(ErrorKind::InvalidRequest, "this is no key of a pair")
                .hint("`xl-ext replication-pair --export FILE` writes one on the other host")
        };
        let text = std::str::from_utf8(text).map_err(|_| none())?;
        let rest = text.strip_prefix(FIRST_WORDS).ok_or_else(none)?;
        let rest = rest.strip_prefix(' ').ok_or_else(none)?;
        let rest = rest.strip_suffix('\n').unwrap_or(rest);
        let (name, digits) = rest.split_once(' ').ok_or_else(none)?;
        check_name(name)?;
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if digits.len() != 64 || !digits.bytes().all(is_digit) {
            return Err(none());
        }
        let mut key = [0; 32];
        for (at, byte) in key.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).map_err(|_| none())?;
        }
        Ok(Self {
            name: name.to_owned(),
            key: Key(key),
        })
    }
}

fn check_name(name: &str) -> Result<()> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    if name.is_empty() || name.len() > NAME_MAX || name.starts_with('.') || !name.bytes().all(fits)
    {
        return Err(Error::new(
            ErrorKind::InvalidRequest,
            format!("{name:?} is no name of a pair"),
        )
        .hint(format!(
            "1 to {NAME_MAX} letters, digits, dashes, underscores and dots, which it does not begin with"
        )));
    }
    Ok(())
}

/// The keys of a host.
#[derive(Clone, Debug)]
pub struct Pairs {
    directory: PathBuf,
}

impl Pairs {
    /// Those in a store.
    pub fn of(store: &Store) -> Self {
        Self {
            directory: store.root().join(DIRECTORY),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Keeps a key.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidRequest`] if there is one of the name and another content; what the file system says.
    pub fn keep(&self, pair: &Pair) -> Result<()> {
        check_name(&pair.name)?;
        match self.find(&pair.name) {
            Ok(known) if known == *pair => return Ok(()),
            Ok(_) => {
                return Err(Error::new(
                    ErrorKind::InvalidRequest,
                    format!("there is another key of the name '{}'", pair.name),
                )
                .hint(format!(
                    "give it another name, or remove {} first",
                    self.path(&pair.name).display()
                )));
            }
            Err(error) if error.kind() == ErrorKind::InvalidRequest => {}
            Err(error) => return Err(error),
        }
        if self.all()?.len() >= KEYS_MAX {
            let what = format!("there are {KEYS_MAX} keys already");
            return Err(Error::new(ErrorKind::InvalidRequest, what)
                .hint(format!("remove one from {}", self.directory.display())));
        }
        private_directory(&self.directory)?;
        atomic::replace(&self.path(&pair.name), pair.text().as_bytes())
    }

    /// The key of a name.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidRequest`] if there is none; [`ErrorKind::Corrupt`] if it is damaged.
    pub fn find(&self, name: &str) -> Result<Pair> {
        check_name(name)?;
        let path = self.path(name);
        let Some(text) = atomic::read_own(&path)? else {
            return Err(Error::new(
                ErrorKind::InvalidRequest,
                format!("there is no key '{name}'"),
            )
            .hint(format!(
                "`xl-ext replication-pair {name}` makes one, and `--import` takes that of the other host"
            )));
        };
        let damaged = || Error::new(ErrorKind::Corrupt, format!("{} is damaged", path.display()));
        let pair = Pair::read(&text).map_err(|error| damaged().because(error))?;
        if pair.name == name {
            Ok(pair)
        } else {
            Err(damaged().because(format!("it is of '{}'", pair.name)))
        }
    }

    /// All keys, in the order of their names.
    ///
    /// # Errors
    /// If they cannot be listed, or one of them is damaged.
    pub fn all(&self) -> Result<Vec<Pair>> {
        let failed = |error| Error::io(format!("list {}", self.directory.display()), error);
        let mut names = Vec::new();
        match std::fs::read_dir(&self.directory) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
            Ok(entries) => {
                for entry in entries {
                    names.push(entry.map_err(failed)?.file_name());
                }
            }
        }
        names.sort();
        let names = names.iter().filter_map(|name| name.to_str());
        let names = names.filter(|name| check_name(name).is_ok());
        names.map(|name| self.find(name)).collect()
    }

    /// The key that is meant: that of the name, or the only one.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidRequest`] if there is none, or several and no name.
    pub fn choose(&self, name: Option<&str>) -> Result<Pair> {
        if let Some(name) = name {
            return self.find(name);
        }
        let mut all = self.all()?;
        match (all.pop(), all.len()) {
            (Some(pair), 0) => Ok(pair),
            (None, _) => Err(Error::new(
                ErrorKind::InvalidRequest,
                "this host has no key of a pair",
            )
            .hint(
                "`xl-ext replication-pair NAME` makes one; `--export` and `--import` carry it over",
            )),
            (Some(_), more) => Err(Error::new(
                ErrorKind::InvalidRequest,
                format!("this host has {} keys", more + 1),
            )
            .hint("say which one: --pair NAME")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_key_is_carried_over_as_text_and_nothing_else_is_taken_for_one() {
        let pair = Pair::new("rack-1").unwrap();
        let text = pair.text();
        assert_eq!(Pair::read(text.as_bytes()).unwrap(), pair);
        assert_eq!(Pair::read(text.trim_end().as_bytes()).unwrap(), pair);
        for bad in [
            String::new(),
            text.replace("pair 1", "pair 2"),
            text.replace("rack-1", "../x"),
            text[..text.len() - 2].to_owned(),
            format!("{text}{text}"),
            text.to_uppercase(),
            text.replace("rack-1 ", "rack-1"),
        ] {
            assert!(Pair::read(bad.as_bytes()).is_err(), "{bad:?}");
        }
        assert!(Pair::new("").is_err() && Pair::new(".x").is_err() && Pair::new("a/b").is_err());
        assert_ne!(Pair::new("rack-1").unwrap(), pair, "it is not random");
        assert!(!format!("{pair:?}").contains(&text[text.len() - 10..text.len() - 1]));
    }

    #[test]
    fn keys_are_private_and_none_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let pairs = Pairs::of(&Store::new(directory.path().join("store")));
        let report = pairs.choose(None).unwrap_err().report();
        assert!(report.contains("replication-pair"), "{report}");
        let one = Pair::new("one").unwrap();
        pairs.keep(&one).unwrap();
        pairs.keep(&one).unwrap();
        assert_eq!(pairs.choose(None).unwrap(), one);
        let refused = pairs.keep(&Pair::new("one").unwrap()).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidRequest);
        assert_eq!(pairs.find("one").unwrap(), one);
        for (path, mode) in [(pairs.path("one"), 0o600), (pairs.directory.clone(), 0o700)] {
            let found = std::fs::metadata(path).unwrap().permissions().mode();
            assert_eq!(found & 0o777, mode);
        }
        pairs.keep(&Pair::new("two").unwrap()).unwrap();
        assert!(
            pairs
                .choose(None)
                .unwrap_err()
                .report()
                .contains("--pair NAME")
        );
        assert_eq!(pairs.choose(Some("one")).unwrap(), one);
        std::fs::copy(pairs.path("one"), pairs.path("three")).unwrap();
        assert_eq!(pairs.find("three").unwrap_err().kind(), ErrorKind::Corrupt);
    }
}
