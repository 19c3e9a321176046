//! `xl-ext` under the name `xl`: the commands of ours, and for everything else the real `xl`, in our place, so
//! that arguments, exit status, terminal and signals are its own. Only `create` gets a word more where the
//! disks that the configuration file names have layers on top of them.

mod disks;
pub(crate) mod dry_run;
mod real;

pub(crate) use disks::specification_of;

use disks::ForCreate;
use libxl_ext::store::DEFAULT_ROOT;
use libxl_ext::{Error, ErrorKind, Result};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// What an invocation of `xl` is for us.
#[derive(Debug, PartialEq, Eq)]
enum Invocation {
    /// One of our commands, with its arguments as `xl-ext` takes them.
    Ours(Vec<OsString>),
    /// The making of a domain; where the arguments of the command begin.
    Create(usize),
    /// Anything else.
    Theirs,
}

/// Whether we were called as `xl`.
pub(crate) fn is_meant(program: &OsStr) -> bool {
    Path::new(program).file_name() == Some(OsStr::new("xl"))
}

/// Does what the arguments say, without the program's name. Returns only for a command of ours, with its
/// arguments.
///
/// # Errors
/// If there is no real `xl`, or a domain's disks cannot be given to it.
pub(crate) fn run(arguments: &[OsString]) -> Result<Vec<OsString>> {
    match understand(arguments) {
        Invocation::Ours(ours) => Ok(ours),
        Invocation::Theirs => Err(real::become_xl(arguments)),
        Invocation::Create(at) => {
            let root = std::env::var_os("XL_EXT_STORE").map_or(DEFAULT_ROOT.into(), PathBuf::from);
            let mut arguments = arguments.to_vec();
            match disks::for_create(&root, &arguments[at..])? {
                ForCreate::Nothing => {}
                ForCreate::Disks(disks) => arguments.push(disks),
                ForCreate::GoOn(domain) => {
                    let how = How::of(&arguments[..at - 1], &arguments[at..]);
                    if !how.dry {
                        eprintln!("xl-ext: '{domain}' was saved and goes on from there");
                    }
                    return Ok(how.start(domain));
                }
            }
            Err(real::become_xl(&arguments))
        }
    }
}

/// Has the real `xl` create the domain of a configuration file, on the layers that its disks are.
///
/// # Errors
/// If it does not, or a domain's disks cannot be given to it.
pub(crate) fn create(root: &Path, file: &Path, options: &[&str]) -> Result<()> {
    real::run(&words_for_create(root, file, options)?)
}

/// The words for that, without `xl`.
pub(crate) fn words_for_create(
    root: &Path,
    file: &Path,
    options: &[&str],
) -> Result<Vec<OsString>> {
    // An absolute path is no option.
    let file = std::path::absolute(file)
        .map_err(|error| Error::io(format!("look for {}", file.display()), error))?;
    let named = [OsString::from("-f"), file.into()];
    let disks = match disks::for_create(root, &named)? {
        ForCreate::Nothing => None,
        ForCreate::Disks(disks) => Some(disks),
        ForCreate::GoOn(domain) => {
            return Err(Error::new(
                ErrorKind::Stale,
                format!("domain '{domain}' was saved in the meantime"),
            ));
        }
    };
    let options = options.iter().map(OsString::from);
    let words = std::iter::once("create".into()).chain(options);
    Ok(words.chain(named).chain(disks).collect())
}

/// Asks a domain to shut down, as `xl shutdown -F` does, and does not wait.
///
/// # Errors
/// If `xl` refuses.
pub(crate) fn shutdown(domid: u32) -> Result<()> {
    real::run(&["shutdown".into(), "-F".into(), domid.to_string().into()])
}

/// Becomes `xl console`. Returns only if that fails.
pub(crate) fn become_console(domain: &str) -> Error {
    real::become_xl(&["console".into(), domain.into()])
}

/// How `xl create` is to make a domain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct How {
    dry: bool,
    paused: bool,
    console: bool,
}

impl How {
    /// From xl's own options and those of `create`, where several letters may be in one word.
    fn of(general: &[OsString], words: &[OsString]) -> Self {
        let mut how = Self {
            dry: general
                .iter()
                .any(|word| word.as_encoded_bytes().contains(&b'N')),
            ..Self::default()
        };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match word.as_encoded_bytes() {
                b"--" => break,
                b"--dryrun" => how.dry = true,
                b"--defconfig" => drop(words.next()),
                [b'-', b'-', ..] => {}
                [b'-', letters @ ..] => {
                    for (at, letter) in letters.iter().enumerate() {
                        match letter {
                            b'n' => how.dry = true,
                            b'p' => how.paused = true,
                            b'c' => how.console = true,
                            // The rest is its value, or the next word.
                            b'f' => {
                                if at + 1 == letters.len() {
                                    words.next();
                                }
                                break;
                            }
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        how
    }

    /// Our command for a domain that was saved.
    fn start(self, domain: String) -> Vec<OsString> {
        let mut ours: Vec<OsString> = vec!["xl-ext".into(), "start".into()];
        ours.extend(self.paused.then(|| "--paused".into()));
        ours.extend((self.console && !self.dry).then(|| "--console".into()));
        ours.extend(self.dry.then(|| "--plan".into()));
        ours.extend(["--".into(), domain.into()]);
        ours
    }
}

/// `xl [-vftTN] COMMAND ...`, where a command may be cut short as long as it is the only one.
fn understand(arguments: &[OsString]) -> Invocation {
    let is_option = |word: &&OsString| word.as_encoded_bytes().starts_with(b"-");
    let options = arguments.iter().take_while(is_option).count();
    let Some(command) = arguments.get(options).and_then(|word| word.to_str()) else {
        return Invocation::Theirs;
    };
    if command.starts_with("snapshot-")
        || command.starts_with("managed-save")
        || command.starts_with("block-pull")
        || command.starts_with("replication-")
        || command == "start"
    {
        let has = |letter: u8| {
            let mut options = arguments[..options].iter();
            options.any(|option| option.as_encoded_bytes().contains(&letter))
        };
        let mut ours = vec![OsString::from("xl-ext")];
        ours.extend(has(b'v').then(|| "-v".into()));
        ours.push(command.into());
        // xl's word for a dry run.
        let changes = [
            "create",
            "revert",
            "delete",
            "managed-save",
            "managed-save-remove",
            "start",
            "block-pull",
        ];
        // Replication has no dry run, so that word is refused there.
        let changes = changes.iter().any(|verb| command.ends_with(verb))
            || (command.starts_with("replication-") && command != "replication-status");
        ours.extend((has(b'N') && changes).then(|| "--plan".into()));
        ours.extend_from_slice(&arguments[options + 1..]);
        return Invocation::Ours(ours);
    }
    if command.len() >= "cr".len() && "create".starts_with(command) {
        return Invocation::Create(options + 1);
    }
    Invocation::Theirs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn only_our_commands_and_create_are_more_than_passed_on() {
        let ours = |text: &str| Invocation::Ours(words(text));
        for (typed, meant) in [
            ("snapshot-list g", ours("xl-ext snapshot-list g")),
            ("-v snapshot-list g", ours("xl-ext -v snapshot-list g")),
            (
                "-N snapshot-delete g s",
                ours("xl-ext snapshot-delete --plan g s"),
            ),
            ("-N snapshot-list g", ours("xl-ext snapshot-list g")),
            ("create g.cfg", Invocation::Create(1)),
            ("-vf cre g.cfg", Invocation::Create(2)),
            ("c g", Invocation::Theirs),
            ("cpupool-create x", Invocation::Theirs),
            ("console g", Invocation::Theirs),
            ("", Invocation::Theirs),
            ("-v", Invocation::Theirs),
            ("list -l snapshot-list", Invocation::Theirs),
        ] {
            assert_eq!(understand(&words(typed)), meant, "{typed}");
        }
    }

    #[test]
    fn what_was_saved_goes_on_as_create_was_told_and_not_in_a_dry_run() {
        let start = |general: &str, words_: &str| {
            let ours = How::of(&words(general), &words(words_)).start("g".into());
            let ours = ours.iter().map(|word| word.to_str().unwrap());
            ours.collect::<Vec<_>>().join(" ")
        };
        for (general, arguments, ours) in [
            ("", "g.cfg", "xl-ext start -- g"),
            ("-v", "-qpc g.cfg", "xl-ext start --paused --console -- g"),
            ("-N", "-c g.cfg", "xl-ext start --plan -- g"),
            ("", "-n g.cfg", "xl-ext start --plan -- g"),
            ("", "--dryrun -p g.cfg", "xl-ext start --paused --plan -- g"),
            ("", "-f pn.cfg", "xl-ext start -- g"),
            ("", "-fpn.cfg memory=5", "xl-ext start -- g"),
            ("", "--defconfig -p -- -c", "xl-ext start -- g"),
        ] {
            assert_eq!(
                start(general, arguments),
                ours,
                "{general} create {arguments}"
            );
        }
    }

    #[test]
    fn the_name_counts_without_its_directory() {
        assert!(is_meant(OsStr::new("/usr/local/sbin/xl")) && is_meant(OsStr::new("xl")));
        assert!(!is_meant(OsStr::new("/usr/sbin/xl-ext")) && !is_meant(OsStr::new("xlx")));
    }
}
