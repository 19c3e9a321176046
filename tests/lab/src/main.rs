//! `lab`: builds, boots and drives the Xen host, and runs the steps in it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use lab::coverage::Cell;
use lab::host::{BootOptions, Lab};
use lab::image::Image;
use lab::link::Link;
use lab::qemu::{self, Lifetime};
use lab::run_dir::RunDir;
use lab::ssh::quote;
use lab::table::{self, Limits};
use lab::{bench, demo, logs, power_cuts, results, step, two_hosts};

#[derive(Parser)]
#[command(
    name = "lab",
    about = "A Xen host in QEMU, without KVM, to test libxl-ext in"
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Args)]
struct Name {
    /// Which lab
    #[arg(long, default_value = "main")]
    name: String,
}

#[derive(Args)]
struct Machine {
    /// CPUs of the Xen host; with more than one, HVM guests do not survive the emulation
    #[arg(long, default_value_t = 1)]
    smp: u32,
    /// Memory of the Xen host in MiB
    #[arg(long, default_value_t = 4096)]
    mem: u32,
}

impl Machine {
    fn options(&self, lifetime: Lifetime) -> BootOptions {
        BootOptions {
            smp: self.smp,
            mem: self.mem,
            lifetime,
            link: None,
        }
    }
}

#[derive(Subcommand)]
enum Verb {
    /// Build the image unless the cache holds it, and print its directory
    Build,
    /// Boot a lab and leave it running; one that was switched off boots from its own disk
    Boot {
        #[command(flatten)]
        name: Name,
        #[command(flatten)]
        machine: Machine,
        /// Give it a private network to another lab, at the address 10.77.0.1
        #[arg(long)]
        link: bool,
        /// Put it on the private network of the lab of this name, at the address 10.77.0.2
        #[arg(long, conflicts_with = "link")]
        link_to: Option<String>,
    },
    /// Run a command in dom0; exit with its status. One word is a script, several are a command
    Run {
        #[command(flatten)]
        name: Name,
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Open a shell in dom0
    Shell {
        #[command(flatten)]
        name: Name,
    },
    /// Copy a file to dom0
    Put {
        #[command(flatten)]
        name: Name,
        source: PathBuf,
        target: String,
    },
    /// Unpack a staging directory, as `make install DESTDIR=...` fills it, over dom0's root
    Install {
        #[command(flatten)]
        name: Name,
        stage: PathBuf,
    },
    /// Collect the logs
    Logs {
        #[command(flatten)]
        name: Name,
        #[arg(long)]
        out: PathBuf,
    },
    /// Shut dom0 down
    Poweroff {
        #[command(flatten)]
        name: Name,
    },
    /// Kill the machine; its disk keeps what dom0 had flushed
    PowerCut {
        #[command(flatten)]
        name: Name,
    },
    /// List the labs
    List,
    /// End a lab and remove all that it wrote
    Destroy {
        #[command(flatten)]
        name: Name,
    },
    /// Run the steps, all or those whose name contains a filter, in labs of their own
    Test {
        /// Parts of names of steps
        filters: Vec<String>,
        /// The product: a staging directory, as `make install DESTDIR=...` fills it
        #[arg(long)]
        stage: Option<PathBuf>,
        /// Where the logs of failed steps go
        #[arg(long, default_value = "target/lab-logs")]
        logs: PathBuf,
        /// Leave the lab running at the end
        #[arg(long)]
        keep: bool,
        /// Run the expensive steps too
        #[arg(long)]
        all: bool,
        /// Print the names of the steps and run none
        #[arg(long)]
        list: bool,
        /// Begin no further step after so many minutes; what matters most comes first
        #[arg(long)]
        minutes: Option<u64>,
        /// How many labs share the steps; each CPU of each of them keeps one of this machine busy
        #[arg(long, default_value_t = 2)]
        labs: usize,
        #[command(flatten)]
        machine: Machine,
    },
    /// Cut the power at random moments of snapshot-create, -revert and -delete, and see what is left
    PowerCuts {
        /// The product: a staging directory, as `make install DESTDIR=...` fills it
        #[arg(long)]
        stage: PathBuf,
        /// How many
        #[arg(long, default_value_t = 50)]
        cuts: u32,
        /// What the moments are made of; another one each time
        #[arg(long)]
        seed: Option<u64>,
        /// Where the logs go when something is wrong
        #[arg(long, default_value = "target/lab-logs")]
        logs: PathBuf,
        #[command(flatten)]
        machine: Machine,
    },
    /// Replicate a guest between two hosts, cut the power of one after the other, and see that the other has the last checkpoint
    TestReplication {
        /// The product: a staging directory, as `make install DESTDIR=...` fills it
        #[arg(long)]
        stage: PathBuf,
        /// How many power cuts of the primary
        #[arg(long, default_value_t = 20)]
        rounds: u32,
        /// What the moments are made of; another one each time
        #[arg(long)]
        seed: Option<u64>,
        /// Leave the labs NAME-a and NAME-b running at the end, and use them again if they do
        #[arg(long, value_name = "NAME")]
        keep: Option<String>,
        /// Only the scenarios whose name contains this: silent-or-cut-off, full, own-disk, power-cuts
        filters: Vec<String>,
        /// Where the logs go when something is wrong
        #[arg(long, default_value = "target/lab-logs")]
        logs: PathBuf,
        #[command(flatten)]
        machine: Machine,
    },
    /// Print how long stock xl and the product take for a save and a restore, and the room; and how fast a pull is; side by side
    Bench {
        /// The product: a staging directory, as `make install DESTDIR=...` fills it
        #[arg(long)]
        stage: PathBuf,
        /// How many rounds count
        #[arg(long, default_value_t = 5)]
        rounds: u32,
        /// What is measured
        #[arg(long, value_enum, default_value_t)]
        what: bench::What,
        /// Memory of the guest that is saved, in MiB
        #[arg(long, default_value_t = 256)]
        guest_mem: u32,
        /// How many images the disk that is pulled has below it
        #[arg(long, value_delimiter = ',', default_values_t = bench::DEPTHS)]
        depths: Vec<u32>,
        /// Length of the disk that is pulled, in MiB
        #[arg(long, default_value_t = 384)]
        disk: u32,
        #[command(flatten)]
        machine: Machine,
    },
    /// Write docs/features.md from the results of runs
    Table {
        /// Files of results; of a step in several the last one counts
        #[arg(long, num_args = 1.., required = true)]
        results: Vec<PathBuf>,
        /// The reasons for cells without a step
        #[arg(long, default_value = "docs/LIMITS.md")]
        limits: PathBuf,
        /// Where the page goes
        #[arg(long, default_value = "docs/features.md")]
        out: PathBuf,
        /// Another page, which must not claim more than the results show
        #[arg(long)]
        check: Option<PathBuf>,
    },
    /// Show the main job: a snapshot of a running guest, and the way back
    Demo {
        /// The product: a staging directory, as `make install DESTDIR=...` fills it
        #[arg(long)]
        stage: PathBuf,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().verb) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<u8> {
    match verb {
        Verb::Build => println!("{}", Image::get()?.dir().display()),
        Verb::Boot {
            name,
            machine,
            link,
            link_to,
        } => {
            let link = match link_to {
                Some(peer) => Some(other_end(&peer)?),
                None if link => Some(Link::pair()?[0]),
                None => None,
            };
            let options = BootOptions {
                link,
                ..machine.options(Lifetime::Detached)
            };
            Lab::boot(&name.name, options)?;
        }
        Verb::Run { name, command } => return run_in_dom0(&name.name, &command),
        Verb::Shell { name } => return connect_terminal(&name.name, &["-t", "root@127.0.0.1"]),
        Verb::Put {
            name,
            source,
            target,
        } => Lab::attach(&name.name)?.put(&source, &target)?,
        Verb::Install { name, stage } => Lab::attach(&name.name)?.install(&stage)?,
        Verb::Logs { name, out } => logs::collect(&Lab::attach(&name.name)?, &out)?,
        Verb::Poweroff { name } => Lab::attach(&name.name)?.poweroff()?,
        Verb::PowerCut { name } => Lab::attach(&name.name)?.power_cut()?,
        Verb::List => list()?,
        Verb::Destroy { name } => Lab::attach(&name.name)?.destroy()?,
        Verb::Test {
            filters,
            stage,
            logs,
            keep,
            all,
            list,
            minutes,
            labs,
            machine,
        } => {
            if list {
                step::print_names(&filters);
                return Ok(0);
            }
            let options = step::Options {
                filters,
                stage,
                logs,
                keep,
                all,
                smp: machine.smp,
                mem: machine.mem,
                labs,
                limit: minutes.map(|minutes| Duration::from_secs(60 * minutes)),
            };
            return Ok(u8::from(!step::run_all(&options)?));
        }
        Verb::PowerCuts {
            stage,
            cuts,
            seed,
            logs,
            machine,
        } => cut_power(&stage, cuts, seed, &logs, &machine)?,
        Verb::TestReplication {
            stage,
            rounds,
            seed,
            keep,
            filters,
            logs,
            machine,
        } => two_hosts::run(
            &stage,
            machine.options(Lifetime::Process),
            &two_hosts::Wanted {
                rounds,
                seed: seed.unwrap_or_else(power_cuts::any_seed),
                filters,
                keep,
            },
            &logs,
        )?,
        Verb::Bench {
            stage,
            rounds,
            what,
            guest_mem,
            depths,
            disk,
            machine,
        } => {
            let lab = own_lab("bench", &machine)?;
            let measured = lab.install(&stage).and_then(|()| {
                if what != bench::What::Saves {
                    bench::pulls(&lab, rounds, &depths, disk)?;
                }
                if what != bench::What::Pulls {
                    bench::saves(&lab, rounds, guest_mem)?;
                }
                Ok(())
            });
            lab.destroy()?;
            measured?;
        }
        Verb::Table {
            results,
            limits,
            out,
            check,
        } => return write_table(&results, &limits, &out, check.as_deref()),
        Verb::Demo { stage } => demo::run(&stage)?,
    }
    Ok(0)
}

/// A lab that ends with this process.
fn own_lab(what: &str, machine: &Machine) -> Result<Lab> {
    let options = machine.options(Lifetime::Process);
    Lab::boot(&format!("{what}-{}", std::process::id()), options)
}

/// The end that is left of the private network of a lab.
fn other_end(name: &str) -> Result<Link> {
    let link = RunDir::of(name)?.state()?.and_then(|state| state.link);
    let link = link.with_context(|| {
        format!("lab {name} has no private network: `lab boot --name {name} --link` gives it one")
    })?;
    Ok(link.other_end())
}

fn cut_power(
    stage: &Path,
    cuts: u32,
    seed: Option<u64>,
    logs: &Path,
    machine: &Machine,
) -> Result<()> {
    let mut lab = own_lab("cuts", machine)?;
    lab.install(stage)?;
    let report = power_cuts::run(&mut lab, cuts, seed.unwrap_or_else(power_cuts::any_seed));
    if report.is_err() {
        logs::collect(&lab, &logs.join("power-cuts"))?;
    }
    lab.destroy()?;
    println!("{}", report?);
    Ok(())
}

fn write_table(results: &[PathBuf], limits: &Path, out: &Path, check: Option<&Path>) -> Result<u8> {
    let read = |path: &Path| {
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
    };
    let results = results::read(results)?;
    let (page, open) = table::render(&results, &Limits::parse(&read(limits)?)?);
    fs::write(out, &page).with_context(|| format!("cannot write {}", out.display()))?;
    if !open.is_empty() {
        eprintln!(
            "lab: {} of {} cells of {} were not shown by these runs",
            open.len(),
            Cell::all().count(),
            out.display()
        );
    }
    let Some(check) = check else { return Ok(0) };
    let claimed = read(check)?;
    let unfounded = table::unfounded(&claimed, &results)?;
    for claim in &unfounded {
        eprintln!(
            "lab: {} claims, and this run does not show: {claim}",
            check.display()
        );
    }
    if unfounded.is_empty() && claimed != page {
        eprintln!(
            "lab: {} is not what this run shows, see {}; `make table` writes it anew",
            check.display(),
            out.display()
        );
    }
    Ok(u8::from(!unfounded.is_empty()))
}

fn run_in_dom0(name: &str, command: &[String]) -> Result<u8> {
    let script = match command {
        [script] => script.clone(),
        words => words
            .iter()
            .map(|word| quote(word))
            .collect::<Vec<_>>()
            .join(" "),
    };
    connect_terminal(name, &["root@127.0.0.1", &script])
}

/// Lets ssh have this process's own input and output.
fn connect_terminal(name: &str, arguments: &[&str]) -> Result<u8> {
    let lab = Lab::attach(name)?;
    if !lab.is_running() {
        bail!("lab {name} is switched off; `lab boot --name {name}` boots it again");
    }
    let status = lab
        .ssh_command()
        .args(arguments)
        .status()
        .context("cannot start ssh")?;
    Ok(status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .unwrap_or(255))
}

fn list() -> Result<()> {
    for name in RunDir::names()? {
        let run = RunDir::of(&name)?;
        let Some(state) = run.state()? else { continue };
        let what = match state.qemu {
            Some(id) if qemu::is_running(id) => {
                format!("running pid={} port={}", id.pid, state.port)
            }
            _ => "off".to_owned(),
        };
        println!("{name}\t{what}\t{}", run.path().display());
    }
    Ok(())
}
