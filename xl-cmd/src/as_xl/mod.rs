//! `xl-ext` under the name `xl`: the commands of ours, and for everything else the real `xl`, in our place, so
//! that arguments, exit status, terminal and signals are its own. Only `create` gets a word more where the
//! disks that the configuration file names have layers on top of them.

mod disks;
pub(crate) mod dry_run;
mod real;

use libxl_ext::Result;
use libxl_ext::store::DEFAULT_ROOT;
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
            let disks = disks::for_create(&root, &arguments[at..])?;
            arguments.extend(disks);
            Err(real::become_xl(&arguments))
        }
    }
}

/// `xl [-vftTN] COMMAND ...`, where a command may be cut short as long as it is the only one.
fn understand(arguments: &[OsString]) -> Invocation {
    let is_option = |word: &&OsString| word.as_encoded_bytes().starts_with(b"-");
    let options = arguments.iter().take_while(is_option).count();
    let Some(command) = arguments.get(options).and_then(|word| word.to_str()) else {
        return Invocation::Theirs;
    };
    if command.starts_with("snapshot-") {
        let has = |letter: u8| {
            let mut options = arguments[..options].iter();
            options.any(|option| option.as_encoded_bytes().contains(&letter))
        };
        let mut ours = vec![OsString::from("xl-ext")];
        ours.extend(has(b'v').then(|| "-v".into()));
        ours.push(command.into());
        // xl's word for a dry run.
        let changes = ["create", "revert", "delete"];
        let changes = changes.iter().any(|verb| command.ends_with(verb));
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
    fn the_name_counts_without_its_directory() {
        assert!(is_meant(OsStr::new("/usr/local/sbin/xl")) && is_meant(OsStr::new("xl")));
        assert!(!is_meant(OsStr::new("/usr/sbin/xl-ext")) && !is_meant(OsStr::new("xlx")));
    }
}
