//! Each operation is killed at each of its fault points, and the next command ends what it had begun: everything is
//! as before the operation or as after it, and never in between. `docs/crash-safety.md` tells what that shows.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::faults;
use super::snapshot::State;
use crate::coverage::{Cells, Disks, Feature};
use crate::guest::{Guest, GuestSpec};
use crate::host::Lab;
use crate::product::Product;
use crate::ssh::quote;
use crate::step::{Context, Step};

pub(super) const STEPS: &[Step] = &[
    Step {
        name: "ts-fault-points-of-create",
        run: |context| {
            killed_at(
                context,
                &create("", "--disk xvdb,snapshot=external"),
                once_each_step,
            )
        },
        cells: &[Cells::pv(&[Feature::Killed], &[Disks::Mixed])],
    },
    Step {
        name: "ts-fault-points-of-revert",
        run: |context| {
            killed_at(
                context,
                &revert("", "--disk xvdb,snapshot=external"),
                once_each_step,
            )
        },
        cells: &[Cells::pv(&[Feature::Killed], &[Disks::Mixed])],
    },
    Step {
        name: "ts-fault-points-of-delete",
        run: |context| {
            killed_at(
                context,
                &delete("", "--disk xvdb,snapshot=external"),
                once_each_step,
            )
        },
        cells: &[Cells::pv(&[Feature::Killed], &[Disks::Mixed])],
    },
    Step {
        name: "ts-fault-points-of-internal-create",
        run: |context| killed_at(context, &create("in", ""), |_| true),
        cells: &[],
    },
    Step {
        name: "ts-fault-points-of-internal-revert",
        run: |context| killed_at(context, &revert("in", ""), |_| true),
        cells: &[],
    },
    Step {
        name: "ts-fault-points-of-internal-delete",
        run: |context| killed_at(context, &delete("in", ""), |_| true),
        cells: &[],
    },
    Step {
        name: "ts-fault-points-of-external-create",
        run: |context| killed_at(context, &create("ex", "--external"), |_| true),
        cells: &[],
    },
    Step {
        name: "ts-fault-points-of-external-revert",
        run: |context| killed_at(context, &revert("ex", "--external"), |_| true),
        cells: &[],
    },
    Step {
        name: "ts-fault-points-of-external-delete",
        run: |context| killed_at(context, &delete("ex", "--external"), |_| true),
        cells: &[],
    },
];

/// An operation that is killed over and over. The guest lives on from `kept` to `present` after the preparation.
struct Scene {
    /// What the guest is called.
    name: String,
    /// Commands that lead to the state before.
    preparation: Option<String>,
    /// The operation.
    command: String,
    /// The command that leads from the state after back to the one before; without one the guest itself does.
    reset: Option<String>,
}

/// A snapshot is taken with these options.
fn create(name: &str, how: &str) -> Scene {
    Scene {
        name: format!("fp{name}create"),
        preparation: None,
        command: format!("snapshot-create -n x {how} {{}}"),
        reset: Some("snapshot-delete {} x".to_owned()),
    }
}

/// One is gone back to.
fn revert(name: &str, how: &str) -> Scene {
    Scene {
        name: format!("fp{name}revert"),
        preparation: Some(format!("snapshot-create -n x {how} {{}}")),
        command: "snapshot-revert {} x".to_owned(),
        reset: None,
    }
}

/// One is deleted.
fn delete(name: &str, how: &str) -> Scene {
    let create = Some(format!("snapshot-create -n x {how} {{}}"));
    Scene {
        name: format!("fp{name}delete"),
        preparation: create.clone(),
        command: "snapshot-delete {} x".to_owned(),
        reset: create,
    }
}

/// A scene with its guest.
struct Stage<'lab> {
    lab: &'lab Lab,
    scene: &'lab Scene,
    guest: Guest<'lab>,
    product: Product<'lab>,
    before: String,
    after: String,
}

/// One point for each step, at which most was done that the journal does not say: the step is performed, and it says only
/// that it began; and both sides of a commit.
fn once_each_step(point: &str) -> bool {
    point.ends_with("-performed") || point.ends_with("-commit-begun")
}

/// At the points that are chosen, and its recovery too.
fn killed_at(context: &mut Context, scene: &Scene, is_chosen: fn(&str) -> bool) -> Result<()> {
    context.is_expensive()?;
    faults::install(context)?;
    let lab = context.lab();
    let guest = Guest::create(lab, &GuestSpec::pv(&scene.name).disks(&[8, 8]))?;
    let started = Instant::now();
    let product = Product::of(lab, &guest);
    State::change(&guest, "kept")?;
    if let Some(command) = &scene.preparation {
        product.run(command)?;
    }
    State::change(&guest, "present")?;
    let mut stage = Stage {
        lab,
        scene,
        guest,
        product,
        before: String::new(),
        after: String::new(),
    };
    // The lock is there from the first command on.
    stage.product.run("snapshot-verify {}")?;
    stage.before = stage.look()?;
    let points = stage.points_of(&scene.command)?;
    stage.after = stage.look()?;
    ensure!(
        stage.before != stage.after,
        "{} shows no difference",
        scene.command
    );
    stage.reset()?;
    let is_commit = |point: &String| point.ends_with("-commit-begun");
    let commit = points.iter().position(is_commit);
    let commit = commit.with_context(|| format!("no commit among {points:?}"))?;

    let mut tried = 0;
    for (at, point) in points.iter().enumerate() {
        if !is_chosen(point) {
            continue;
        }
        stage.die_at(&scene.command, point)?;
        stage.recover(at > commit, point)?;
        tried += 1;
    }
    println!(
        "      {}: {tried} of {} points, in {:.0} s",
        scene.command,
        points.len(),
        started.elapsed().as_secs_f32()
    );
    // What takes back and what finishes is killed too, where there is most of it: at one point after another.
    for (is_done, point) in [(false, &points[commit]), (true, &points[commit + 1])] {
        stage.die_at(&scene.command, point)?;
        let recovery = stage.points_of("snapshot-list {}")?;
        stage.recover(is_done, point)?;
        let chosen = recovery.iter().filter(|point| is_chosen(point));
        let chosen: Vec<_> = chosen.collect();
        stage.die_at(&scene.command, point)?;
        for second in &chosen {
            stage.die_at("snapshot-list {}", second)?;
        }
        stage.recover(is_done, &format!("{point}, then {chosen:?}"))?;
        println!(
            "      {} killed at {point}, and its recovery: {} of {} points, in {:.0} s",
            scene.command,
            chosen.len(),
            recovery.len(),
            started.elapsed().as_secs_f32()
        );
    }
    // And it works as it did the first time.
    stage.product.run(&scene.command)?;
    stage.expect(&stage.after, "the command, given again")
}

impl Stage<'_> {
    /// The points that a command passes. It is carried out.
    fn points_of(&self, arguments: &str) -> Result<Vec<String>> {
        let log = format!("{}.points", self.guest.dir());
        let told = format!("XL_EXT_FAULT_LOG={}", quote(&log));
        let command = faults::command(&self.product, &told, arguments);
        let text = self
            .lab
            .run(&format!("{command} >/dev/null && cat {log} && rm {log}"))?;
        let points: Vec<_> = text.lines().map(str::to_owned).collect();
        let different: BTreeSet<_> = points.iter().collect();
        ensure!(
            points.len() == different.len(),
            "a point of {points:?} has a name twice"
        );
        Ok(points)
    }

    fn die_at(&self, arguments: &str, point: &str) -> Result<()> {
        faults::die_at(self.lab, &self.product, arguments, point)
    }

    /// Gives the next command, which also looks whether all snapshots are whole, and checks that everything is as
    /// after the operation or as before it. Leads back to before.
    fn recover(&self, is_done: bool, point: &str) -> Result<()> {
        let when = format!("{}, after a kill at {point}", self.scene.command);
        let output = self.product.try_run("snapshot-verify {}")?;
        ensure!(
            output.status == 0,
            "{when}: snapshot-verify ended with {}: {}{}",
            output.status,
            output.stdout,
            output.stderr
        );
        let (wanted, other) = if is_done {
            (&self.after, "was taken back")
        } else {
            (&self.before, "was finished")
        };
        ensure!(!output.stderr.contains(other), "{when}: {}", output.stderr);
        self.expect(wanted, &when)?;
        if is_done {
            self.reset()?;
        }
        Ok(())
    }

    fn reset(&self) -> Result<()> {
        match &self.scene.reset {
            Some(command) => self.product.run(command).map(drop),
            None => State::change(&self.guest, "present"),
        }
    }

    /// All is as it was seen once.
    fn expect(&self, wanted: &str, when: &str) -> Result<()> {
        // A process that ends by itself may take a moment.
        let end = Instant::now() + Duration::from_secs(15);
        loop {
            let seen = self.look()?;
            if seen == wanted {
                return Ok(());
            }
            ensure!(
                Instant::now() < end,
                "{when}, this is to be seen:\n{seen}\ninstead of:\n{wanted}"
            );
        }
    }

    /// All that can be told of the guest, its files, its processes and its snapshots, with identities left out
    /// that are other ones each time.
    fn look(&self) -> Result<String> {
        let script = format!(
            r#"
name={name} dir={dir}
domid=$(xl domid $name)
echo "- snapshots"; {list} | grep -E '"(name|current)":'
echo "- guest"; xl list $name | awk 'NR > 1 {{ gsub(/[-rb]/, "", $5); print $1, $5 }}'
guest-ask $name 60 'mem get word ; sum xvda 2 1 ; sum xvdb 2 1'
echo "- domains"; xl list | tail -n +2 | wc -l
echo "- files"; find $dir* ! -name domain ! -name present | sort
echo "- tags"; for image in $dir/*.qcow2; do
	echo $image; qemu-img info -U -f qcow2 $image | grep -oE 'xl-ext-[0-9a-f-]+|^backing file: .*'
done
echo "- disks"; xl list -l $domid | grep pdev_path
for p in $(pgrep -f "xen-domid $domid "); do echo QEMU; readlink /proc/$p/fd/* | grep $dir | sort -u; done
echo "- xenstore"; xenstore-ls -f /libxl/$domid/ext 2>/dev/null | sed "s,/libxl/$domid,,"
echo "- processes"; ps -eo stat=,args= | grep -E '^T|[l]ibxl-save-helper|[/ ]xl(-ext[a-z-]*)? (create|restore|snapshot|save)' | grep -v grep |
	awk '{{ print ($1 ~ /^T/ ? "stopped" : "going"), ($3 == "restore" || $3 == "create" ? "monitor" : $0) }}'
true"#,
            name = quote(self.guest.name()),
            dir = quote(&self.guest.dir()),
            list = self.product.command("snapshot-list --json {}"),
        );
        let text = self.lab.run(&script)?;
        Ok(without_ids(&text))
    }
}

/// Replaces each UUID.
fn without_ids(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if is_uuid(rest) {
            out.push_str("ID");
            rest = &rest[36..];
        } else {
            out.push(c);
            rest = &rest[c.len_utf8()..];
        }
    }
    out
}

fn is_uuid(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() >= 36
        && bytes[..36].iter().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => *byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_are_left_out_and_nothing_else() {
        let text = "a-12345678-90ab-cdef-1234-567890abcdef.qcow2 é 1234";
        assert_eq!(without_ids(text), "a-ID.qcow2 é 1234");
    }
}
