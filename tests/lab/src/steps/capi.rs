//! The C library, as the daemon in `tests/abi` uses it: what the daemon cannot see is looked at from outside.
//!
//! Each scenario of the daemon checks the calls, the events and its own process; `tests/abi/daemon.h` begins with
//! where what is.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::snapshot::{DISKS, State, two_disks};
use super::template_disk::{Pulled, two_on_templates};
use crate::guest::{Guest, GuestSpec};
use crate::host::Lab;
use crate::process::Output;
use crate::product::Product;
use crate::ssh::quote;
use crate::step::{Context, Step};

pub(super) const STEPS: &[Step] = &[
    Step {
        name: "ts-capi-create-revert-delete",
        run: create_revert_delete,
        cells: &[],
    },
    Step {
        name: "ts-capi-calls-that-wait",
        run: calls_that_wait,
        cells: &[],
    },
    Step {
        name: "ts-capi-disk-only-and-memory-elsewhere",
        run: kinds,
        cells: &[],
    },
    Step {
        name: "ts-capi-managed-save",
        run: managed_save,
        cells: &[],
    },
    Step {
        name: "ts-capi-block-pull",
        run: block_pull,
        cells: &[],
    },
    Step {
        name: "ts-capi-abort-leaves-nothing",
        run: abort,
        cells: &[],
    },
    Step {
        name: "ts-capi-end-of-the-program-leaves-nothing",
        run: end_of_the_program,
        cells: &[],
    },
    Step {
        name: "ts-capi-end-of-the-agent-is-an-error",
        run: end_of_the_agent,
        cells: &[],
    },
    Step {
        name: "ts-capi-refuses-and-says-why",
        run: refuses,
        cells: &[],
    },
    Step {
        name: "ts-capi-two-domains-at-once",
        run: two_domains,
        cells: &[],
    },
    Step {
        name: "ts-capi-children-are-left-alone",
        run: children,
        cells: &[],
    },
    Step {
        name: "ts-capi-fork-in-mid-operation",
        run: fork,
        cells: &[],
    },
    Step {
        name: "ts-capi-valgrind",
        run: valgrind,
        cells: &[],
    },
];

const PROGRAM: &str = "/run/lab-daemon";

/// Long enough for the longest scenario on a loaded machine.
const LIMIT: Duration = Duration::from_secs(900);

/// How many lines of the daemon are shown if it fails.
const SHOWN: usize = 20;

/// The daemon in dom0.
struct Daemon<'lab> {
    lab: &'lab Lab,
}

impl<'lab> Daemon<'lab> {
    fn install(context: &'lab Context) -> Result<Self> {
        let lab = context.lab();
        lab.put(&context.consumer("daemon")?, PROGRAM)?;
        Ok(Self { lab })
    }

    /// The shell words of a scenario for `guest`, with the snapshots where `product` has them.
    fn command(scenario: &str, guest: &Guest<'_>, product: &Product<'_>) -> String {
        let (store, domain) = (quote(product.store_dir()), quote(guest.name()));
        format!("{PROGRAM} -s {store} {scenario} {domain}")
    }

    fn run(&self, scenario: &str, guest: &Guest<'_>, product: &Product<'_>) -> Result<()> {
        self.run_command(&Self::command(scenario, guest, product))
    }

    /// What the daemon does not find as it should be it says on standard error. The library says nothing there.
    fn run_command(&self, command: &str) -> Result<()> {
        let Output {
            status,
            stdout,
            stderr,
        } = self.lab.try_run(command, LIMIT)?;
        let lines: Vec<_> = stdout.lines().collect();
        ensure!(
            status == 0 && stderr.is_empty(),
            "{command} ended with {status}: {stderr}\nwhat it said last:\n{}",
            lines[lines.len().saturating_sub(SHOWN)..].join("\n")
        );
        Ok(())
    }
}

/// A guest that goes on, whatever is done with it.
struct Witness<'lab> {
    guest: Guest<'lab>,
    life: String,
    domid: u32,
    counter: u64,
}

impl<'lab> Witness<'lab> {
    fn new(guest: Guest<'lab>) -> Result<Self> {
        Ok(Self {
            life: guest.life_id()?,
            domid: guest.domid()?,
            counter: guest.counter()?,
            guest,
        })
    }

    /// It is the same domain as before, it counts on, and nothing of a snapshot is left.
    fn ensure_untouched(&self, product: &Product<'_>, vdevs: &[&str]) -> Result<()> {
        assert_eq!(self.guest.domid()?, self.domid);
        self.ensure_goes_on(product, vdevs)
    }

    /// As above, if it may have got another domid.
    fn ensure_goes_on(&self, product: &Product<'_>, vdevs: &[&str]) -> Result<()> {
        self.guest.wait_counter_beyond(self.counter)?;
        assert_eq!(self.guest.life_id()?, self.life);
        product.ensure_nothing_left(&self.guest, vdevs)
    }
}

fn one_disk<'lab>(lab: &'lab Lab, name: &str) -> Result<(Witness<'lab>, Product<'lab>)> {
    let guest = Guest::create(lab, &GuestSpec::pv(name).disks(&[16]))?;
    let product = Product::of(lab, &guest);
    Ok((Witness::new(guest)?, product))
}

fn create_revert_delete(context: &mut Context) -> Result<()> {
    let daemon = Daemon::install(context)?;
    let (guest, product) = two_disks(context.lab(), "capi")?;
    let state = State::set(&guest, "before")?;
    let before = guest.counter()?;
    daemon.run("create", &guest, &product)?;
    guest.wait_counter_beyond(before)?;
    assert_eq!(
        State::read(&guest)?,
        state,
        "the snapshots disturbed the guest"
    );
    // The program sees the same snapshots as the library.
    assert_eq!(product.names()?, ["one", "two", "three"]);
    for vdev in DISKS {
        assert_eq!(product.internal_snapshots(&guest.disk_path(vdev))?.len(), 3);
    }

    State::change(&guest, "later")?;
    daemon.run("revert", &guest, &product)?;
    assert_eq!(State::read(&guest)?, state);
    let counter = guest.counter()?;
    daemon.run("delete", &guest, &product)?;
    guest.wait_counter_beyond(counter)?;
    product.ensure_nothing_left(&guest, &DISKS)
}

/// With the memory in a file of the daemon's, and, once the guest is off, of the disks alone.
fn kinds(context: &mut Context) -> Result<()> {
    let daemon = Daemon::install(context)?;
    let (witness, product) = one_disk(context.lab(), "kinds")?;
    daemon.run("file", &witness.guest, &product)?;
    witness.ensure_goes_on(&product, &["xvda"])?;
    // From it the library knows what the guest is made of.
    product.run("snapshot-create -n kept {}")?;
    witness.guest.destroy()?;
    daemon.run("disk-only", &witness.guest, &product)?;
    ensure!(!witness.guest.exists(), "the guest was started");
    assert_eq!(product.names()?, ["kept"]);
    product.run("snapshot-revert {} kept")?;
    product.run("snapshot-delete {} kept")?;
    witness.ensure_goes_on(&product, &["xvda"])
}

fn managed_save(context: &mut Context) -> Result<()> {
    let daemon = Daemon::install(context)?;
    let (witness, product) = one_disk(context.lab(), "managed")?;
    daemon.run("managed", &witness.guest, &product)?;
    ensure!(witness.guest.domid()? != witness.domid, "it was not saved");
    witness.ensure_goes_on(&product, &["xvda"])?;
    daemon.run("managed-remove", &witness.guest, &product)?;
    ensure!(!witness.guest.exists(), "it runs");
    product.ensure_nothing_left(&witness.guest, &["xvda"])
}

fn block_pull(context: &mut Context) -> Result<()> {
    context.is_expensive()?;
    let daemon = Daemon::install(context)?;
    let lab = context.lab();
    let spec = GuestSpec::pv("capi-pull");
    let (spec, disks) = two_on_templates(lab, spec, 48)?;
    let guest = Guest::create(lab, &spec)?;
    let product = Product::of(lab, &guest);
    let counter = guest.counter()?;
    product.run("block-pull --bandwidth 64K {} xvda")?;
    daemon.run("pull", &guest, &product)?;
    guest.wait_counter_beyond(counter)?;
    guest.mark_disks(false)?;
    disks.iter().try_for_each(Pulled::ensure_alone)
}

fn calls_that_wait(context: &mut Context) -> Result<()> {
    // The scenario runs under valgrind too.
    context.is_expensive()?;
    let daemon = Daemon::install(context)?;
    let (witness, product) = one_disk(context.lab(), "waits")?;
    daemon.run("blocking", &witness.guest, &product)?;
    ensure!(
        witness.guest.domid()? != witness.domid,
        "it was not reverted"
    );
    witness.ensure_goes_on(&product, &["xvda"])
}

fn abort(context: &mut Context) -> Result<()> {
    let daemon = Daemon::install(context)?;
    let (witness, product) = one_disk(context.lab(), "aborts")?;
    daemon.run("abort", &witness.guest, &product)?;
    witness.ensure_untouched(&product, &["xvda"])?;
    // Nor does it stand in the way of the next.
    product.run("snapshot-create -n s {}")?;
    Ok(())
}

/// By a release of the ctx, and without a word.
fn end_of_the_program(context: &mut Context) -> Result<()> {
    let daemon = Daemon::install(context)?;
    let lab = context.lab();
    let (witness, product) = one_disk(lab, "ends")?;
    daemon.run("release", &witness.guest, &product)?;
    witness.ensure_untouched(&product, &["xvda"])?;

    daemon.run("leave", &witness.guest, &product)?;
    // It has left a child, which keeps open what the daemon had.
    lab.run(&format!("pgrep -f '^{PROGRAM} .*leave'"))?;
    lab.run(
        "tries=0; while pgrep -x libxl-ext-agent >/dev/null; do \
         tries=$((tries + 1)); [ $tries -gt 600 ] && exit 1; sleep 0.2; done",
    )?;
    lab.run(&format!("pkill -f '^{PROGRAM} .*leave'"))?;
    let list = product.try_run("snapshot-list {}")?;
    assert_eq!(
        (list.status, list.stderr.as_str()),
        (0, ""),
        "it was the agent that took it back"
    );
    witness.ensure_untouched(&product, &["xvda"])
}

fn end_of_the_agent(context: &mut Context) -> Result<()> {
    let daemon = Daemon::install(context)?;
    let lab = context.lab();
    let (witness, product) = one_disk(lab, "orphan")?;
    daemon.run_command(&format!(
        "{} & pid=$!; while kill -0 $pid 2>/dev/null; do \
         if {}; then pkill -9 -x libxl-ext-agent; break; fi; done; wait $pid",
        Daemon::command("killed", &witness.guest, &product),
        product.memory_beyond(5)
    ))?;
    witness.ensure_untouched(&product, &["xvda"])
}

fn refuses(context: &mut Context) -> Result<()> {
    let daemon = Daemon::install(context)?;
    let (witness, product) = one_disk(context.lab(), "refuses")?;
    daemon.run("errors", &witness.guest, &product)?;
    witness.ensure_untouched(&product, &["xvda"])
}

/// In one loop, then in two threads. In the usual store, so that this is shown too.
fn two_domains(context: &mut Context) -> Result<()> {
    context.is_expensive()?;
    let daemon = Daemon::install(context)?;
    let lab = context.lab();
    let store = "/var/lib/xen/libxl-ext";
    let (first, product) = one_disk(lab, "thread1")?;
    let (second, other) = one_disk(lab, "thread2")?;
    let (product, other) = (product.store(store), other.store(store));
    daemon.run_command(&format!("{PROGRAM} both thread1 thread2"))?;
    daemon.run_command(&format!("{PROGRAM} threads thread1 thread2"))?;
    first.ensure_untouched(&product, &["xvda"])?;
    second.ensure_untouched(&other, &["xvda"])
}

fn children(context: &mut Context) -> Result<()> {
    let daemon = Daemon::install(context)?;
    let (witness, product) = one_disk(context.lab(), "children")?;
    daemon.run("sigchld", &witness.guest, &product)?;
    daemon.run("sigchld-libxl", &witness.guest, &product)?;
    witness.ensure_untouched(&product, &["xvda"])
}

fn fork(context: &mut Context) -> Result<()> {
    let daemon = Daemon::install(context)?;
    let (witness, product) = one_disk(context.lab(), "forks")?;
    daemon.run("fork", &witness.guest, &product)?;
    witness.ensure_untouched(&product, &["xvda"])
}

/// Not `revert` and `sigchld-libxl`, in which the daemon itself asks libxl about domains: valgrind 3.19 does not know
/// the sysctls of Xen 4.17 ("version 0x15 not supported") and lets them fail with ENOSYS, which libxl takes for a
/// disaster. `create`, `both` and `threads` were run too and are as clean; but a start of valgrind costs 14 s here.
///
/// The two ioctls that it does not know either (privcmd's 0x50ff and 0x105005, from `libxl_ctx_alloc`) lead to no
/// complaint, so nothing is suppressed.
fn valgrind(context: &mut Context) -> Result<()> {
    context.is_expensive()?;
    let daemon = Daemon::install(context)?;
    let lab = context.lab();
    let (witness, product) = one_disk(lab, "valgrind")?;
    for scenario in ["errors", "blocking", "abort", "release", "sigchld"] {
        let log = format!("{}/{scenario}.valgrind", witness.guest.dir());
        let run = daemon.run_command(&format!(
            "valgrind --log-file={log} --child-silent-after-fork=yes --error-exitcode=9 --leak-check=full \
             --errors-for-leak-kinds=definite,possible {}",
            Daemon::command(scenario, &witness.guest, &product)
        ));
        let found = lab.run(&format!("cat {log}"))?;
        ensure!(run.is_ok(), "{:#}\n{found}", run.unwrap_err());
        ensure!(found.contains("ERROR SUMMARY: 0 errors"), "{found}");
    }
    witness.ensure_goes_on(&product, &["xvda"])
}
