//! `xl restore` and `libxl_domain_create_restore` behind [`Restorer`].

use super::feed::fed;
use super::libxl::Libxl;
use super::{Restorer, xl};
use crate::error::{Error, Result};
use crate::event::Observer;
use crate::memory::{Content, Kept, read_header};
use crate::model::configuration::redirect;
use crate::model::domain::Keeper;
use crate::plan::Switch;
use std::cell::RefCell;
use std::os::fd::{AsFd, BorrowedFd};

/// Both ways to restore a domain.
#[derive(Default)]
pub struct Restore {
    ready: RefCell<Option<xl::Ready>>,
}

impl Restorer for Restore {
    fn make_ready(&self, keeper: Keeper) {
        let mut ready = self.ready.borrow_mut();
        if keeper == Keeper::Xl && ready.is_none() {
            // Why it cannot be started is found out when it is needed.
            *ready = xl::Ready::start("start xl ahead of time").ok();
        }
    }

    fn stand_down(&self) {
        self.ready.take();
    }

    fn restore_paused(
        &self,
        memory: &Kept,
        keeper: Keeper,
        switches: &[Switch],
        observer: &dyn Observer,
    ) -> Result<()> {
        match keeper {
            Keeper::Xl => xl::restore_paused(self.ready.take(), memory, switches, observer),
            Keeper::Caller => restore_paused(memory, switches, observer),
        }
    }
}

/// By libxl, in a context of its own. No process is left behind.
fn restore_paused(memory: &Kept, switches: &[Switch], observer: &dyn Observer) -> Result<()> {
    let what = format!("restore {}", memory.image.display());
    let failed = |error: Error| error.while_doing(&what);
    let mut content = memory.open().map_err(failed)?;
    // Unbuffered, so that libxl goes on reading where the header ends.
    let configuration = read_header(&mut content).map_err(failed)?;
    let configuration = redirect(&configuration, switches).map_err(failed)?;
    let libxl = Libxl::open().map_err(failed)?;
    let restore = |from: BorrowedFd<'_>| {
        let restored = libxl.create_restore(&configuration, from);
        restored.map(drop).map_err(failed)
    };
    match content {
        Content::Plain(file) => restore(file.as_fd()),
        packed @ Content::Packed(_) => {
            fed(b"", packed, &what, observer, |from| restore(from.as_fd()))
        }
    }
}
