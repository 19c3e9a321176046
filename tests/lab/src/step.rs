//! Runs steps in one lab or a few side by side, one after another in each, and reports each on one line.

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};

use crate::coverage::Cells;
use crate::guest;
use crate::host::{BootOptions, Lab};
use crate::logs;
use crate::qemu::Lifetime;
use crate::results::{self, Outcome, StepResult};
use crate::steps;

/// Where the product keeps its state in dom0; a step must not find another one's snapshots.
const PRODUCT_STATE: &str = "/var/lib/xen/libxl-ext";

/// One test: a function with a name that says what it shows.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    /// `ts-`, then what holds when it passes.
    pub name: &'static str,
    /// The test. It may also panic, by an `assert_eq!` for one.
    pub run: fn(&mut Context) -> Result<()>,
    /// What it shows of the table of features when it passes.
    pub cells: &'static [Cells],
}

/// What a step works with.
#[derive(Debug)]
pub struct Context {
    lab: Lab,
    stage: Option<PathBuf>,
    all: bool,
    xen: String,
}

/// A program that uses the product, as `tests/abi/consumers.mk` builds it into the directory `consumers` beside the
/// staging directory.
///
/// # Errors
/// When the program was not built.
pub(crate) fn consumer(stage: &Path, name: &str) -> Result<PathBuf> {
    let program = stage.with_file_name("consumers").join(name);
    if !program.is_file() {
        bail!(
            "{} is not there; `make consumers` builds it",
            program.display()
        );
    }
    Ok(program)
}

impl Context {
    /// The lab, up and without guests when a step begins.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// The lab, for a step that takes its power away. Such a step need not boot it again, but its place is at the
    /// end of the list, since each boot costs half a minute or more.
    pub fn lab_mut(&mut self) -> &mut Lab {
        &mut self.lab
    }

    /// Skips the step unless the product is installed in dom0.
    ///
    /// # Errors
    /// When it is not.
    pub fn needs_product(&self) -> Result<()> {
        match self.stage {
            Some(_) => Ok(()),
            None => Err(skip("the product is not installed: give --stage DIR")),
        }
    }

    /// A program that uses the product: see [`consumer`].
    ///
    /// # Errors
    /// When the product is not installed, or the program was not built.
    pub fn consumer(&self, name: &str) -> Result<PathBuf> {
        self.needs_product()?;
        consumer(self.stage.as_deref().unwrap_or(Path::new("")), name)
    }

    /// Skips the step unless expensive ones were asked for.
    ///
    /// # Errors
    /// When they were not.
    pub fn is_expensive(&self) -> Result<()> {
        if self.all {
            Ok(())
        } else {
            Err(skip("expensive: give --all"))
        }
    }
}

/// Ends a step that cannot show anything here: `return Err(skip("why"))`.
pub fn skip(reason: &str) -> anyhow::Error {
    anyhow::Error::new(Skip(reason.to_owned()))
}

#[derive(Debug)]
struct Skip(String);

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Skip {}

/// What to run, and how.
#[derive(Debug)]
pub struct Options {
    /// Parts of names; none means all steps.
    pub filters: Vec<String>,
    /// The product's staging directory.
    pub stage: Option<PathBuf>,
    /// Where the logs of failed steps go, and the results of all.
    pub logs: PathBuf,
    /// Whether the lab stays at the end.
    pub keep: bool,
    /// Whether expensive steps run too.
    pub all: bool,
    /// The CPUs of each lab.
    pub smp: u32,
    /// The lab's memory in MiB.
    pub mem: u32,
    /// How many labs share the steps.
    pub labs: usize,
    /// After how long no further step is begun; the others are skipped, and it is said.
    pub limit: Option<Duration>,
}

/// How many steps ended how.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: u32,
    failed: u32,
    skipped: u32,
    /// The lines of those that failed, to be said again at the end.
    failures: Vec<String>,
    results: Vec<StepResult>,
}

impl Tally {
    fn fail(&mut self, line: String) {
        self.failed += 1;
        self.failures.push(line);
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)?;
        if self.skipped > 0 {
            write!(f, ", {} skipped", self.skipped)?;
        }
        Ok(())
    }
}

/// Prints the names of the steps that the filters leave.
pub fn print_names(filters: &[String]) {
    for step in chosen(filters) {
        println!("{}", step.name);
    }
}

/// Boots the labs, runs the steps and says whether none failed.
///
/// # Errors
/// When a lab does not come up, or no step has such a name.
pub fn run_all(options: &Options) -> Result<bool> {
    let queue = Queue {
        steps: chosen(&options.filters),
        next: AtomicUsize::new(0),
        end: options.limit.map(|limit| Instant::now() + limit),
    };
    let count = queue.steps.len();
    if count == 0 {
        return Err(anyhow!(
            "no step's name contains {}",
            options.filters.join(" or ")
        ));
    }
    // Those of an earlier run must not be taken for this one's.
    results::write(&options.logs, &[])?;
    let tally = SharedTally::default();
    let ended: Vec<Result<()>> = thread::scope(|scope| {
        let running: Vec<_> = (0..options.labs.clamp(1, count))
            .map(|number| {
                scope.spawn({
                    let (queue, tally) = (&queue, &tally);
                    move || work(number, queue, options, tally)
                })
            })
            .collect();
        let join = |lab: thread::ScopedJoinHandle<'_, Result<()>>| {
            lab.join()
                .unwrap_or_else(|panic| Err(anyhow!("{}", panic_text(panic.as_ref()))))
        };
        running.into_iter().map(join).collect()
    });
    let tally = tally.lock();
    for failure in &tally.failures {
        println!("{failure}");
    }
    println!("{tally}");
    ended.into_iter().collect::<Result<()>>()?;
    Ok(tally.failed == 0)
}

/// The steps, of which some were taken.
struct Queue {
    steps: Vec<&'static Step>,
    next: AtomicUsize,
    end: Option<Instant>,
}

impl Queue {
    fn take(&self) -> Option<&'static Step> {
        self.steps
            .get(self.next.fetch_add(1, Ordering::Relaxed))
            .copied()
    }

    /// Whether no further step is to be begun.
    fn is_over(&self) -> bool {
        self.end.is_some_and(|end| Instant::now() >= end)
    }
}

/// How the steps ended so far, in all labs.
#[derive(Default)]
struct SharedTally(Mutex<Tally>);

impl SharedTally {
    fn lock(&self) -> MutexGuard<'_, Tally> {
        // It is whole after each line, also where one panicked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs steps in a lab of its own for as long as there are any. Without one it boots no lab.
fn work(number: usize, queue: &Queue, options: &Options, tally: &SharedTally) -> Result<()> {
    let mut next = queue.take();
    if next.is_none() {
        return Ok(());
    }
    let lab = boot(number, options)?;
    if let Some(stage) = &options.stage {
        lab.install(stage)?;
    }
    let mut context = Context {
        xen: lab.run("xl info xen_version")?.trim().to_owned(),
        lab,
        stage: options.stage.clone(),
        all: options.all,
    };
    while let Some(step) = next {
        let run: Run<'_> = if queue.is_over() {
            &|_| Err(skip("the time is over: `lab test` without --minutes"))
        } else {
            &step.run
        };
        run_one(step, run, &mut context, options, tally);
        next = queue.take();
    }
    if options.keep {
        eprintln!(
            "lab: {} stays; `lab destroy --name {0}` ends it",
            context.lab.name()
        );
        return Ok(());
    }
    context.lab.destroy()
}

fn chosen(filters: &[String]) -> Vec<&'static Step> {
    steps::all()
        .filter(|step| {
            filters.is_empty() || filters.iter().any(|part| step.name.contains(part.as_str()))
        })
        .collect()
}

/// The product has no part in the boot, so a second attempt hides nothing of it; that there was one is said.
fn boot(number: usize, options: &Options) -> Result<Lab> {
    let lifetime = if options.keep {
        Lifetime::Detached
    } else {
        Lifetime::Process
    };
    let machine = BootOptions {
        smp: options.smp,
        mem: options.mem,
        lifetime,
        link: None,
    };
    let name = format!("test-{}-{number}", std::process::id());
    Lab::boot(&name, machine).or_else(|error| {
        eprintln!("lab: THE LAB DID NOT COME UP: {error:#}");
        if let Ok(lab) = Lab::attach(&name) {
            let out = options.logs.join(format!("first-boot-{number}"));
            keep_logs(&lab, &out);
            lab.destroy()?;
        }
        eprintln!("lab: one more attempt");
        Lab::boot(&name, machine)
    })
}

/// What a step does.
type Run<'a> = &'a dyn Fn(&mut Context) -> Result<()>;

fn run_one(
    step: &Step,
    run: Run<'_>,
    context: &mut Context,
    options: &Options,
    tally: &SharedTally,
) {
    let started = Instant::now();
    let result = catch_unwind(AssertUnwindSafe(|| run(context)))
        .unwrap_or_else(|panic| Err(anyhow!("{}", panic_text(panic.as_ref()))));
    let seconds = started.elapsed().as_secs_f32();
    let outcome = match result {
        Ok(()) => {
            println!("ok    {} ({seconds:.1} s)", step.name);
            tally.lock().passed += 1;
            Outcome::Passed
        }
        Err(error) => {
            if let Some(Skip(reason)) = error.downcast_ref() {
                println!("skip  {}: {reason}", step.name);
                tally.lock().skipped += 1;
                Outcome::Skipped
            } else {
                let out = options.logs.join(step.name);
                // On one line, so that whoever looks for failures in a long output has all of it.
                let failure = format!(
                    "FAIL  {} ({seconds:.1} s), logs in {}: {}",
                    step.name,
                    out.display(),
                    format!("{error:#}").trim_end().replace('\n', " | ")
                );
                println!("{failure}");
                tally.lock().fail(failure);
                keep_logs(&context.lab, &out);
                Outcome::Failed
            }
        }
    };
    let mut tally = tally.lock();
    tally.results.push(StepResult {
        name: step.name.to_owned(),
        outcome,
        xen: context.xen.clone(),
        cells: step.cells.iter().flat_map(|cells| cells.iter()).collect(),
    });
    // After each step, so that a run that is ended early leaves what it has shown.
    if let Err(error) = results::write(&options.logs, &tally.results) {
        let failure = format!("FAIL  {}: {error:#}", results::FILE);
        println!("{failure}");
        tally.fail(failure);
    }
    drop(tally);
    if outcome == Outcome::Skipped {
        return;
    }
    if let Err(error) = tidy(&mut context.lab) {
        eprintln!("lab: after {}: {error:#}", step.name);
    }
}

/// Leaves the lab as a step may expect it: up, without guests and without the product's state.
fn tidy(lab: &mut Lab) -> Result<()> {
    if let Err(error) = clear(lab) {
        eprintln!("lab: booting the host again: {error:#}");
        lab.power_cut()?;
        lab.start()?;
        clear(lab)?;
    }
    Ok(())
}

fn clear(lab: &Lab) -> Result<()> {
    if !lab.is_healthy() {
        bail!("dom0 does not answer or its toolstack does not work");
    }
    guest::destroy_all(lab)?;
    lab.run(&format!("rm -rf {PRODUCT_STATE}")).map(drop)
}

fn keep_logs(lab: &Lab, out: &Path) {
    if let Err(error) = logs::collect(lab, out) {
        eprintln!("lab: the logs are not whole: {error:#}");
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "the step panicked".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_names_skipped_steps_only_if_there_are_any() {
        let mut tally = Tally {
            passed: 3,
            ..Tally::default()
        };
        assert_eq!(tally.to_string(), "3 passed, 0 failed");
        tally.skipped = 2;
        assert_eq!(tally.to_string(), "3 passed, 0 failed, 2 skipped");
    }

    #[test]
    fn every_step_has_a_name_of_its_own() {
        let mut names: Vec<_> = steps::all().map(|step| step.name).collect();
        assert!(names.iter().all(|name| name.starts_with("ts-")));
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
