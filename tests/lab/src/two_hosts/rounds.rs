//! The primary's power is cut, again and again, while each of its domains is at something else. They fail over to the other
//! host, which is the primary of the next round; the old one comes back, finds that it has lost, and is the secondary.

use std::fmt::Write as _;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::figures::{ANSWERS, CHECKPOINT, COPY, FAILOVER, Figures, PAUSE, ROUND};
use super::hosts::{HEARTBEAT_MS, Hosts, Side, images};
use super::sequence::{BATCH, Places, VDEVS};
use crate::guest::{Guest, GuestSpec, Mark, image_sum};
use crate::random::Random;
use crate::script::Script;
use crate::ssh::quote;

/// The guests' names.
const NAMES: [&str; COUNT] = ["rounds-1", "rounds-2"];

/// How many there are. With more, one emulated CPU does nothing else than replicate them.
const COUNT: usize = 2;

/// Sizes of the disks of each, in MiB.
const SIZES: [u32; 2] = [12, 8];

/// How many batches of writes a script has before it.
const BATCHES: u64 = 60;

/// What is done with a domain when the power goes.
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

struct Domain {
    name: &'static str,
    /// The configuration file that it was started with last, on each host.
    configs: [String; 2],
    /// What the disks held when it was started last, or at the last point.
    places: Places,
    /// The number of the next write: none is given twice.
    next: u64,
}

struct Rounds {
    random: Random,
    primary: Side,
    domains: [Domain; COUNT],
}

/// Cuts the power so many times.
pub(super) fn run(hosts: &mut Hosts, rounds: u32, seed: u64, figures: &mut Figures) -> Result<()> {
    println!("      seed {seed}");
    for name in NAMES {
        Guest::create(hosts.lab(Side::A), &GuestSpec::pv(name).disks(&SIZES))?;
    }
    // They have to be there after the cut.
    hosts.lab(Side::A).run("sync")?;
    let mut all = Rounds {
        random: Random::new(seed),
        primary: Side::A,
        domains: NAMES.map(|name| Domain {
            name,
            configs: [
                GuestSpec::pv(name).config_path(),
                Hosts::config_after_failover(name),
            ],
            places: Places::empty(),
            next: 1,
        }),
    };
    for number in 0..rounds {
        let begun = Instant::now();
        println!(
            "      {:3}  the power of {} is cut",
            number + 1,
            all.primary.name()
        );
        all.round(hosts, number, figures)
            .with_context(|| format!("round {} of seed {seed}", number + 1))?;
        figures.add(ROUND, begun.elapsed());
    }
    println!(
        "PASS  power-cuts: {rounds}, and {} failovers, seed {seed}: each time the disks were those of the last checkpoint",
        rounds as usize * COUNT
    );
    Ok(())
}

impl Rounds {
    fn round(&mut self, hosts: &mut Hosts, number: u32, figures: &mut Figures) -> Result<()> {
        let (here, there) = (self.primary, self.primary.other());
        let kinds: [Kind; COUNT] =
            std::array::from_fn(|at| Kind::ALL[(at + COUNT * number as usize) % Kind::ALL.len()]);
        for (domain, kind) in self.domains.iter().zip(kinds) {
            let mut options = format!("--heartbeat {HEARTBEAT_MS}");
            if matches!(kind, Kind::Interval) {
                let _ = write!(options, " --interval {}", 6000 + self.random.below(6000));
            }
            let config = &domain.configs[here as usize];
            figures.add(COPY, hosts.start(here, domain.name, config, &options)?);
        }
        let expected = self.cut(hosts, kinds, figures)?;
        let started = hosts.lab_mut(here).switch_on()?;
        for ((domain, kind), expected) in self.domains.iter_mut().zip(kinds).zip(&expected) {
            // Every second time of those that may, all is left to the one command.
            let is_started_by_it = matches!(kind, Kind::Interval) && number.is_multiple_of(2);
            let found = domain
                .goes_on(hosts, there, expected, is_started_by_it, figures)
                .with_context(|| format!("{}, {kind:?}", domain.name))?;
            println!("           {kind:?}: {found}");
        }
        hosts.lab_mut(here).wait_up(started)?;
        hosts.wait_listening(here)?;
        for (at, domain) in self.domains.iter_mut().enumerate() {
            let how = (at + number as usize) % 4;
            let first = domain.finds_that_it_has_lost(hosts, here, how, at == 0)?;
            println!("           {first}");
            domain.configs[there as usize] = Hosts::config_after_failover(domain.name);
        }
        self.primary = there;
        Ok(())
    }

    /// Has every domain come to where it has to be, and cuts the power.
    fn cut(
        &mut self,
        hosts: &mut Hosts,
        kinds: [Kind; COUNT],
        figures: &mut Figures,
    ) -> Result<[Expected; COUNT]> {
        let here = self.primary;
        let mut expected = [const { Vec::new() }; COUNT];
        let mut takes = Duration::ZERO;
        for ((domain, kind), points) in self.domains.iter_mut().zip(kinds).zip(&mut expected) {
            let guest = hosts.guest(here, domain.name);
            if matches!(kind, Kind::Interval) {
                guest.mark_disks(true)?;
                continue;
            }
            let sums = domain.point(&guest, &mut self.random)?;
            let (point, took) = domain.checkpoint(hosts, here, sums, figures)?;
            let checkpoint = point.checkpoint + 1;
            points.push(point);
            takes = took;
            if matches!(kind, Kind::During) {
                let sums = domain.point(&guest, &mut self.random)?;
                points.push(Point {
                    checkpoint,
                    places: domain.places.clone(),
                    sums,
                });
            } else {
                guest.mark_disks(true)?;
            }
        }
        let mut scripts = Vec::new();
        for (domain, kind) in self.domains.iter_mut().zip(kinds) {
            let (script, beginning) = match kind {
                Kind::After => (domain.writing(hosts, here)?, "wrote"),
                Kind::Interval => (domain.writing(hosts, here)?, "at "),
                Kind::During => continue,
            };
            let mut script = Script::begin(hosts.lab(here), &script)?;
            script.hear_beginning(beginning)?;
            scripts.push((domain.name, script));
        }
        thread::sleep(Duration::from_millis(self.random.below(8000)));
        for (domain, _) in self
            .domains
            .iter()
            .zip(kinds)
            .filter(|(_, kind)| matches!(kind, Kind::During))
        {
            let product = hosts.product(here, domain.name);
            let command = product.command("replication-checkpoint {}");
            let script = format!("echo begin; {command}; echo done");
            let mut script = Script::begin(hosts.lab(here), &script)?;
            script.hear_beginning("begin")?;
            scripts.push((domain.name, script));
        }
        thread::sleep(takes.mul_f64(self.random.fraction()));
        hosts.lab_mut(here).power_cut()?;
        let mut heard: Vec<_> = scripts
            .into_iter()
            .map(|(name, script)| (name, script.end()))
            .collect();
        let mut of = |name: &str| {
            let at = heard.iter().position(|(whose, _)| *whose == name);
            at.map_or_else(Vec::new, |at| heard.swap_remove(at).1)
        };
        let mut all = self.domains.iter().zip(kinds).zip(expected);
        Ok(std::array::from_fn(|_| match all.next() {
            Some(((domain, Kind::Interval), _)) => Expected::Heard(of(domain.name)),
            Some((_, points)) => Expected::Points(points),
            None => Expected::Points(Vec::new()),
        }))
    }
}

impl Domain {
    /// It fails over, its disks are as they have to be, and it answers there. What was found is said.
    fn goes_on(
        &mut self,
        hosts: &Hosts,
        there: Side,
        expected: &Expected,
        is_started_by_it: bool,
        figures: &mut Figures,
    ) -> Result<String> {
        let product = hosts.product(there, self.name);
        let before = hosts.info(there, self.name)?;
        ensure!(before["state"] == "replicating", "{before}");
        let begun = Instant::now();
        product.run(if is_started_by_it {
            "replication-failover --keep-paths {}"
        } else {
            "replication-failover --no-start {}"
        })?;
        if !is_started_by_it {
            figures.add(FAILOVER, begun.elapsed());
        }
        let found = self.check(hosts, there, expected, is_started_by_it)?;
        if !is_started_by_it {
            let created = hosts.create(there, &Hosts::config_after_failover(self.name))?;
            ensure!(created.status == 0, "{}", created.stderr);
        }
        hosts.guest(there, self.name).wait_ready()?;
        if is_started_by_it {
            figures.add(ANSWERS, begun.elapsed());
        }
        let generation = |info: &serde_json::Value| info["generation"].as_u64();
        let after = hosts.info(there, self.name)?;
        ensure!(
            after["state"] == "failed over" && generation(&after) > generation(&before),
            "{before}, {after}"
        );
        Ok(found)
    }

    /// Has the guest write, and stand still. All is one request, since each costs a second or more under emulation.
    fn point(&mut self, guest: &Guest<'_>, random: &mut Random) -> Result<[String; 2]> {
        let writes = Places::request(self.next);
        (self.next..self.next + BATCH).for_each(|number| self.places.write(number));
        self.next += BATCH;
        let place = 4 + random.below(3);
        let word = format!("point-{}", self.next);
        let [first, second] = VDEVS;
        let [first_mib, second_mib] = SIZES;
        let request = format!(
            "ticks off ; {writes} ; write {first} {place} 1 {word} ; write {second} {place} 1 {word} ; \
             sum {first} 0 {first_mib} ; sum {second} 0 {second_mib}"
        );
        let answer = guest.ask_within(&request, 240)?;
        let mut answers = answer.rsplit(';').map(|it| it.trim().to_owned());
        let (second, first) = (answers.next(), answers.next());
        first
            .zip(second)
            .map(|(first, second)| [first, second])
            .with_context(|| format!("no sums: {answer:?}"))
    }

    fn checkpoint(
        &self,
        hosts: &Hosts,
        here: Side,
        sums: [String; 2],
        figures: &mut Figures,
    ) -> Result<(Point, Duration)> {
        let begun = Instant::now();
        let made = hosts
            .product(here, self.name)
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
    fn writing(&mut self, hosts: &Hosts, here: Side) -> Result<String> {
        let name = self.name;
        let status = hosts
            .product(here, name)
            .command("replication-status --json {}");
        let mut script = String::new();
        for _ in 0..BATCHES {
            let _ = writeln!(
                script,
                "guest-ask {name} 240 {} >/dev/null && echo wrote {} || exit\n\
                 {status} | sed -n 's/.*\"number\": \\([0-9]*\\).*/at \\1/p'",
                quote(&Places::request(self.next)),
                self.next + BATCH - 1
            );
            self.next += BATCH;
        }
        // As a file, since it is longer than an argument should be.
        let file = format!("/run/writing-{name}");
        hosts.lab(here).put_text(&script, &file)?;
        Ok(format!("sh {file}"))
    }

    /// Compares the disks of the other host with what they may be, and says what was found.
    fn check(
        &mut self,
        hosts: &Hosts,
        there: Side,
        expected: &Expected,
        is_running: bool,
    ) -> Result<String> {
        let lab = hosts.lab(there);
        let (images, number) = images(&hosts.product(there, self.name))?;
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

    /// The old primary is asked first in one of four ways, of which one is after stock xl, which asks nobody, has started the
    /// domain; and then, if that is wanted, in all. What came of the first is said.
    fn finds_that_it_has_lost(
        &self,
        hosts: &Hosts,
        here: Side,
        how: usize,
        in_all: bool,
    ) -> Result<String> {
        let product = hosts.product(here, self.name);
        let guest = hosts.guest(here, self.name);
        let config = &self.configs[here as usize];
        let words = ["has failed over", "--forget"];
        let peer = hosts.info(here, self.name)?["peer"].clone();
        let peer = peer.as_str().context("no peer")?;
        let by_replication = format!("replication-start --secondary {peer} {{}}");
        let by_start = format!("start {config}");
        let create = || -> Result<()> {
            let created = hosts.create(here, config)?;
            ensure!(
                created.status != 0 && words.iter().all(|word| created.stderr.contains(word)),
                "xl create ended with {}: {}{}",
                created.status,
                created.stdout,
                created.stderr
            );
            Ok(())
        };
        let first = match how {
            0 => {
                create()?;
                "xl create"
            }
            1 => {
                product.refuses("replication-resume {}", &words)?;
                "replication-resume"
            }
            2 => {
                product.refuses(&by_start, &words)?;
                "start"
            }
            _ => {
                hosts.lab(here).run(&format!("xl create {config}"))?;
                product.refuses(&by_replication, &words)?;
                guest.destroy()?;
                "of what stock xl has started, replication-start"
            }
        };
        let info = hosts.info(here, self.name)?;
        ensure!(info["state"] == "lost", "{info}");
        if in_all {
            for command in [
                "replication-resume {}",
                &by_replication,
                &by_start,
                "replication-stop {}",
            ] {
                product.refuses(command, &words)?;
            }
            create()?;
        }
        ensure!(!guest.exists(), "it was started");
        Ok(format!(
            "on {} it has lost: {first} is refused",
            here.name()
        ))
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
