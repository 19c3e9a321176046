//! Disks that are replicated to another store, as if it were another host's, and the domain going on from there.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::time::{Duration, Instant};

use crate::guest::{Guest, GuestSpec, image_sum, pattern_sum};
use crate::host::Lab;
use crate::product::Product;
use crate::step::{Context, Step};

pub(super) const STEPS: &[Step] = &[
    Step {
        name: "ts-replication-fails-over-to-the-last-checkpoint",
        run: fails_over,
        cells: &[],
    },
    Step {
        name: "ts-replication-fails-over-with-memory",
        run: fails_over_with_memory,
        cells: &[],
    },
    Step {
        name: "ts-replication-breaks-and-goes-on",
        run: breaks,
        cells: &[],
    },
];

/// Long enough for whatever is waited for on a loaded machine.
const LIMIT: Duration = Duration::from_secs(300);

/// The primary's store, and the secondary's, with what listens there.
struct Hosts<'lab> {
    lab: &'lab Lab,
    here: Product<'lab>,
    there: Product<'lab>,
    directory: String,
}

impl<'lab> Hosts<'lab> {
    /// Both have a key, and the secondary listens.
    fn new(lab: &'lab Lab, guest: &Guest<'_>) -> Result<Self> {
        let directory = guest.dir();
        // Those of a step before, which the end of their guests does not end.
        lab.run("pkill -9 -f '[r]eplication-(serve|keep)|[x]l-ext-repl-'; true")?;
        let here = Product::of(lab, guest).store(&format!("{directory}/here"));
        let there = Product::of(lab, guest).store(&format!("{directory}/there"));
        here.refuses(
            "replication-start --secondary 127.0.0.1 {}",
            &["replication-pair"],
        )?;
        there.refuses("replication-serve", &["replication-pair"])?;
        let key = format!("{directory}/key");
        here.run(&format!("replication-pair --export {key} racks"))?;
        let mode = lab.run(&format!("stat -c %a {key}"))?;
        assert_eq!(mode.trim(), "600");
        there.run(&format!("replication-pair --import {key}"))?;
        let hosts = Self {
            lab,
            here,
            there,
            directory,
        };
        hosts.listen()?;
        Ok(hosts)
    }

    fn listen(&self) -> Result<()> {
        let serve = self.there.command("replication-serve --listen 127.0.0.1");
        let directory = &self.directory;
        self.lab.run(&format!(
            "rm -f {directory}/serve.out; ({serve} >{directory}/serve.out 2>{directory}/serve.err </dev/null & \
             echo $! >{directory}/serve.pid); until grep -q listening {directory}/serve.out; do sleep 0.2; \
             kill -0 $(cat {directory}/serve.pid) || {{ cat {directory}/serve.err >&2; exit 1; }}; done"
        ))?;
        Ok(())
    }

    fn kill_listener(&self) -> Result<()> {
        let kill = format!("kill -9 $(cat {}/serve.pid)", self.directory);
        self.lab.run(&kill).map(drop)
    }

    fn start(&self, spec: &GuestSpec) -> Result<()> {
        self.start_with(spec, "").map(drop)
    }

    fn start_with(&self, spec: &GuestSpec, options: &str) -> Result<String> {
        let config = spec.config_path();
        self.here.run(&format!(
            "replication-start --secondary 127.0.0.1 --heartbeat 20000 --domain-config {config} {options} {{}}"
        ))
    }

    fn info(product: &Product<'_>) -> Result<Value> {
        let text = product.run("replication-status --json {}")?;
        let infos: Value = serde_json::from_str(&text)?;
        Ok(infos[0].clone())
    }

    /// The image of a disk at the secondary.
    fn image(&self, at: usize) -> Result<String> {
        let info = Self::info(&self.there)?;
        let image = info["disks"][at]["image"].as_str();
        Ok(image.context("no image")?.to_owned())
    }

    fn wait_for_state(&self, state: &str) -> Result<Value> {
        let end = Instant::now() + LIMIT;
        loop {
            let info = Self::info(&self.here)?;
            if info["state"] == state {
                return Ok(info);
            }
            ensure!(Instant::now() < end, "it is not {state}: {info}");
            std::thread::sleep(Duration::from_millis(300));
        }
    }

    /// Waits until it is broken, for that reason.
    fn wait_for_break(&self, reason: &str) -> Result<()> {
        let info = self.wait_for_state("broken")?;
        let why = info["why"].as_str().unwrap_or_default();
        ensure!(why.contains(reason), "{info}");
        Ok(())
    }

    /// Keeper and guest go, as with their host, and the other side fails over: its disks, of so many MiB, are what was
    /// kept.
    fn fail_over(&self, guest: &Guest<'_>, lengths: [u32; 2], kept: &[String; 2]) -> Result<()> {
        self.there.refuses(
            "replication-failover {}",
            &["/root/guest/vmlinux", "--keep-paths"],
        )?;
        self.kill_keeper()?;
        guest.destroy()?;
        self.there.run("replication-failover --no-start {}")?;
        for (at, (length, kept)) in lengths.into_iter().zip(kept).enumerate() {
            let image = self.image(at)?;
            assert_eq!(&image_sum(self.lab, &image, 0, length)?, kept, "disk {at}");
        }
        Ok(())
    }

    fn kill_keeper(&self) -> Result<()> {
        let keeper = self.pids("[r]eplication-keep")?;
        self.lab.run(&format!("kill -9 {keeper}")).map(drop)
    }

    /// The processes of ours whose arguments match.
    fn pids(&self, pattern: &str) -> Result<String> {
        let pids = self.lab.run(&format!("pgrep -f -- {pattern}"))?;
        Ok(pids.split_whitespace().collect::<Vec<_>>().join(" "))
    }
}

/// Keeper and guest are gone, as with their host: the other store's disks are the last checkpoint, and the domain goes on on
/// them; here it has lost.
fn fails_over(context: &mut Context) -> Result<()> {
    context.needs_product()?;
    let lab = context.lab();
    let spec = GuestSpec::pv("repl-over").disks(&[24, 16]);
    let guest = Guest::create(lab, &spec)?;
    let hosts = Hosts::new(lab, &guest)?;
    let Hosts { here, there, .. } = &hosts;
    for (side, command) in [
        (here, "replication-checkpoint {}"),
        (here, "replication-stop {}"),
        (here, "replication-resume {}"),
        (there, "replication-failover nobody"),
    ] {
        side.refuses(command, &["not replicated"])?;
    }
    guest.write("xvda", 4, 2, "before")?;
    hosts.start(&spec)?;
    let info = Hosts::info(here)?;
    assert_eq!(
        (&info["state"], &info["role"]),
        (&"running".into(), &"primary".into())
    );
    here.refuses(
        "replication-start --secondary 127.0.0.1 {}",
        &["is replicated to 127.0.0.1:9433", "replication-stop"],
    )?;
    for command in [
        "snapshot-create {}",
        "managed-save {}",
        "block-pull {} xvda",
    ] {
        here.refuses(command, &["is replicated to", "replication-stop"])?;
    }
    guest.write("xvda", 4, 2, "kept")?;
    guest.write("xvdb", 8, 2, "kept-too")?;
    guest.mark_disks(false)?;
    let kept = [guest.sum("xvda", 0, 24)?, guest.sum("xvdb", 0, 16)?];
    let made = here.run("replication-checkpoint {}")?;
    ensure!(made.contains("checkpoint 2;"), "{made}");
    println!("{}", made.trim());
    guest.mark_disks(true)?;
    guest.write("xvda", 4, 4, "lost")?;
    guest.write("xvdb", 8, 4, "lost-too")?;
    let info = Hosts::info(there)?;
    assert_eq!(info["state"], "replicating");
    assert_eq!(info["checkpoint"]["number"], 2);
    strangers_get_nothing(lab)?;
    hosts.fail_over(&guest, [24, 16], &kept)?;
    there.refuses(
        "replication-failover {}",
        &["has failed over to this host already"],
    )?;
    let info = Hosts::info(there)?;
    assert_eq!(
        (&info["state"], &info["generation"]),
        (&"failed over".into(), &2.into())
    );

    // Here it comes back, and finds that it has lost.
    let create = |product: &Product<'_>, config: &str| {
        let xl = format!("{}/xl", hosts.directory);
        lab.try_run(
            &format!(
                "ln -sf $(command -v xl-ext) {xl} && XL_EXT_STORE={} {xl} create {config}",
                product.store_dir()
            ),
            LIMIT,
        )
    };
    let refused = create(here, &spec.config_path())?;
    ensure!(
        refused.status != 0 && refused.stderr.contains("has failed over"),
        "{}",
        refused.stderr
    );
    here.refuses(
        &format!("start {}", spec.config_path()),
        &["has failed over"],
    )?;
    assert_eq!(Hosts::info(here)?["state"], "lost");

    let config = format!("{}/{}/replica/domain.cfg", there.store_dir(), guest.name());
    let created = create(there, &config)?;
    ensure!(created.status == 0, "{}", created.stderr);
    guest.wait_ready()?;
    assert_eq!(guest.sum("xvda", 4, 2)?, pattern_sum("kept", 2));
    assert_eq!(guest.sum("xvdb", 8, 2)?, pattern_sum("kept-too", 2));
    here.refuses("replication-resume {}", &["has failed over"])?;
    here.refuses("replication-stop {}", &["has failed over", "--forget"])?;
    // What failed over is a domain like any other.
    there.run("snapshot-create -n after {}")?;
    here.run("replication-stop --forget {}")?;
    Ok(())
}

/// The guest's memory goes along: it goes on at the other store from the last checkpoint, with the disks of that instant, and
/// knows nothing of what came after. Before that, what is killed in the middle of a checkpoint does no harm.
fn fails_over_with_memory(context: &mut Context) -> Result<()> {
    context.needs_product()?;
    let lab = context.lab();
    let spec = GuestSpec::pv("repl-memory").disks(&[24, 16]);
    let guest = Guest::create(lab, &spec)?;
    let hosts = Hosts::new(lab, &guest)?;
    let Hosts { here, there, .. } = &hosts;
    let life = guest.life_id()?;
    let checkpoint = |number: u32| -> Result<u64> {
        let made = here.run("replication-checkpoint {}")?;
        let with_memory = format!("checkpoint {number} with");
        ensure!(made.contains(&with_memory), "{made}");
        println!("{}", made.trim());
        let info = Hosts::info(there)?;
        assert_eq!(info["checkpoint"]["number"], number);
        let stored = info["memory"]["stored_bytes"].as_u64();
        stored.context("nothing is said of the memory")
    };
    guest.set_memory("word", "before")?;
    println!("{}", hosts.start_with(&spec, "--memory")?.trim());
    let first = Hosts::info(there)?["memory"]["stored_bytes"].as_u64();
    let first = first.context("the first checkpoint has no memory")?;
    let counter = guest.wait_counter_beyond(guest.counter()?)?;

    // An idle guest's second memory is little but what has changed.
    let second = checkpoint(2)?;
    println!("stored: {first} bytes, then {second}");
    ensure!(second * 4 < first, "{first} bytes, then {second}");

    // The keeper is killed while the guest is suspended: whoever comes next lets it go on, and what had come is dropped.
    kill_in_a_checkpoint(&hosts)?;
    assert_eq!(Hosts::info(there)?["checkpoint"]["number"], 2);
    println!("{}", here.run("replication-resume {}")?.trim());
    assert_eq!(guest.life_id()?, life);
    guest.wait_counter_beyond(counter)?;

    guest.set_memory("word", "kept")?;
    guest.write("xvda", 4, 2, "kept")?;
    guest.write("xvdb", 8, 2, "kept-too")?;
    guest.mark_disks(false)?;
    let kept = [guest.sum("xvda", 0, 24)?, guest.sum("xvdb", 0, 16)?];
    checkpoint(4)?;
    let counted = guest.counter()?;
    let text = there.run("replication-status {}")?;
    ensure!(text.contains("MiB with the checkpoint"), "{text}");
    guest.set_memory("word", "lost")?;
    guest.write("xvda", 4, 4, "lost")?;
    guest.write("xvdb", 8, 4, "lost-too")?;
    hosts.fail_over(&guest, [24, 16], &kept)?;
    here.refuses(
        &format!("start {}", spec.config_path()),
        &["has failed over"],
    )?;
    let saved: Value = serde_json::from_str(&there.run("managed-save-status --json {}")?)?;
    assert_eq!(saved["stale"], Value::Null, "{saved}");
    let begun = Instant::now();
    there.run("start {}")?;
    guest.wait_ready()?;
    println!("started after {:.1} s", begun.elapsed().as_secs_f64());
    assert_eq!(guest.life_id()?, life, "it was booted");
    assert_eq!(guest.get_memory("word")?, "kept");
    let now = guest.wait_counter_beyond(guest.counter()?)?;
    println!("it counted to {counted} soon after the checkpoint, and to {now} after the failover");
    assert_eq!([guest.sum("xvda", 0, 24)?, guest.sum("xvdb", 0, 16)?], kept);
    guest.write("xvda", 4, 1, "goes on")?;
    // What failed over is a domain like any other, and its memory is no saved state any more.
    there.run("snapshot-create -n after {}")?;
    let left = lab.run(&format!(
        "find {}/{}/replica/memory -type f ! -name lock",
        there.store_dir(),
        guest.name()
    ))?;
    assert_eq!(left.trim(), "", "memory is left over");
    there.run("snapshot-check {}").map(drop)
}

/// Kills the keeper in the middle of a checkpoint, and gives a command for the domain: the guest goes on.
fn kill_in_a_checkpoint(hosts: &Hosts<'_>) -> Result<()> {
    let Hosts { lab, here, .. } = hosts;
    let keeper = hosts.pids("[r]eplication-keep")?;
    let checkpoint = here.command("replication-checkpoint {}");
    let domain = here.command("{}");
    let name = domain.split_whitespace().last().unwrap_or_default();
    let is_suspended = format!("xl list {name} | grep -Eq ' [-rbp]{{3}}ss'");
    lab.run(&format!(
        "({checkpoint} >/dev/null 2>&1 </dev/null &); end=$(($(date +%s) + 120)); \
         until {is_suspended}; do [ $(date +%s) -lt $end ] || exit 1; done; \
         kill -9 {keeper}; sleep 3; {is_suspended}"
    ))?;
    hosts.wait_for_break("is gone")?;
    here.refuses("snapshot-create {}", &["is replicated to"])?;
    let still = lab.try_run(&is_suspended, LIMIT)?;
    ensure!(still.status != 0, "the guest stands still");
    Ok(())
}

/// No byte for who has no key: nor for a client of NBD.
fn strangers_get_nothing(lab: &Lab) -> Result<()> {
    for words in ["GET / HTTP/1.0\\r\\n\\r\\n", "NBDMAGICIHAVEOPT", ""] {
        let heard = lab.run(&format!(
            "yes '' | head -c 200 | (printf '{words}'; cat) | socat -t 30 - TCP:127.0.0.1:9433 2>/dev/null | wc -c"
        ))?;
        assert_eq!(heard.trim(), "0", "{words}");
    }
    let nbd = lab.try_run("qemu-img info nbd://127.0.0.1:9433/xvda", LIMIT)?;
    ensure!(nbd.status != 0, "{}", nbd.stdout);
    // The sidecar itself listens where root alone comes by.
    let sockets = lab.run("stat -c %a /var/run/xen/xl-ext-repl-*")?;
    assert_eq!(sockets.trim(), "700");
    Ok(())
}

/// A secondary that is silent, one whose listener is killed, and a keeper that is killed: each time the guest goes on, it is
/// said, and replication goes on when it is asked for.
fn breaks(context: &mut Context) -> Result<()> {
    context.needs_product()?;
    let lab = context.lab();
    let spec = GuestSpec::pv("repl-breaks").disks(&[16]);
    let guest = Guest::create(lab, &spec)?;
    let hosts = Hosts::new(lab, &guest)?;
    let Hosts { here, there, .. } = &hosts;
    hosts.start(&spec)?;
    let resume = |word: &str| -> Result<()> {
        here.run("replication-resume {}")?;
        assert_eq!(Hosts::info(here)?["state"], "running");
        guest.write("xvda", 4, 1, word)?;
        let made = here.run("replication-checkpoint {}")?;
        println!("{word}: {}", made.trim());
        Ok(())
    };

    let sidecar = hosts.pids("[x]l-ext-repl-")?;
    lab.run(&format!("kill -STOP {sidecar}"))?;
    let begun = Instant::now();
    guest.write("xvda", 4, 1, "silent")?;
    println!(
        "a write beside a silent secondary: {} s",
        begun.elapsed().as_secs()
    );
    hosts.wait_for_break("says nothing")?;
    here.refuses(
        "replication-checkpoint {}",
        &["is broken", "replication-resume"],
    )?;
    lab.run(&format!("kill -CONT {sidecar}"))?;
    resume("after silence")?;

    hosts.kill_listener()?;
    hosts.wait_for_state("broken")?;
    guest.write("xvda", 4, 1, "no listener")?;
    here.refuses("replication-resume {}", &["replication-serve"])?;
    assert_eq!(Hosts::info(there)?["state"], "replicating");
    hosts.listen()?;
    resume("after the listener")?;

    hosts.kill_keeper()?;
    hosts.wait_for_break("is gone")?;
    guest.write("xvda", 4, 1, "no keeper")?;
    resume("after the keeper")?;

    // The QEMU that keeps the checkpoint is killed: there is nothing to fail over to until everything is copied again.
    lab.run(&format!("kill -9 {}", hosts.pids("[x]l-ext-repl-")?))?;
    hosts.wait_for_state("broken")?;
    there.refuses(
        "replication-failover --no-start {}",
        &["is gone", "replication-resume"],
    )?;
    resume("after the sidecar")?;

    guest.mark_disks(false)?;
    let kept = guest.sum("xvda", 0, 16)?;
    here.run("replication-checkpoint {}")?;
    guest.write("xvda", 4, 4, "not there")?;
    here.run("replication-stop {}")?;
    assert_eq!(Hosts::info(here)?["state"], "stopped");
    assert_eq!(Hosts::info(there)?["state"], "stopped");
    assert_eq!(image_sum(lab, &hosts.image(0)?, 0, 16)?, kept);
    here.refuses("replication-stop {}", &["is over already"])?;
    there.refuses("replication-failover {}", &["is stopped"])?;
    here.run("snapshot-create -n after {}")?;
    guest.ask("counter").map(drop)
}
