//! Guests: that what other steps learn from them is true.

use anyhow::{Result, ensure};

use crate::guest::{Guest, GuestSpec, Mark, image_sum, pattern_sum};
use crate::step::{Context, Step};

pub(super) const STEPS: &[Step] = &[
    Step {
        name: "ts-pv-guest-counts",
        run: pv_guest_counts,
        cells: &[],
    },
    Step {
        name: "ts-guest-disk-write-and-sum",
        run: guest_disk_write_and_sum,
        cells: &[],
    },
    Step {
        name: "ts-guest-marks-disks-in-order",
        run: guest_marks_disks_in_order,
        cells: &[],
    },
];

fn pv_guest_counts(context: &mut Context) -> Result<()> {
    context.is_expensive()?;
    let guest = Guest::create(context.lab(), &GuestSpec::pv("counts"))?;
    let before = guest.counter()?;
    guest.wait_counter_beyond(before)?;
    assert_eq!(guest.life_id()?, guest.life_id()?);
    guest.set_memory("colour", "green")?;
    assert_eq!(guest.get_memory("colour")?, "green");
    ensure!(
        guest.get_memory("nothing").is_err(),
        "a value that was never set was there"
    );
    ensure!(guest.ask("nonsense").is_err(), "nonsense was understood");
    Ok(())
}

fn guest_disk_write_and_sum(context: &mut Context) -> Result<()> {
    context.is_expensive()?;
    let lab = context.lab();
    let guest = Guest::create(lab, &GuestSpec::pv("writes").disks(&[64, 32]))?;
    for (vdev, pattern) in [("xvda", "apple"), ("xvdb", "pear")] {
        guest.write(vdev, 4, 3, pattern)?;
        assert_eq!(guest.sum(vdev, 4, 3)?, pattern_sum(pattern, 3));
    }
    guest.poweroff()?;
    for (vdev, pattern) in [("xvda", "apple"), ("xvdb", "pear")] {
        assert_eq!(
            image_sum(lab, &guest.disk_path(vdev), 4, 3)?,
            pattern_sum(pattern, 3),
            "{vdev} as dom0 reads it"
        );
    }
    Ok(())
}

fn guest_marks_disks_in_order(context: &mut Context) -> Result<()> {
    context.is_expensive()?;
    let lab = context.lab();
    let guest = Guest::create(lab, &GuestSpec::pv("marks").disks(&[16, 16]))?;
    let life = guest.life_id()?;
    guest.wait_counter_beyond(4)?;
    guest.mark_disks(false)?;
    let mark = |vdev: &str| Mark::read(lab, &guest.disk_path(vdev));
    let (first, second) = (mark("xvda")?, mark("xvdb")?);
    let sums = (guest.sum("xvda", 0, 1)?, guest.sum("xvdb", 0, 1)?);
    guest.wait_counter_beyond(guest.counter()?)?;
    assert_eq!(
        sums,
        (guest.sum("xvda", 0, 1)?, guest.sum("xvdb", 0, 1)?),
        "marks went on"
    );
    let (Some(first), Some(second)) = (first, second) else {
        anyhow::bail!("a disk has no mark");
    };
    assert_eq!((first.seq, &first.life), (second.seq, &second.life));
    assert_eq!(first.life, life);
    guest.mark_disks(true)?;
    Ok(())
}
