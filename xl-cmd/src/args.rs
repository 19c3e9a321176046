//! What can be typed. Validation that needs no host happens here; a mistake ends with exit status 2.

mod host;
mod managed_save;
mod pull;
mod replication;

pub(crate) use host::{HostShutdown, HostStart};
pub(crate) use managed_save::{
    ManagedSave, ManagedSaveExport, ManagedSaveList, ManagedSaveRemove, ManagedSaveStatus, Start,
};
pub(crate) use pull::{BlockPull, BlockPullAbort, BlockPullInfo, BlockPullSetSpeed};
pub(crate) use replication::{
    ReplicationFailover, ReplicationKeep, ReplicationOf, ReplicationPair, ReplicationServe,
    ReplicationStart, ReplicationStatus, ReplicationStop,
};

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use libxl_ext::model::disk::DiskKind;
use libxl_ext::model::domain::GuestState;
use libxl_ext::model::name::SnapshotName;
use libxl_ext::model::record::MemoryFormat;
use libxl_ext::plan::{DeleteScope, DiskChoice, Take};
use libxl_ext::store::DEFAULT_ROOT;
use std::path::PathBuf;

/// Snapshots of Xen domains: memory and disks at one instant.
#[derive(Debug, Parser)]
#[command(name = "xl-ext", version, max_term_width = 100, after_help = EXIT_STATUS)]
pub(crate) struct Arguments {
    /// Directory in which snapshots are kept.
    #[arg(long, global = true, value_name = "DIR", env = "XL_EXT_STORE", default_value = DEFAULT_ROOT)]
    pub(crate) store: PathBuf,

    /// Say on standard error what is done (twice: all of it).
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,

    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXIT_STATUS: &str = "Exit status: 0 done, 1 failed (nothing was changed, or it says what), 2 usage; \
    of managed-save-status with a domain: 0 it was saved, 1 it was not, 3 failed.\n\
    DOMAIN is a name or a domid.";

// The variants are called as the commands are.
#[allow(clippy::enum_variant_names)]
#[derive(Debug, Subcommand)]
// Of thirty commands one is given: only its options are made.
#[command(defer = true)]
pub(crate) enum Command {
    /// Take a snapshot of a running domain; the guest goes on.
    SnapshotCreate(Create),
    /// List a domain's snapshots.
    SnapshotList(List),
    /// Show one snapshot.
    SnapshotInfo(Info),
    /// Bring a domain's memory and disks back to a snapshot.
    SnapshotRevert(Revert),
    /// Delete a snapshot, with or without those below it.
    SnapshotDelete(Delete),
    /// Look whether snapshots are what they were when they were taken.
    SnapshotVerify(Verify),
    /// Look whether the store says what is there, and mend what can be mended without a loss.
    SnapshotCheck(Check),
    /// Show what changed from one snapshot to another.
    SnapshotDiff(Diff),
    /// Give a snapshot another name.
    SnapshotRename(Rename),
    /// Give a snapshot another description.
    SnapshotDescribe(Describe),
    /// Write all snapshots of a domain that is off, with their images, to one new file.
    SnapshotExport(Export),
    /// Make of such a file the snapshots of a domain that there is not yet.
    SnapshotImport(Import),
    /// Save domains, which are off then and go on from there when they are started.
    ManagedSave(ManagedSave),
    /// Say whether a domain was saved: exit status 0 if so, 1 if not, 3 for a failure. Without a domain, of all.
    ManagedSaveStatus(ManagedSaveStatus),
    /// List the domains that were saved.
    ManagedSaveList(ManagedSaveList),
    /// Give up what was saved of a domain.
    ManagedSaveRemove(ManagedSaveRemove),
    /// Copy the memory of a domain that was saved to a new file that stock `xl restore` takes.
    ManagedSaveExport(ManagedSaveExport),
    /// Let a domain that was saved go on, or start the one of a configuration file.
    Start(Start),
    /// Copy what a disk lacks from the images below it, until it stands on nothing; the guest goes on.
    BlockPull(BlockPull),
    /// Show how pulls go, or how they ended.
    BlockPullInfo(BlockPullInfo),
    /// End a pull; what was pulled until then stays.
    BlockPullAbort(BlockPullAbort),
    /// Set how fast a pull is.
    BlockPullSetSpeed(BlockPullSetSpeed),
    /// Make a key for two hosts, or carry it over from one to the other.
    ReplicationPair(ReplicationPair),
    /// Listen for primaries, until ^C: domains that are replicated to this host can go on here.
    ReplicationServe(ReplicationServe),
    /// Replicate the disks of a running domain to another host; the guest goes on.
    ReplicationStart(ReplicationStart),
    /// Keep a replication going that was started.
    #[command(hide = true)]
    ReplicationKeep(ReplicationKeep),
    /// Make the present what the other host goes on from.
    ReplicationCheckpoint(ReplicationOf),
    /// Show how replications are, on either side.
    ReplicationStatus(ReplicationStatus),
    /// End a replication, on either side.
    ReplicationStop(ReplicationStop),
    /// Have a domain go on here, from its last checkpoint; its primary is cut off first.
    ReplicationFailover(ReplicationFailover),
    /// Go on with a replication that has broken; everything is copied again.
    ReplicationResume(ReplicationOf),
    /// Save every running domain, since the host goes down; shut down those that do not fit.
    HostShutdown(HostShutdown),
    /// Let those that the host's shutdown saved go on, and start those of /etc/xen/auto.
    HostStart(HostStart),
    /// Copy a snapshot's memory image to a new file that stock `xl restore` takes.
    SnapshotExportMemory(ExportMemory),
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Name of the snapshot [default: the time in seconds since the epoch].
    #[arg(short, long, value_parser = snapshot_name)]
    pub(crate) name: Option<SnapshotName>,
    /// Words of your own.
    #[arg(long, value_name = "TEXT")]
    pub(crate) description: Option<String>,
    /// Let the guest run while most of its memory is written.
    #[arg(long, conflicts_with = "disk_only")]
    pub(crate) live: bool,
    /// Take only the disks, of a domain that is off.
    #[arg(long)]
    pub(crate) disk_only: bool,
    /// The domain's configuration file, for --disk-only [default: as in the snapshot that it comes from].
    #[arg(long, value_name = "FILE")]
    pub(crate) domain_config: Option<PathBuf>,
    /// Write the memory to a new file instead of the store.
    #[arg(long, value_name = "PATH", conflicts_with = "disk_only")]
    pub(crate) memory_file: Option<PathBuf>,
    /// How the memory is kept in the store.
    #[arg(long, value_enum, default_value_t = Format::Packed, conflicts_with = "disk_only")]
    pub(crate) format: Format,
    /// Take what is not said here from a description of the snapshot, in the syntax of xl.cfg.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Let every disk go on in a new image on top of the present one [default: raw disks only].
    #[arg(long)]
    pub(crate) external: bool,
    /// Say how one disk is taken; may be given for several.
    #[arg(long = "disk", value_name = "VDEV[,snapshot=no|internal|external][,file=PATH]", value_parser = disk_choice)]
    pub(crate) disks: Vec<DiskChoice>,
    #[command(flatten)]
    pub(crate) output: Output,
    /// The domain [default: the one that --domain-config names].
    #[arg(required_unless_present = "domain_config")]
    pub(crate) domain: Option<String>,
}

/// How memory is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Pages once for all snapshots of the domain, compressed
    Packed,
    /// As the file that stock `xl restore` takes
    Stock,
}

impl From<Format> for MemoryFormat {
    fn from(format: Format) -> Self {
        match format {
            Format::Packed => Self::Packed,
            Format::Stock => Self::Stock,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// Show which snapshot came from which.
    #[arg(long, conflicts_with = "json")]
    pub(crate) tree: bool,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// The domain.
    pub(crate) domain: String,
}

#[derive(Debug, Args)]
pub(crate) struct Info {
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// The domain.
    pub(crate) domain: String,
    /// The snapshot.
    pub(crate) name: String,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("state").args(["running", "paused"]))]
pub(crate) struct Revert {
    /// Let the guest run afterwards, whatever it did in the snapshot.
    #[arg(long)]
    running: bool,
    /// Leave the guest paused afterwards.
    #[arg(long)]
    paused: bool,
    /// Revert even though the present state is lost by it.
    #[arg(long)]
    pub(crate) force: bool,
    /// Keep the present state as a snapshot first [default name: as for snapshot-create].
    // So clap says that the option may be given without its value.
    #[allow(clippy::option_option)]
    #[arg(long, value_name = "NAME", num_args = 0..=1, require_equals = true, value_parser = snapshot_name)]
    pub(crate) keep_current: Option<Option<SnapshotName>>,
    #[command(flatten)]
    pub(crate) output: Output,
    /// The domain.
    pub(crate) domain: String,
    /// The snapshot.
    pub(crate) name: String,
}

impl Revert {
    /// How the guest shall be afterwards, if that was said.
    pub(crate) fn state(&self) -> Option<GuestState> {
        guest_state(self.running, self.paused)
    }
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("scope").args(["children", "children_only"]))]
pub(crate) struct Delete {
    /// Delete every snapshot below it too.
    #[arg(long)]
    children: bool,
    /// Delete every snapshot below it, and keep it.
    #[arg(long)]
    children_only: bool,
    #[command(flatten)]
    pub(crate) output: Output,
    /// The domain.
    pub(crate) domain: String,
    /// The snapshot.
    pub(crate) name: String,
}

impl Delete {
    /// Which part of the tree goes.
    pub(crate) fn scope(&self) -> DeleteScope {
        match (self.children, self.children_only) {
            (true, _) => DeleteScope::WithChildren,
            (_, true) => DeleteScope::ChildrenOnly,
            _ => DeleteScope::Only,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// Read the disks of the snapshots too, and record their checksums: from then on they are compared as well.
    #[arg(long)]
    pub(crate) checksum: bool,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// The domain.
    pub(crate) domain: String,
    /// The snapshot [default: all of them, and the disks].
    pub(crate) name: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Check {
    /// Mend what can be mended without losing anything.
    #[arg(long)]
    pub(crate) repair: bool,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// The domain.
    pub(crate) domain: String,
}

#[derive(Debug, Args)]
pub(crate) struct Diff {
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// The domain.
    pub(crate) domain: String,
    /// The first snapshot.
    pub(crate) from: String,
    /// The second one.
    pub(crate) to: String,
}

#[derive(Debug, Args)]
pub(crate) struct Rename {
    #[command(flatten)]
    pub(crate) output: Output,
    /// The domain.
    pub(crate) domain: String,
    /// The snapshot.
    pub(crate) name: String,
    /// Its new name.
    #[arg(value_parser = snapshot_name)]
    pub(crate) new_name: SnapshotName,
}

#[derive(Debug, Args)]
pub(crate) struct Describe {
    #[command(flatten)]
    pub(crate) output: Output,
    /// The domain.
    pub(crate) domain: String,
    /// The snapshot.
    pub(crate) name: String,
    /// Words of your own.
    pub(crate) text: String,
}

#[derive(Debug, Args)]
pub(crate) struct Export {
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// The domain.
    pub(crate) domain: String,
    /// The new file.
    pub(crate) file: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Import {
    /// Name of the domain here [default: the one that it had].
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Directory in which its images get a directory of their own [default: in the store].
    #[arg(long, value_name = "DIR")]
    pub(crate) directory: Option<PathBuf>,
    /// Take the paths in its configuration as they are, of a kernel for instance.
    #[arg(long)]
    pub(crate) keep_paths: bool,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// The file.
    pub(crate) file: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct ExportMemory {
    /// The domain.
    pub(crate) domain: String,
    /// The snapshot.
    pub(crate) name: String,
    /// The new file.
    pub(crate) file: PathBuf,
}

fn guest_state(running: bool, paused: bool) -> Option<GuestState> {
    match (running, paused) {
        (true, _) => Some(GuestState::Running),
        (_, true) => Some(GuestState::Paused),
        _ => None,
    }
}

/// What the commands that change something have in common.
#[derive(Clone, Copy, Debug, Default, Args)]
pub(crate) struct Output {
    /// Print what would be done and what it would cost, and do nothing.
    #[arg(long)]
    pub(crate) plan: bool,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

fn snapshot_name(name: &str) -> Result<SnapshotName, String> {
    SnapshotName::new(name).map_err(|error| error.report())
}

/// `VDEV[,snapshot=no|internal|external][,file=PATH]`. The path goes to the end, whatever is in it.
pub(crate) fn disk_choice(text: &str) -> Result<DiskChoice, String> {
    let (vdev, mut rest) = text.split_once(',').unwrap_or((text, ""));
    let mut choice = DiskChoice {
        vdev: vdev.to_owned(),
        take: None,
        file: None,
    };
    if vdev.is_empty() || vdev.contains('=') {
        return Err("it begins with the disk's virtual device, such as xvda".into());
    }
    while !rest.is_empty() {
        if let Some(path) = rest.strip_prefix("file=") {
            choice.file = Some(path.into());
            break;
        }
        let (word, after) = rest.split_once(',').unwrap_or((rest, ""));
        choice.take = Some(match word.strip_prefix("snapshot=") {
            Some("no") => Take::No,
            Some("internal") => Take::As(DiskKind::Internal),
            Some("external") => Take::As(DiskKind::External),
            _ => {
                return Err(format!(
                    "{word:?} is none of snapshot=no|internal|external and file=PATH"
                ));
            }
        });
        rest = after;
    }
    match (choice.take, &choice.file) {
        (Some(Take::No | Take::As(DiskKind::Internal)), Some(_)) => {
            Err("a file is only for snapshot=external".into())
        }
        _ => Ok(choice),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_table_of_commands_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn a_name_that_looks_like_an_option_has_to_be_meant() {
        let parse = |words: &[&str]| Arguments::try_parse_from(["xl-ext"].iter().chain(words));
        let arguments = parse(&["snapshot-create", "--name=-rf", "g1"]).unwrap();
        let Command::SnapshotCreate(create) = arguments.command else {
            panic!()
        };
        assert_eq!(create.name.unwrap().as_str(), "-rf");
        assert!(parse(&["snapshot-create", "-n", "--plan", "g1"]).is_err());
        assert!(parse(&["snapshot-revert", "g1", "--", "-rf"]).is_ok());
        assert!(parse(&["snapshot-revert", "g1", "-rf"]).is_err());
    }

    /// Whatever a name looks like: it is a usage error, or the name, to the byte, and no option.
    #[test]
    fn no_name_becomes_an_option_or_another_name() {
        let long = "x".repeat(10_000);
        let names = [
            "../x",
            "-rf",
            "--force",
            "--plan",
            "-",
            "--",
            "",
            "a\nb",
            "a/b",
            ".",
            "..",
            "\u{1b}[2J",
            "@file",
            "--name=b",
            "\u{5e9}\u{5dc}",
            "\u{645}\u{631}",
            "e\u{301}",
            "\u{65e5}",
            &long,
        ];
        let parse = |words: &[&str]| Arguments::try_parse_from(["xl-ext"].iter().chain(words));
        for name in names {
            let joined = format!("--name={name}");
            for words in [
                &["-n", name, "g1"][..],
                &["--name", name, "g1"],
                &[&joined, "g1"],
            ] {
                let words = [&["snapshot-create"], words].concat();
                match parse(&words).map(|arguments| arguments.command) {
                    Ok(Command::SnapshotCreate(create)) => {
                        assert_eq!(create.name.unwrap().as_str(), name);
                        assert_eq!(create.domain.as_deref(), Some("g1"));
                        assert!(!create.output.plan && SnapshotName::new(name).is_ok());
                    }
                    Ok(other) => panic!("{other:?}"),
                    Err(error) => assert_eq!(error.exit_code(), 2, "{name:?}"),
                }
            }
            assert_eq!(
                parse(&["snapshot-create", &joined, "g1"]).is_ok(),
                SnapshotName::new(name).is_ok()
            );
            // Names of what there is are only looked up, so any is taken where it cannot be an option.
            match parse(&["snapshot-revert", "--", name, name])
                .unwrap()
                .command
            {
                Command::SnapshotRevert(revert) => {
                    assert_eq!((&*revert.domain, &*revert.name), (name, name));
                    assert!(!revert.force && !revert.output.plan);
                }
                other => panic!("{other:?}"),
            }
            match parse(&["snapshot-revert", "g1", name]).map(|arguments| arguments.command) {
                Ok(Command::SnapshotRevert(revert)) => assert_eq!(revert.name, name),
                Ok(other) => panic!("{other:?}"),
                Err(error) => assert!(name.starts_with('-') && error.exit_code() == 2, "{name:?}"),
            }
        }
    }

    #[test]
    fn without_a_word_on_children_or_force_nothing_more_is_lost() {
        let scope = |words: &[&str]| {
            let words = ["xl-ext", "snapshot-delete", "g1", "a"].iter().chain(words);
            match Arguments::try_parse_from(words).unwrap().command {
                Command::SnapshotDelete(delete) => delete.scope(),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(scope(&[]), DeleteScope::Only);
        assert_eq!(scope(&["--children"]), DeleteScope::WithChildren);
        assert_eq!(scope(&["--children-only"]), DeleteScope::ChildrenOnly);
        let force = |words: &[&str]| {
            let words = ["xl-ext", "snapshot-revert", "g1", "a"].iter().chain(words);
            match Arguments::try_parse_from(words).unwrap().command {
                Command::SnapshotRevert(revert) => revert.force,
                other => panic!("{other:?}"),
            }
        };
        let keep = |words: &[&str]| {
            let words = ["xl-ext", "snapshot-revert"].iter().chain(words);
            match Arguments::try_parse_from(words).unwrap().command {
                Command::SnapshotRevert(revert) => revert.keep_current,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(keep(&["g1", "a"]), None);
        assert_eq!(keep(&["--keep-current", "g1", "a"]), Some(None));
        let name = SnapshotName::new("-rf").unwrap();
        assert_eq!(keep(&["--keep-current=-rf", "g1", "a"]), Some(Some(name)));
        assert!(!force(&["--paused"]));
        assert!(force(&["--paused", "--force"]));
    }

    #[test]
    fn what_is_said_of_a_disk_is_understood_or_refused() {
        let choice = |text: &str| disk_choice(text);
        let taken = choice("xvdb,snapshot=external,file=/i/a,b.qcow2").unwrap();
        assert_eq!(
            (&*taken.vdev, taken.take),
            ("xvdb", Some(Take::As(DiskKind::External)))
        );
        assert_eq!(taken.file.unwrap(), PathBuf::from("/i/a,b.qcow2"));
        assert_eq!(choice("xvda,snapshot=no").unwrap().take, Some(Take::No));
        assert_eq!(choice("xvda").unwrap().take, None);
        for bad in [
            "",
            ",snapshot=no",
            "snapshot=no",
            "xvda,snapshot=maybe",
            "xvda,x",
            "xvda,snapshot=no,file=/a",
        ] {
            assert!(choice(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_bad_name_and_two_states_are_usage_errors() {
        for words in [
            &["snapshot-create", "-n", "../x", "g1"][..],
            &["snapshot-create", "-n", "", "g1"],
            &["snapshot-revert", "--running", "--paused", "g1", "a"],
            &[
                "snapshot-delete",
                "--children",
                "--children-only",
                "g1",
                "a",
            ],
            &["snapshot-delete", "--force", "g1", "a"],
            &["snapshot-create"],
            &["snapshot-create", "--disk-only", "--live", "g1"],
            &["snapshot-create", "--disk-only", "--memory-file=/m", "g1"],
            &["snapshot-list", "--tree", "--json", "g1"],
            &["snapshot-revert", "g1"],
            &["snapshot-revert", "--keep-current=../x", "g1", "a"],
            &[],
        ] {
            let error =
                Arguments::try_parse_from(["xl-ext"].iter().chain(words)).expect_err("taken");
            assert_eq!(error.exit_code(), 2, "{words:?}");
        }
    }

    /// The man page is written by hand; nothing may be missing from it but what is started by ourselves alone.
    #[test]
    fn the_man_page_names_every_command_and_option() {
        let page = include_str!("../../docs/man/xl-ext.8").replace('\\', "");
        let mut table = Arguments::command();
        table.build();
        let ours = |it: &&clap::Command| !it.is_hide_set() && it.get_name() != "help";
        for command in table.get_subcommands().filter(ours) {
            let name = command.get_name();
            assert!(
                page.contains(&format!(".B {name}\n")),
                "{name} is not described"
            );
            for option in command.get_arguments().chain(table.get_arguments()) {
                if let Some(long) = option.get_long() {
                    assert!(
                        page.contains(&format!("--{long}")),
                        "--{long} of {name} is missing"
                    );
                }
            }
        }
    }
}
