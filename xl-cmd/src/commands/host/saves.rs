//! Several saves at a time, each in a process of its own: it has its own lock, and one that is to stop takes itself
//! back, so that its guest can be shut down instead.

use libxl_ext::snapshot::RunningDomain;
use libxl_ext::{Error, Result};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How often it is looked whether a save has ended.
const LOOK: Duration = Duration::from_millis(50);

/// What the saves may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// How many at the same time, at least one.
    pub(super) parallel: usize,
    /// How long all of them together.
    pub(super) time: Duration,
}

/// How one ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Save {
    Done,
    /// The guest goes on, or what was begun is taken back by the next command.
    Failed,
    /// It was not begun, or stopped, when the time was up.
    OutOfTime,
    /// It was not begun, or stopped, since the user wanted so.
    Stopped,
}

impl fmt::Display for Save {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Done => "it is saved",
            Self::Failed => "it could not be saved",
            Self::OutOfTime => "the time for saving is up",
            Self::Stopped => "stopped",
        })
    }
}

/// Whoever does the saves.
pub(super) trait Work {
    /// Begins one. Returns whether it could be begun.
    fn begin(&mut self, domid: u32) -> bool;
    /// Asks one that was begun to stop.
    fn stop(&mut self, domid: u32);
    /// One that has ended, and whether the domain is saved. It may take a moment.
    fn ended(&mut self) -> Option<(u32, bool)>;
    /// How long all this has taken.
    fn elapsed(&self) -> Duration;
}

/// Saves the domains in their order. Returns how each ended.
pub(super) fn save_all(
    work: &mut impl Work,
    domains: Vec<RunningDomain>,
    limits: Limits,
    wants_abort: &dyn Fn() -> bool,
) -> Vec<(RunningDomain, Save)> {
    let mut waiting = VecDeque::from(domains);
    let mut running: BTreeMap<u32, RunningDomain> = BTreeMap::new();
    let mut ended = Vec::new();
    let mut stopped = None;
    loop {
        if stopped.is_none() {
            stopped = if wants_abort() {
                Some(Save::Stopped)
            } else if work.elapsed() >= limits.time {
                Some(Save::OutOfTime)
            } else {
                None
            };
            if stopped.is_some() {
                for domid in running.keys() {
                    work.stop(*domid);
                }
            }
        }
        match stopped {
            Some(why) => ended.extend(waiting.drain(..).map(|domain| (domain, why))),
            None => {
                while running.len() < limits.parallel
                    && let Some(domain) = waiting.pop_front()
                {
                    if work.begin(domain.domid) {
                        running.insert(domain.domid, domain);
                    } else {
                        ended.push((domain, Save::Failed));
                    }
                }
            }
        }
        if running.is_empty() && waiting.is_empty() {
            return ended;
        }
        if let Some((domid, is_saved)) = work.ended()
            && let Some(domain) = running.remove(&domid)
        {
            let end = match (is_saved, stopped) {
                // Also one that was asked too late.
                (true, _) => Save::Done,
                (false, Some(why)) => why,
                (false, None) => Save::Failed,
            };
            ended.push((domain, end));
        }
    }
}

/// `xl-ext managed-save`, a process for each domain. What it has to say it says on our standard error.
pub(super) struct Children {
    program: PathBuf,
    store: PathBuf,
    running: BTreeMap<u32, Child>,
    since: Instant,
}

impl Children {
    pub(super) fn new(store: &Path) -> Result<Self> {
        Ok(Self {
            program: std::env::current_exe()
                .map_err(|error| Error::io("find this program", error))?,
            store: store.to_owned(),
            running: BTreeMap::new(),
            since: Instant::now(),
        })
    }
}

impl Work for Children {
    fn begin(&mut self, domid: u32) -> bool {
        let child = Command::new(&self.program)
            .arg("--store")
            .arg(&self.store)
            .args(["managed-save", "--at-boot", &domid.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn();
        match child {
            Ok(child) => self.running.insert(domid, child).is_none(),
            Err(error) => {
                tracing::error!("start {}: {error}", self.program.display());
                false
            }
        }
    }

    fn stop(&mut self, domid: u32) {
        let child = self.running.get(&domid);
        // It is a child that nobody has waited for, so the number is its own.
        let pid = child.and_then(|child| Pid::from_raw(i32::try_from(child.id()).ok()?));
        if let Some(pid) = pid {
            // One that has ended needs no signal.
            let _ = kill_process(pid, Signal::TERM);
        }
    }

    fn ended(&mut self) -> Option<(u32, bool)> {
        let mut running = self.running.iter_mut();
        let found = running.find_map(|(domid, child)| match child.try_wait() {
            Ok(None) => None,
            Ok(Some(status)) => Some((*domid, status.success())),
            Err(_) => Some((*domid, false)),
        });
        match found {
            Some((domid, _)) => drop(self.running.remove(&domid)),
            None => std::thread::sleep(LOOK),
        }
        found
    }

    fn elapsed(&self) -> Duration {
        self.since.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use libxl_ext::model::domain::DomainState;
    use std::cell::Cell;

    /// Saves that take so many seconds each, by a clock of their own; one that is stopped takes a second to end.
    struct Fake {
        takes: BTreeMap<u32, u64>,
        ends: BTreeMap<u32, (u64, bool)>,
        now: Cell<u64>,
        most: usize,
        begun: Vec<u32>,
    }

    impl Fake {
        fn new(takes: &[(u32, u64)]) -> Self {
            Self {
                takes: takes.iter().copied().collect(),
                ends: BTreeMap::new(),
                now: Cell::new(0),
                most: 0,
                begun: Vec::new(),
            }
        }
    }

    impl Work for Fake {
        fn begin(&mut self, domid: u32) -> bool {
            self.begun.push(domid);
            let Some(takes) = self.takes.get(&domid) else {
                return false;
            };
            self.ends.insert(domid, (self.now.get() + takes, true));
            self.most = self.most.max(self.ends.len());
            true
        }
        fn stop(&mut self, domid: u32) {
            self.ends.insert(domid, (self.now.get() + 1, false));
        }
        fn ended(&mut self) -> Option<(u32, bool)> {
            self.now.set(self.now.get() + 1);
            let now = self.now.get();
            let (domid, is_saved) = self
                .ends
                .iter()
                .find_map(|(domid, (at, is_saved))| (*at <= now).then_some((*domid, *is_saved)))?;
            self.ends.remove(&domid);
            Some((domid, is_saved))
        }
        fn elapsed(&self) -> Duration {
            Duration::from_secs(self.now.get())
        }
    }

    fn domains(count: u32) -> Vec<RunningDomain> {
        let domain = |domid| RunningDomain {
            domid,
            name: format!("g{domid}"),
            state: DomainState::Running,
            memory_bytes: 0,
        };
        (1..=count).map(domain).collect()
    }

    fn limits(parallel: usize, seconds: u64) -> Limits {
        Limits {
            parallel,
            time: Duration::from_secs(seconds),
        }
    }

    fn ends(work: &mut Fake, count: u32, limits: Limits) -> BTreeMap<u32, Save> {
        let ended = save_all(work, domains(count), limits, &|| false);
        assert_eq!(ended.len(), count as usize);
        ended
            .into_iter()
            .map(|(domain, end)| (domain.domid, end))
            .collect()
    }

    #[test]
    fn so_many_at_a_time_in_their_order_and_a_failure_stops_no_other() {
        let mut work = Fake::new(&[(1, 5), (2, 9), (4, 1), (5, 1)]);
        let ended = ends(&mut work, 5, limits(2, 100));
        assert_eq!((work.most, &work.begun[..]), (2, &[1, 2, 3, 4, 5][..]));
        for (domid, end) in ended {
            let expected = if domid == 3 { Save::Failed } else { Save::Done };
            assert_eq!(end, expected, "{domid}");
        }
    }

    #[test]
    fn when_the_time_is_up_what_runs_is_stopped_and_the_rest_not_begun() {
        let mut work = Fake::new(&[(1, 3), (2, 50), (3, 50), (4, 1)]);
        let ended = ends(&mut work, 4, limits(2, 10));
        let late = Save::OutOfTime;
        assert_eq!(
            ended,
            [(1, Save::Done), (2, late), (3, late), (4, late)].into()
        );
        assert_eq!(work.begun, [1, 2, 3]);
        assert!(work.now.get() < 20, "it was waited for");
    }

    #[test]
    fn one_that_was_stopped_too_late_is_saved() {
        struct Deaf(Fake);
        impl Work for Deaf {
            fn begin(&mut self, domid: u32) -> bool {
                self.0.begin(domid)
            }
            fn stop(&mut self, _domid: u32) {}
            fn ended(&mut self) -> Option<(u32, bool)> {
                self.0.ended()
            }
            fn elapsed(&self) -> Duration {
                self.0.elapsed()
            }
        }
        let mut work = Deaf(Fake::new(&[(1, 20)]));
        let ended = save_all(&mut work, domains(1), limits(1, 10), &|| false);
        assert_eq!(ended[0].1, Save::Done);
    }

    #[test]
    fn a_wish_to_stop_is_heeded() {
        let mut work = Fake::new(&[(1, 50), (2, 50)]);
        let asked = Cell::new(0);
        let wants_abort = || {
            asked.set(asked.get() + 1);
            asked.get() > 3
        };
        let ended = save_all(&mut work, domains(2), limits(1, 100), &wants_abort);
        assert!(
            ended.iter().all(|(_, end)| *end == Save::Stopped),
            "{ended:?}"
        );
    }
}
