//! The jobs of the host that is made of data: each look at one finds it further.

use super::world::{Shared, World, impossible};
use crate::error::{Error, ErrorKind, Result};
use crate::model::domain::DomainLife;
use crate::model::layer::Backing;
use crate::model::pull::{OnError, Pull};
use crate::port::{PullJob, PullJobState, Pulls, StorageServer, Word, Worker};
use std::path::{Path, PathBuf};

/// What a job deals with from one look to the next, in bytes.
pub(super) const PACE: u64 = 100 << 10;

#[derive(Clone, Debug)]
pub(super) struct FakeJob {
    pub(super) pull: Pull,
    pub(super) job: PullJob,
}

impl World {
    /// The key of the job of an image, if whoever has it can be reached.
    fn job_key(&mut self, by: &Worker, image: &Path) -> Result<(Option<u32>, PathBuf)> {
        match by {
            Worker::Qemu(life) => {
                let domain = self.domain(life.domid)?;
                if domain.gutted {
                    return Err(impossible("there is no QEMU"));
                }
                Ok((Some(life.domid), image.into()))
            }
            Worker::Daemon(_) if self.served.is_empty() => Err(impossible("there is no daemon")),
            Worker::Daemon(_) => Ok((None, image.into())),
        }
    }

    /// Time passes for a job.
    fn work(&mut self, key: &(Option<u32>, PathBuf)) {
        let fails = self.jobs_fail;
        let content = self.content(&key.1);
        let now = self.now;
        let Some(FakeJob { pull, job }) = self.jobs.get_mut(key) else {
            return;
        };
        if job.state != PullJobState::Running {
            return;
        }
        job.done = (job.done + PACE).min(job.total);
        if !self.flushes_fail {
            self.pulled.insert(key.1.clone(), job.done);
        }
        if let Some(why) = fails.filter(|_| job.done > job.total / 2) {
            job.error = Some(why.into());
            job.state = match pull.on_error {
                OnError::Fail => PullJobState::Ended,
                OnError::Pause => PullJobState::Stalled,
            };
        } else if job.done == job.total {
            job.state = PullJobState::Copied;
            if self.flushes_fail {
                return;
            }
            let image = self.images.get_mut(&key.1).unwrap();
            image.content = content;
            image.touch(now);
        }
    }
}

impl Pulls for Shared {
    fn start(&self, by: &Worker, pull: &Pull) -> Result<()> {
        self.call(|world| {
            let key = world.job_key(by, &pull.disk.image)?;
            if world.jobs.contains_key(&key) {
                return Err(impossible("there is such a job"));
            }
            let job = PullJob {
                state: PullJobState::Running,
                done: 0,
                total: pull.size,
                speed: pull.bandwidth,
                error: None,
            };
            let pull = pull.clone();
            world.jobs.insert(key, FakeJob { pull, job });
            Ok(())
        })
    }

    fn look(&self, by: &Worker, image: &Path) -> Result<Option<PullJob>> {
        self.call(|world| {
            let key = world.job_key(by, image)?;
            world.work(&key);
            Ok(world.jobs.get(&key).map(|it| it.job.clone()))
        })
    }

    fn tell(&self, by: &Worker, image: &Path, word: Word) -> Result<()> {
        self.call(|world| {
            let key = world.job_key(by, image)?;
            let Some(FakeJob { job, .. }) = world.jobs.get_mut(&key) else {
                return Ok(());
            };
            let is_over = matches!(job.state, PullJobState::Cancelled | PullJobState::Ended);
            match word {
                Word::Dismiss if is_over => {
                    world.jobs.remove(&key);
                }
                Word::GoOn if matches!(job.state, PullJobState::Held | PullJobState::Stalled) => {
                    job.state = PullJobState::Running;
                    job.error = None;
                }
                Word::Hold | Word::Rest if job.state == PullJobState::Running => {
                    job.state = PullJobState::Held;
                }
                Word::Cancel if !is_over => job.state = PullJobState::Cancelled,
                Word::Speed(speed) => job.speed = speed,
                _ => {}
            }
            Ok(())
        })
    }

    fn complete(
        &self,
        life: DomainLife,
        pull: &Pull,
        is_all_there: &dyn Fn() -> Result<()>,
    ) -> Result<()> {
        let image = &*pull.disk.image;
        let onto = pull.onto.as_ref().map(|onto| onto.image.to_path_buf());
        let is_there = self.call(|world| {
            let key = world.job_key(&Worker::Qemu(life), image)?;
            Ok(world.jobs.contains_key(&key))
        })?;
        if is_there {
            is_all_there()?;
        }
        self.call(|world| {
            let key = world.job_key(&Worker::Qemu(life), image)?;
            if let Some(FakeJob { job, .. }) = world.jobs.remove(&key) {
                assert_eq!(job.state, PullJobState::Copied, "{job:?}");
                let now = world.now;
                let image = world.image(image)?;
                image.backing.clone_from(&onto);
                image.touch(now);
            }
            if world.image(image)?.backing == onto {
                return Ok(());
            }
            Err(Error::new(ErrorKind::Toolstack, "it stands elsewhere"))
        })
    }

    fn serve(&self, _directory: &Path, chain: &[Backing]) -> Result<Box<dyn StorageServer>> {
        self.call(|world| {
            world.closed_image(&chain[0].image)?;
            world.served = chain.iter().map(|it| it.image.to_path_buf()).collect();
            Ok(())
        })?;
        Ok(Box::new(FakeServer(self.clone())))
    }

    fn directory(&self, _of_domain: &Path) -> PathBuf {
        "/run/pull".into()
    }
}

struct FakeServer(Shared);

impl StorageServer for FakeServer {
    fn end(self: Box<Self>) -> Result<()> {
        self.0.call(|_| Ok(()))
    }
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        let mut world = self.0.0.borrow_mut();
        world.served.clear();
        world.jobs.retain(|(domid, _), _| domid.is_some());
    }
}
