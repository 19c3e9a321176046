//! Power cuts at random moments: the outer QEMU is killed while a command is at work, the host boots from the disk
//! as it is, and the next command ends what was interrupted. The host's disk holds what was flushed and nothing else
//! that QEMU still held: see [`crate::qemu`].
//!
//! A round is one cut. What the guest holds and which snapshots there are is known here at every moment, so that
//! afterwards everything can be compared with the state before the interrupted command and with the one after it.

mod checks;
mod model;

use std::fmt::{self, Write as _};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::guest::{Guest, GuestSpec};
use crate::host::Lab;
use crate::product::Product;
use crate::random::Random;
use crate::script::Script;
use crate::ssh::quote;
use checks::Found;
use model::{Action, Kind, Model};

/// The guest's name.
const NAME: &str = "cuts";

/// The guest's disks.
const DISKS: [&str; 2] = ["xvda", "xvdb"];

/// Long enough for any command on a loaded machine.
const LIMIT: Duration = Duration::from_secs(300);

/// One cut, and what came of it.
#[derive(Debug)]
pub struct Cut {
    /// The command that was to be cut.
    target: Action,
    /// When the power went, after the command had begun.
    after: Duration,
    /// The command that was at work then, if there was one.
    interrupted: Option<Action>,
    /// What the next command said of it.
    found: Found,
    /// How long the boot took.
    boot: Duration,
    /// How long all of the round took.
    round: Duration,
}

/// The result of all cuts.
#[derive(Debug)]
pub struct Report {
    seed: u64,
    cuts: Vec<Cut>,
}

/// Cuts the power of `lab` so many times. The lab is up, has the product and no guest of ours.
///
/// # Errors
/// When something is not as it was before the interrupted command, nor as after it; the message has the seed.
pub fn run(lab: &mut Lab, cuts: u32, seed: u64) -> Result<Report> {
    println!("      seed {seed}");
    let mut rounds = Rounds::new(lab, seed)?;
    let mut report = Report {
        seed,
        cuts: Vec::new(),
    };
    for number in 0..cuts {
        let cut = rounds
            .round(lab, number)
            .with_context(|| format!("cut {} of seed {seed}\n{report}", number + 1))?;
        println!("      {:3}  {cut}", number + 1);
        report.cuts.push(cut);
    }
    Ok(report)
}

/// A seed that is another one each time.
pub fn any_seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |now| u64::from(now.subsec_nanos()) ^ now.as_secs())
}

struct Rounds {
    random: Random,
    model: Model,
    /// How long the commands take here.
    durations: [Duration; 3],
}

impl Rounds {
    fn new(lab: &Lab, seed: u64) -> Result<Self> {
        let spec = GuestSpec::pv(NAME).disks(&[16, 16]);
        let guest = Guest::create(lab, &spec)?;
        lab.run(&format!(
            "mkdir {dir}/bin && ln -s $(command -v xl-ext) {dir}/bin/xl",
            dir = guest.dir()
        ))?;
        let mut rounds = Self {
            random: Random::new(seed),
            model: Model::new(),
            durations: [Duration::ZERO; 3],
        };
        // One snapshot that stays, and how long each command takes.
        for action in rounds.model.introduction() {
            let began = Instant::now();
            let script = action.script(lab);
            lab.run_within(&script, LIMIT)
                .with_context(|| format!("before any cut: {action}"))?;
            if let Some(kind) = action.kind() {
                rounds.durations[kind as usize] = began.elapsed();
            }
            rounds.model.apply(&action);
        }
        Ok(rounds)
    }

    fn round(&mut self, lab: &mut Lab, number: u32) -> Result<Cut> {
        let began = Instant::now();
        let target = Kind::ALL[number as usize % Kind::ALL.len()];
        let actions = self.model.actions(target, &mut self.random);
        let at = actions.len() - 2;
        let limit = self.durations[target as usize];
        let after = limit.mul_f64(self.random.fraction());
        let (done, after) = cut_during(lab, &actions, at, after)?;
        for action in &actions[..done] {
            self.model.apply(action);
        }
        let booting = Instant::now();
        lab.start()?;
        let boot = booting.elapsed();
        let interrupted = actions.get(done).cloned();
        let found =
            checks::after_cut(lab, &mut self.model, interrupted.as_ref(), &mut self.random)?;
        Ok(Cut {
            target: actions[at].clone(),
            after,
            interrupted,
            found,
            boot,
            round: began.elapsed(),
        })
    }
}

/// Has the actions done one after another and takes the power away so long after the one numbered `at` began.
/// Returns how many were done by then, and how long after it really was.
fn cut_during(
    lab: &mut Lab,
    actions: &[Action],
    at: usize,
    after: Duration,
) -> Result<(usize, Duration)> {
    let mut script = String::new();
    for (number, action) in actions.iter().enumerate() {
        // What is said has to be here before the next thing begins.
        let _ = writeln!(
            script,
            "sleep 0.5; echo begin {number}; if {{ {}; }} >/run/cuts.out 2>&1; then echo done {number}; \
             else echo failed {number}; cat /run/cuts.out; exit 1; fi",
            action.script(lab)
        );
    }
    let mut script = Script::begin(lab, &script)?;
    let result = script.hear(&format!("begin {at}"));
    let began = Instant::now();
    if result.is_ok() {
        thread::sleep(after);
    }
    let cut = lab.power_cut();
    let after = began.elapsed();
    let heard = script.end();
    result.and(cut)?;
    if let Some(failed) = heard.iter().position(|line| line.starts_with("failed")) {
        bail!("of {actions:?}: {}", heard[failed..].join("\n"));
    }
    let done = heard.iter().filter(|line| line.starts_with("done")).count();
    Ok((done, after))
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let interrupted = match &self.interrupted {
            Some(action) if *action == self.target => "it".to_owned(),
            Some(action) => action.to_string(),
            None => "none".to_owned(),
        };
        write!(
            f,
            "{:<28} {:5.2} s  interrupted: {interrupted:<28} {:<10}  boot {:3.0} s, round {:3.0} s",
            self.target.to_string(),
            self.after.as_secs_f32(),
            self.found.to_string(),
            self.boot.as_secs_f32(),
            self.round.as_secs_f32()
        )
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "\ninterrupted  cuts  nothing to do  taken back  finished"
        )?;
        let kind_of = |cut: &Cut| cut.interrupted.as_ref().and_then(Action::kind);
        let mut line = |name: &str, kind: Option<Kind>| {
            let of_kind = || self.cuts.iter().filter(move |cut| kind_of(cut) == kind);
            let found = |found| of_kind().filter(|cut| cut.found == found).count();
            writeln!(
                f,
                "{name:<11}  {:4}  {:13}  {:10}  {:8}",
                of_kind().count(),
                found(Found::Nothing),
                found(Found::TakenBack),
                found(Found::Finished)
            )
        };
        for kind in Kind::ALL {
            line(kind.name(), Some(kind))?;
        }
        line("none", None)?;
        write!(
            f,
            "{} power cuts, seed {}: each time all was as before the command or as after it",
            self.cuts.len(),
            self.seed
        )
    }
}

/// A product for the guest.
fn product(lab: &Lab) -> (Guest<'_>, Product<'_>) {
    let guest = Guest::attach(lab, NAME);
    let product = Product::of(lab, &guest);
    (guest, product)
}

/// Starts the guest from its configuration, on its layers.
fn start_guest(lab: &Lab) -> Result<()> {
    let (guest, product) = product(lab);
    let dir = guest.dir();
    let script = format!(
        "PATH={dir}/bin:$PATH XL_EXT_STORE={} xl create {dir}/guest.cfg",
        quote(product.store_dir())
    );
    let output = lab.try_run(&script, LIMIT)?;
    ensure!(
        output.status == 0,
        "the guest does not start: {}",
        output.stderr
    );
    guest.wait_ready()
}
