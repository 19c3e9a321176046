//! The primary's power is cut, again and again. The other host fails over, and is the primary of the next round; the old one
//! comes back, finds that it has lost, and is the secondary.

use std::fmt::Write as _;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::figures::{ANSWERS, CHECKPOINT, COPY, FAILOVER, Figures, PAUSE, ROUND};
use super::hosts::{HEARTBEAT_MS, Hosts, Side, images};
use super::script::Script;
use super::sequence::{BATCH, Places, VDEVS};
use crate::guest::{Guest, GuestSpec, Mark, image_sum};
use crate::random::Random;
use crate::ssh::quote;

/// The guest's name.
const NAME: &str = "rounds";

/// Sizes of its disks, in MiB.
const SIZES: [u32; 2] = [24, 16];

/// How many batches of writes a script has before it.
const BATCHES: u64 = 60;

/// When the power goes.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// While the guest writes on after a checkpoint, which the disks have to be as to the byte.
    After,
    /// While a checkpoint is made: they are as at this one or at the one before, and the secondary knows which.
    During,
    /// While the guest writes and checkpoints are made at an interval: they are of one instant, which is that of the last.
    Interval,
}

impl Kind {
    const ALL: [Self; 3] = [Self::After, Self::During, Self::Interval];
}

/// All that the disks hold at a checkpoint.
struct Point {
    checkpoint: u64,
    places: Places,
    sums: [String; 2],
}

/// What may be found after a cut.
enum Expected {
    Points(Vec<Point>),
    /// What the script said before the cut.
    Heard(Vec<String>),
}

struct Rounds {
    random: Random,
    primary: Side,
    /// The configuration file that the guest was started with last, on each host.
    configs: [String; 2],
    /// What the disks held when the guest was started last, or at the last point.
    places: Places,
    /// The number of the next write: none is given twice.
    next: u64,
}

/// Cuts the power so many times.
pub(super) fn run(hosts: &mut Hosts, rounds: u32, seed: u64, figures: &mut Figures) -> Result<()> {
    println!("      seed {seed}");
    let spec = GuestSpec::pv(NAME).disks(&SIZES);
    Guest::create(hosts.lab(Side::A), &spec)?;
    // It has to be there after the cut.
    hosts.lab(Side::A).run("sync")?;
    let mut all = Rounds {
        random: Random::new(seed),
        primary: Side::A,
        configs: [spec.config_path(), Hosts::config_after_failover(NAME)],
        places: Places::empty(),
        next: 1,
    };
    for number in 0..rounds {
        let begun = Instant::now();
        let said = all
            .round(hosts, number, figures)
            .with_context(|| format!("round {} of seed {seed}", number + 1))?;
        figures.add(ROUND, begun.elapsed());
        println!(
            "      {:3}  {said}, round {:.0} s",
            number + 1,
            begun.elapsed().as_secs_f64()
        );
    }
    println!(
        "PASS  power-cuts: {rounds}, seed {seed}: each time the disks were those of the last checkpoint"
    );
    Ok(())
}

impl Rounds {
    fn round(&mut self, hosts: &mut Hosts, number: u32, figures: &mut Figures) -> Result<String> {
        let kind = Kind::ALL[number as usize % Kind::ALL.len()];
        let (here, there) = (self.primary, self.primary.other());
        let mut options = format!("--heartbeat {HEARTBEAT_MS}");
        if matches!(kind, Kind::Interval) {
            let _ = write!(options, " --interval {}", 1500 + self.random.below(2500));
        }
        let config = self.configs[here as usize].clone();
        figures.add(COPY, hosts.start(here, NAME, &config, &options)?);
        let before = hosts.info(there, NAME)?;
        ensure!(before["state"] == "replicating", "{before}");
        let expected = match kind {
            Kind::After => self.after(hosts, figures)?,
            Kind::During => self.during(hosts, figures)?,
            Kind::Interval => self.interval(hosts)?,
        };
        let started = hosts.lab_mut(here).switch_on()?;

        // Every second time of those that may, all is left to the one command.
        let is_started_by_it = matches!(kind, Kind::Interval) && number.is_multiple_of(2);
        let begun = Instant::now();
        let product = hosts.product(there, NAME);
        product.run(if is_started_by_it {
            "replication-failover --keep-paths {}"
        } else {
            "replication-failover --no-start {}"
        })?;
        if !is_started_by_it {
            figures.add(FAILOVER, begun.elapsed());
        }
        let found = self.check(hosts, &expected, is_started_by_it)?;
        let starting = Instant::now();
        if !is_started_by_it {
            let created = hosts.create(there, &Hosts::config_after_failover(NAME))?;
            ensure!(created.status == 0, "{}", created.stderr);
        }
        hosts.guest(there, NAME).wait_ready()?;
        if !is_started_by_it {
            figures.add(ANSWERS, starting.elapsed());
        }
        let generation = |info: &serde_json::Value| info["generation"].as_u64();
        let after = hosts.info(there, NAME)?;
        ensure!(
            after["state"] == "failed over" && generation(&after) > generation(&before),
            "{before}, {after}"
        );

        hosts.lab_mut(here).wait_up(started)?;
        hosts.wait_listening(here)?;
        let first = self.finds_that_it_has_lost(hosts, number)?;
        self.primary = there;
        self.configs[there as usize] = Hosts::config_after_failover(NAME);
        Ok(format!("{kind:?} on {}: {found}; {first}", here.name()))
    }

    /// Has the guest write, and stand still.
    fn point(&mut self, guest: &Guest<'_>) -> Result<[String; 2]> {
        guest.mark_disks(false)?;
        for _ in 0..2 {
            self.places.ask(guest, self.next)?;
            self.next += BATCH;
        }
        let word = format!("point-{}", self.next);
        let place = 4 + u32::try_from(self.random.below(6)).unwrap_or(0);
        for vdev in VDEVS {
            guest.write(vdev, place, 2, &word)?;
        }
        Ok([
            guest.sum(VDEVS[0], 0, SIZES[0])?,
            guest.sum(VDEVS[1], 0, SIZES[1])?,
        ])
    }

    fn checkpoint(
        &mut self,
        hosts: &Hosts,
        sums: [String; 2],
        figures: &mut Figures,
    ) -> Result<(Point, Duration)> {
        let begun = Instant::now();
        let made = hosts
            .product(self.primary, NAME)
            .run("replication-checkpoint --json {}")?;
        let took = begun.elapsed();
        let made: serde_json::Value = serde_json::from_str(&made)?;
        let number = made["checkpoint"]["number"].as_u64();
        let pause = made["pause_us"].as_u64();
        let (Some(checkpoint), Some(pause)) = (number, pause) else {
            anyhow::bail!("{made}");
        };
        figures.add(CHECKPOINT, took);
        figures.add(PAUSE, Duration::from_micros(pause));
        let places = self.places.clone();
        let point = Point {
            checkpoint,
            places,
            sums,
        };
        Ok((point, took))
    }

    /// A script that has the guest write on; after each batch it says so, and how the replication is.
    fn writing(&mut self, hosts: &Hosts) -> Result<Script> {
        let product = hosts.product(self.primary, NAME);
        let status = product.command("replication-status --json {}");
        let mut script = String::new();
        for _ in 0..BATCHES {
            let _ = writeln!(
                script,
                "guest-ask {NAME} 240 {} >/dev/null && echo wrote {} || exit\n\
                 {status} | sed -n 's/.*\"number\": \\([0-9]*\\).*/at \\1/p'",
                quote(&Places::request(self.next)),
                self.next + BATCH - 1
            );
            self.next += BATCH;
        }
        // As a file, since it is longer than an argument should be.
        let lab = hosts.lab(self.primary);
        lab.put_text(&script, "/run/writing")?;
        Script::begin(lab, "sh /run/writing")
    }

    fn wait_and_cut(hosts: &mut Hosts, side: Side, wait: Duration) -> Result<()> {
        thread::sleep(wait);
        hosts.lab_mut(side).power_cut()
    }

    fn after(&mut self, hosts: &mut Hosts, figures: &mut Figures) -> Result<Expected> {
        let guest = hosts.guest(self.primary, NAME);
        let sums = self.point(&guest)?;
        let (point, _) = self.checkpoint(hosts, sums, figures)?;
        guest.mark_disks(true)?;
        let mut script = self.writing(hosts)?;
        script.hear("wrote")?;
        let wait = Duration::from_millis(self.random.below(4000));
        Self::wait_and_cut(hosts, self.primary, wait)?;
        drop(script);
        Ok(Expected::Points(vec![point]))
    }

    fn during(&mut self, hosts: &mut Hosts, figures: &mut Figures) -> Result<Expected> {
        let guest = hosts.guest(self.primary, NAME);
        let sums = self.point(&guest)?;
        let (earlier, took) = self.checkpoint(hosts, sums, figures)?;
        let sums = self.point(&guest)?;
        let later = Point {
            checkpoint: earlier.checkpoint + 1,
            places: self.places.clone(),
            sums,
        };
        let command = hosts
            .product(self.primary, NAME)
            .command("replication-checkpoint {}");
        let script = format!("echo begin; {command}; echo done");
        let mut script = Script::begin(hosts.lab(self.primary), &script)?;
        script.hear("begin")?;
        let wait = took.mul_f64(self.random.fraction());
        Self::wait_and_cut(hosts, self.primary, wait)?;
        drop(script);
        Ok(Expected::Points(vec![earlier, later]))
    }

    fn interval(&mut self, hosts: &mut Hosts) -> Result<Expected> {
        hosts.guest(self.primary, NAME).mark_disks(true)?;
        let mut script = self.writing(hosts)?;
        script.hear("at ")?;
        let wait = Duration::from_millis(2000 + self.random.below(10_000));
        Self::wait_and_cut(hosts, self.primary, wait)?;
        Ok(Expected::Heard(script.end()))
    }

    /// Compares the disks of the other host with what they may be, and says what was found.
    fn check(&mut self, hosts: &Hosts, expected: &Expected, is_running: bool) -> Result<String> {
        let there = self.primary.other();
        let lab = hosts.lab(there);
        let (images, number) = images(&hosts.product(there, NAME))?;
        let places = Places::read(lab, &images)?;
        let said = match expected {
            Expected::Points(points) => {
                let point = points.iter().find(|point| point.checkpoint == number);
                let point = point.with_context(|| format!("checkpoint {number} was never made"))?;
                ensure!(places == point.places, "{places:?}, not {:?}", point.places);
                for ((image, length), sum) in images.iter().zip(SIZES).zip(&point.sums) {
                    let found = image_sum(lab, image, 0, length)?;
                    ensure!(
                        found == *sum,
                        "{image} is not as at checkpoint {number}: {found}, not {sum}"
                    );
                }
                format!("checkpoint {number}, to the byte")
            }
            Expected::Heard(heard) => {
                // What the script was to write at most.
                let first = self.next - BATCHES * BATCH;
                let last = places.instant(&self.places, first)?.max(first - 1);
                let (least, most) = bounds(heard, number, first)?;
                ensure!(
                    least <= last && most.is_none_or(|most| last <= most),
                    "write {last} was the last one at checkpoint {number}, of {least} to {most:?}: {heard:?}"
                );
                if !is_running {
                    marks_are_of_one_instant(hosts, there, &images)?;
                }
                let written = last + 1 - first;
                let sent = heard.iter().filter(|line| line.starts_with("wrote"));
                format!(
                    "checkpoint {number}, after {written} of {} writes",
                    sent.count() as u64 * BATCH
                )
            }
        };
        self.places = places;
        Ok(said)
    }

    /// The old primary is asked in different orders, also where stock xl, which asks nobody, has started the domain. What it
    /// was asked first is said.
    fn finds_that_it_has_lost(&self, hosts: &Hosts, number: u32) -> Result<&'static str> {
        let here = self.primary;
        let product = hosts.product(here, NAME);
        let config = &self.configs[here as usize];
        let words = ["has failed over", "--forget"];
        let peer = hosts.info(here, NAME)?["peer"].clone();
        let start = format!(
            "replication-start --secondary {} {{}}",
            peer.as_str().context("no peer")?
        );
        let create = || -> Result<()> {
            let created = hosts.create(here, config)?;
            ensure!(
                created.status != 0 && words.iter().all(|word| created.stderr.contains(word)),
                "{}: {}{}",
                created.status,
                created.stdout,
                created.stderr
            );
            Ok(())
        };
        let by_start = format!("start {config}");
        let order = number % 4;
        let first = match order {
            0 => {
                create()?;
                "xl create is refused"
            }
            1 => {
                product.refuses("replication-resume {}", &words)?;
                "replication-resume is refused"
            }
            2 => {
                product.refuses(&by_start, &words)?;
                "start is refused"
            }
            _ => {
                hosts.lab(here).run(&format!("xl create {config}"))?;
                product.refuses(&start, &words)?;
                hosts.guest(here, NAME).destroy()?;
                "replication-start is refused, of what stock xl has started"
            }
        };
        let info = hosts.info(here, NAME)?;
        ensure!(info["state"] == "lost", "{info}");
        for command in [
            "replication-resume {}",
            &start,
            &by_start,
            "replication-stop {}",
        ] {
            product.refuses(command, &words)?;
        }
        create()?;
        ensure!(!hosts.guest(here, NAME).exists(), "it was started");
        Ok(first)
    }
}

/// The numbers of the writes between which a checkpoint was made, by what a script said that began with the write `first`.
fn bounds(heard: &[String], checkpoint: u64, first: u64) -> Result<(u64, Option<u64>)> {
    let mut wrote = first - 1;
    let (mut least, mut most) = (wrote, None);
    for line in heard {
        let (what, number) = line.split_once(' ').context("a line without a number")?;
        let number: u64 = number.parse().with_context(|| format!("{line:?}"))?;
        match what {
            "wrote" => wrote = number,
            // It was made after all that was written when it was not there.
            "at" if number < checkpoint => least = wrote,
            // And before all that was not yet written when it was.
            "at" => most = most.or(Some(wrote)),
            _ => anyhow::bail!("{line:?}"),
        }
    }
    Ok((least, most))
}

fn marks_are_of_one_instant(hosts: &Hosts, side: Side, images: &[String; 2]) -> Result<()> {
    let read = |image| Mark::read(hosts.lab(side), image);
    let marks = [read(&images[0])?, read(&images[1])?];
    let [Some(first), Some(second)] = &marks else {
        anyhow::bail!("no marks: {marks:?}");
    };
    ensure!(
        first.life == second.life && [0, 1].contains(&first.seq.wrapping_sub(second.seq)),
        "not of one instant: {marks:?}"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_lies_between_the_looks_that_did_not_and_that_did_find_it() {
        let heard = [
            "at 1", "wrote 6", "at 1", "wrote 12", "at 3", "wrote 18", "at 4",
        ];
        let heard = heard.map(str::to_owned);
        assert_eq!(bounds(&heard, 1, 1).unwrap(), (0, Some(0)));
        assert_eq!(bounds(&heard, 2, 1).unwrap(), (6, Some(12)));
        assert_eq!(bounds(&heard, 3, 1).unwrap(), (6, Some(12)));
        assert_eq!(bounds(&heard, 4, 1).unwrap(), (12, Some(18)));
        assert_eq!(bounds(&heard, 5, 1).unwrap(), (18, None));
        assert!(bounds(&["what".to_owned()], 1, 1).is_err());
    }
}
