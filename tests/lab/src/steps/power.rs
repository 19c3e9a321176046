//! Loss of power, and labs beside each other. Each of these costs a boot, so they come last.

use anyhow::{Result, ensure};

use crate::host::{BootOptions, Lab};
use crate::qemu::Lifetime;
use crate::step::{Context, Step};

pub(super) const STEPS: &[Step] = &[
    Step {
        name: "ts-power-cut-keeps-fsynced",
        run: power_cut_keeps_fsynced,
        cells: &[],
    },
    Step {
        name: "ts-two-labs-side-by-side",
        run: two_labs_side_by_side,
        cells: &[],
    },
];

fn power_cut_keeps_fsynced(context: &mut Context) -> Result<()> {
    context.is_expensive()?;
    let lab = context.lab_mut();
    let boot_id = lab.run("cat /proc/sys/kernel/random/boot_id")?;
    // The file and its directory entry; what is only written is in dom0's memory and goes with it.
    lab.run("echo kept > /root/synced && sync /root/synced /root && echo lost > /root/unsynced")?;
    lab.power_cut()?;
    ensure!(!lab.is_running(), "the machine runs on without power");
    lab.start()?;
    assert_ne!(lab.run("cat /proc/sys/kernel/random/boot_id")?, boot_id);
    assert_eq!(lab.run("cat /root/synced")?, "kept");
    assert_eq!(
        lab.run("cat /root/unsynced 2>/dev/null || true")?,
        "",
        "a write that nobody flushed"
    );
    Ok(())
}

fn two_labs_side_by_side(context: &mut Context) -> Result<()> {
    context.is_expensive()?;
    let name = format!("{}-b", context.lab().name());
    let options = BootOptions {
        lifetime: Lifetime::Process,
        ..BootOptions::default()
    };
    let other = Lab::boot(&name, options)?;
    assert_ne!(other.port(), context.lab().port());
    assert_ne!(other.run_dir(), context.lab().run_dir());
    other.run("echo other > /root/which && sync /root/which")?;
    assert_eq!(
        context
            .lab()
            .run("cat /root/which 2>/dev/null || echo none")?,
        "none"
    );
    other.destroy()
}
