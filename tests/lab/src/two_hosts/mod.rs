//! Replication between two hosts: two labs on a private network. In rounds, the power of the primary is cut at a random
//! moment, and the domain goes on on the other host, from where it is replicated back; and what else may happen to
//! either of them, in scenarios.

mod figures;
mod hosts;
mod own_disk;
mod rounds;
mod scenarios;
mod sequence;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::guest;
use crate::host::BootOptions;
use crate::qemu::Lifetime;
use figures::Figures;
use hosts::{Hosts, Side};

/// Long enough for any command on a loaded machine.
const LIMIT: Duration = Duration::from_secs(300);

/// What is to be run.
#[derive(Debug)]
pub struct Wanted {
    /// How many power cuts.
    pub rounds: u32,
    /// What their moments are made of.
    pub seed: u64,
    /// Parts of the names of scenarios; none for all of them.
    pub filters: Vec<String>,
    /// The name of labs that are left running at the end, and used again if they are there.
    pub keep: Option<String>,
}

type Scenario = fn(&mut Hosts, &mut Figures) -> Result<()>;

const SCENARIOS: [(&str, Scenario); 3] = [
    ("silent-or-cut-off", scenarios::silent_or_cut_off),
    ("full", scenarios::full),
    ("own-disk", own_disk::fails),
];

const POWER_CUTS: &str = "power-cuts";

/// Boots two hosts with the product that is staged at `stage`, and runs what is wanted on them. Figures are printed.
///
/// # Errors
/// When something is not as it has to be; the logs of both are below `logs` then.
pub fn run(stage: &Path, machine: BootOptions, wanted: &Wanted, logs: &Path) -> Result<()> {
    let is_wanted = |name: &str| {
        let filters = &wanted.filters;
        filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()))
    };
    let names = SCENARIOS.map(|(name, _)| name);
    ensure!(
        names
            .iter()
            .chain([&POWER_CUTS])
            .any(|name| is_wanted(name)),
        "nothing is called like that; there are {}, {POWER_CUTS}",
        names.join(", ")
    );
    let kept = wanted.keep.as_deref().and_then(Hosts::attach);
    let is_kept = kept.is_some();
    let mut hosts = match (kept, &wanted.keep) {
        (Some(kept), _) => kept,
        (None, Some(name)) => {
            let lifetime = Lifetime::Detached;
            Hosts::new(
                name,
                BootOptions {
                    lifetime,
                    ..machine
                },
            )?
        }
        (None, None) => Hosts::new(&format!("two-{}", std::process::id()), machine)?,
    };
    let ready = if is_kept {
        hosts.wait_up().and_then(|()| hosts.clear())
    } else {
        hosts.boot()
    };
    let done = ready
        .and_then(|()| hosts.set_up(stage))
        .and_then(|()| run_on(&mut hosts, wanted, &is_wanted));
    if done.is_err() {
        hosts.keep_logs(&logs.join("two-hosts"));
    }
    if wanted.keep.is_none() {
        hosts.destroy()?;
    }
    done
}

fn run_on(hosts: &mut Hosts, wanted: &Wanted, is_wanted: &dyn Fn(&str) -> bool) -> Result<()> {
    let mut figures = Figures::default();
    for (name, scenario) in SCENARIOS {
        if !is_wanted(name) {
            continue;
        }
        let begun = Instant::now();
        scenario(hosts, &mut figures).with_context(|| name.to_owned())?;
        println!("PASS  {name}  {:.0} s", begun.elapsed().as_secs_f64());
        for side in [Side::A, Side::B] {
            guest::destroy_all(hosts.lab(side))?;
        }
    }
    if is_wanted(POWER_CUTS) {
        rounds::run(hosts, wanted.rounds, wanted.seed, &mut figures)?;
    }
    print!("{figures}");
    Ok(())
}
