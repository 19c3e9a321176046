//! Saved domains, and their host that goes down: in an orderly way, and by a loss of power. Each of the latter costs a
//! boot, so they come last.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::faults::{self, die_at};
use super::managed_save::status;
use super::snapshot::{DISKS, State, two_disks};
use crate::guest::{Guest, GuestSpec};
use crate::host::Lab;
use crate::product::Product;
use crate::step::{Context, Step};

pub(super) const STEPS: &[Step] = &[
    Step {
        name: "ts-host-shutdown-and-start-within-a-budget",
        run: budget,
        cells: &[],
    },
    Step {
        name: "ts-managed-save-survives-power-cuts-of-its-start",
        run: power_cuts_of_start,
        cells: &[],
    },
    Step {
        name: "ts-managed-save-survives-power-cuts-of-its-save",
        run: power_cuts_of_save,
        cells: &[],
    },
    Step {
        name: "ts-host-reboots-and-guests-count-on",
        run: reboot,
        cells: &[],
    },
];

/// Where the units keep the images.
const STORE: &str = "/var/lib/xen/libxl-ext";

/// Without a reboot: what fits is saved, what does not is shut down; both are there again.
fn budget(context: &mut Context) -> Result<()> {
    context.needs_product()?;
    let lab = context.lab();
    let create = |name: &str| Guest::create(lab, &GuestSpec::pv(name).disks(&[16]));
    let (fits, ends) = (create("fits")?, create("ends")?);
    let product = Product::of(lab, &fits);
    let (life, other) = (fits.life_id()?, ends.life_id()?);
    let auto = format!("{}/auto", fits.dir());
    let save = format!("{}/save", fits.dir());
    lab.run(&format!(
        "mkdir {auto} {save} && ln -s {}/guest.cfg {auto}/ends && ln -s {}/guest.cfg {auto}/fits",
        ends.dir(),
        fits.dir()
    ))?;
    let plan = product.run("host-shutdown --plan --save-mib 150")?;
    ensure!(
        plan.contains("'fits': it is saved") && plan.contains("'ends': its image may take"),
        "{plan}"
    );
    let output = product.try_run("host-shutdown --save-mib 150")?;
    ensure!(output.status == 0, "{}", output.stderr);
    for words in ["'fits': saved", "'ends': its image may take"] {
        ensure!(output.stderr.contains(words), "{}", output.stderr);
    }
    fits.wait_gone()?;
    ends.wait_gone()?;
    assert_eq!(status(&product)?, 0);
    // The journal of the host says it too.
    lab.run("journalctl -t xl-ext --no-pager | grep -q \"'ends': its image may take\"")?;

    let start = format!("host-start --auto {auto} --xendomains-save {save}");
    // One that xendomains has saved is left to it.
    lab.run(&format!("touch {save}/ends"))?;
    product.run(&start)?;
    ensure!(fits.exists() && !ends.exists(), "xendomains has saved it");
    assert_eq!(fits.life_id()?, life);
    lab.run(&format!("rm {save}/ends"))?;
    product.run(&start)?;
    ends.wait_ready()?;
    ensure!(ends.life_id()? != other, "it did not boot");

    // No time at all: all are shut down.
    let output = product.try_run("host-shutdown --save-seconds 0")?;
    ensure!(output.status == 0, "{}", output.stderr);
    ensure!(
        output.stderr.contains("the time for saving is up"),
        "{}",
        output.stderr
    );
    fits.wait_gone()?;
    ends.wait_gone()?;
    assert_eq!(status(&product)?, 1);
    // And what was saved by hand is not for the boot, unless it is of the directory.
    product.run(&format!("start {}/guest.cfg", fits.dir()))?;
    fits.wait_ready()?;
    product.run("managed-save {}")?;
    lab.run(&format!("rm {auto}/fits {auto}/ends"))?;
    product.run(&start)?;
    ensure!(!fits.exists(), "it was saved by hand");
    Ok(())
}

/// Cuts the power once a command has died at a point.
fn cut_at(
    context: &mut Context,
    name: &str,
    arguments: &str,
    point: &str,
    then: fn(&Guest<'_>) -> Result<()>,
) -> Result<()> {
    let lab = context.lab();
    let guest = Guest::attach(lab, name);
    die_at(lab, &Product::of(lab, &guest), arguments, point)?;
    then(&guest)?;
    context.lab_mut().power_cut()?;
    context.lab_mut().start()
}

/// Before the guest may run it is there to go on; after that it is not, and never has two lives.
fn power_cuts_of_start(context: &mut Context) -> Result<()> {
    context.needs_product()?;
    faults::install(context)?;
    let (guest, product) = two_disks(context.lab(), "cutstart")?;
    let state = State::set(&guest, "before")?;
    product.run("managed-save {}")?;
    context.lab().run("sync")?;
    cut_at(context, "cutstart", "start {}", "do-3-start-next", |_| {
        Ok(())
    })?;

    let lab = context.lab();
    let guest = Guest::attach(lab, "cutstart");
    let product = Product::of(lab, &guest);
    assert_eq!(product.try_run("managed-save-status {}")?.status, 0);
    ensure!(!guest.exists(), "it runs by itself");
    product.run("start {}")?;
    assert_eq!(State::read(&guest)?, state);

    product.run("managed-save {}")?;
    context.lab().run("sync")?;
    cut_at(
        context,
        "cutstart",
        "start {}",
        "do-3-start-performed",
        |guest| {
            // It lives, and writes.
            guest.wait_counter_beyond(guest.counter()?)?;
            State::change(guest, "after")
        },
    )?;
    let lab = context.lab();
    let guest = Guest::attach(lab, "cutstart");
    let product = Product::of(lab, &guest);
    assert_eq!(product.try_run("managed-save-status {}")?.status, 1);
    product.refuses("start {}", &["was not saved"])?;
    product.ensure_nothing_left(&guest, &DISKS)?;
    product.run(&format!("start {}/guest.cfg", guest.dir()))?;
    guest.wait_ready()
}

/// Before the commit the guest comes back by itself; after it, when it is started.
fn power_cuts_of_save(context: &mut Context) -> Result<()> {
    context.is_expensive()?;
    context.needs_product()?;
    faults::install(context)?;
    let (guest, _) = two_disks(context.lab(), "cutsave")?;
    let state = State::set(&guest, "before")?;
    context.lab().run("sync")?;
    for (point, is_saved) in [
        ("do-7-commit-begun", false),
        ("do-7-commit-performed", true),
    ] {
        cut_at(context, "cutsave", "managed-save {}", point, |_| Ok(()))?;
        let lab = context.lab();
        let guest = Guest::attach(lab, "cutsave");
        let product = Product::of(lab, &guest);
        let found = product.try_run("managed-save-status {}")?.status;
        assert_eq!(found, i32::from(!is_saved), "{point}");
        if is_saved {
            product.run("start {}")?;
        }
        assert_eq!(State::read(&guest)?, state, "{point}");
        guest.wait_counter_beyond(guest.counter()?)?;
        product.ensure_nothing_left(&guest, &DISKS)?;
        lab.run("sync")?;
    }
    Ok(())
}

/// Three guests: one that xendomains starts, one of a login session, one of nobody's. The host goes down and comes up,
/// and they count on; xendomains has had nothing to do.
fn reboot(context: &mut Context) -> Result<()> {
    context.needs_product()?;
    let result = rebooted(context);
    // As other steps expect it.
    context.lab().run(
        "systemctl disable -q xl-ext-restore xl-ext-save; rm -rf /etc/xen/auto/* /var/lib/xen/save/*; \
         ln -sf /dev/null /etc/systemd/system/xendomains.service; systemctl daemon-reload; \
         systemctl reset-failed; sync",
    )?;
    result
}

fn rebooted(context: &mut Context) -> Result<()> {
    let lab = context.lab();
    let [auto, session, plain] =
        ["auto", "session", "plain"].map(|name| GuestSpec::pv(name).disks(&[16]));
    for spec in [&auto, &session] {
        spec.prepare(lab)?;
    }
    lab.run(&format!(
        "mkdir -p /etc/xen/auto && ln -s {} /etc/xen/auto/auto.cfg && \
         rm -f /etc/systemd/system/xendomains.service && systemctl daemon-reload && \
         systemctl enable -q xl-ext-restore xl-ext-save && \
         systemctl start xl-ext-save && systemctl start xendomains && \
         systemd-run -q --scope --unit=session-lab xl create {}",
        auto.config_path(),
        session.config_path()
    ))?;
    Guest::create(lab, &plain)?;
    let mut before = Vec::new();
    for name in ["auto", "session", "plain"] {
        let guest = Guest::attach(lab, name);
        guest.wait_ready()?;
        guest.set_memory("word", name)?;
        before.push((name, guest.life_id()?, guest.counter()?));
    }
    let boot = lab.run("cat /proc/sys/kernel/random/boot_id")?;
    context.lab_mut().poweroff()?;
    context.lab_mut().start()?;

    let lab = context.lab();
    ensure!(
        lab.run("cat /proc/sys/kernel/random/boot_id")? != boot,
        "it did not boot"
    );
    wait_for_units(lab)?;
    for (name, life, counter) in before {
        let guest = Guest::attach(lab, name);
        guest.wait_ready()?;
        assert_eq!(guest.life_id()?, life, "{name} was booted afresh");
        assert_eq!(guest.get_memory("word")?, name);
        guest.wait_counter_beyond(counter)?;
    }
    let product = Product::of(lab, &Guest::attach(lab, "auto")).store(STORE);
    assert_eq!(product.run("managed-save-list")?, "");
    // It would say what it saves, restores and starts.
    let said = lab.run("journalctl --no-pager -u xendomains -o cat")?;
    for done in ["Saving", "Restoring", "Shutting down"] {
        ensure!(!said.contains(done), "{said}");
    }
    assert_eq!(
        said.matches("Starting Xen domain auto").count(),
        1,
        "{said}"
    );
    ensure!(said.contains("auto already running"), "{said}");
    assert_eq!(lab.run("ls /var/lib/xen/save 2>/dev/null || true")?, "");
    Ok(())
}

/// Restoring three guests takes a while under emulation.
fn wait_for_units(lab: &Lab) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(400);
    loop {
        let states = lab.run(
            "systemctl show -P ActiveState xl-ext-restore xl-ext-save xendomains | grep . | sort | uniq -c",
        )?;
        if states.trim().starts_with('3') && states.ends_with(" active") {
            return Ok(());
        }
        ensure!(Instant::now() < end, "the units are {states}");
        thread::sleep(Duration::from_secs(2));
    }
}
