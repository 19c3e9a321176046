//! Stock save and restore: what the product's snapshots of memory build on.

use anyhow::Result;

use crate::guest::{Guest, GuestSpec};
use crate::step::{Context, Step};

pub(super) const STEPS: &[Step] = &[Step {
    name: "ts-stock-save-restore-keeps-memory",
    run: save_restore_keeps_memory,
    cells: &[],
}];

fn save_restore_keeps_memory(context: &mut Context) -> Result<()> {
    context.is_expensive()?;
    let lab = context.lab();
    let guest = Guest::create(lab, &GuestSpec::pv("saved").disks(&[16]))?;
    let life = guest.life_id()?;
    let domid = guest.domid()?;
    guest.set_memory("colour", "blue")?;
    let counter = guest.counter()?;
    let file = format!("{}/memory", guest.dir());
    lab.run(&format!("xl save {} {file}", guest.name()))?;
    guest.wait_gone()?;
    lab.run(&format!("xl restore {file}"))?;
    guest.wait_ready()?;
    assert_ne!(guest.domid()?, domid);
    assert_eq!(guest.life_id()?, life);
    assert_eq!(guest.get_memory("colour")?, "blue");
    guest.wait_counter_beyond(counter)?;
    guest.write("xvda", 1, 1, "after")?;
    Ok(())
}
