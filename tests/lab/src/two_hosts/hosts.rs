//! The two hosts: what each needs so that either can replicate to the other.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::LIMIT;
use super::sequence::VDEVS;
use crate::guest::{self, Guest};
use crate::host::{BootOptions, Lab};
use crate::link::Link;
use crate::logs;
use crate::process::Output;
use crate::product::Product;
use crate::ssh::quote;

/// Where the product remembers, on either host: what listens is told so too.
const STORE: &str = "/var/lib/lab/replication";

/// The product under the name `xl`.
const XL: &str = "/var/lib/lab/as-xl/xl";

/// The secondary may be busy for so long; with less, an emulated host beside others is taken for one that is gone.
pub(super) const HEARTBEAT_MS: u32 = 20_000;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    A,
    B,
}

impl Side {
    pub(super) const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
        }
    }
}

/// Both.
pub(super) struct Hosts([Lab; 2]);

impl Hosts {
    /// Made, and switched off.
    pub(super) fn new(name: &str, options: BootOptions) -> Result<Self> {
        let name = |side: Side| format!("{name}-{}", side.name());
        let [left, right] = Link::pair()?;
        let make = |side, link| {
            let link = Some(link);
            Lab::switched_off(&name(side), BootOptions { link, ..options })
        };
        Ok(Self([make(Side::A, left)?, make(Side::B, right)?]))
    }

    /// Those that were kept, if both run.
    pub(super) fn attach(name: &str) -> Option<Self> {
        let lab = |side: Side| Lab::attach(&format!("{name}-{}", side.name())).ok();
        let labs = [lab(Side::A)?, lab(Side::B)?];
        labs.iter().all(Lab::is_running).then_some(Self(labs))
    }

    /// Boots both.
    pub(super) fn boot(&mut self) -> Result<()> {
        let [a, b] = &mut self.0;
        let started = [a.switch_on()?, b.switch_on()?];
        a.wait_up(started[0])?;
        b.wait_up(started[1])
    }

    /// Waits for those of which the last run had one boot.
    pub(super) fn wait_up(&mut self) -> Result<()> {
        let started = Instant::now();
        self.0.iter_mut().try_for_each(|lab| lab.wait_up(started))
    }

    /// Removes what an earlier run left on them.
    pub(super) fn clear(&self) -> Result<()> {
        for lab in &self.0 {
            // The brackets keep pkill from finding this very script.
            lab.run(&format!(
                "systemctl stop xl-ext-replication; pkill -9 -f '[r]eplication-keep'; pkill -9 -f '[x]l-ext-repl-'; \
                 rm -rf {STORE} {XL} /run/xen/xl-ext-*"
            ))?;
            guest::destroy_all(lab)?;
        }
        Ok(())
    }

    /// Both have the product of `stage` and a key, and listen.
    pub(super) fn set_up(&self, stage: &Path) -> Result<()> {
        for lab in &self.0 {
            lab.install(stage)?;
            lab.run(&format!(
                "mkdir -p $(dirname {XL}) && ln -s $(command -v xl-ext) {XL} && \
                 echo XL_EXT_STORE={STORE} >/etc/default/xl-ext && sync"
            ))?;
        }
        let [a, b] = [Side::A, Side::B].map(|side| self.product(side, "nobody"));
        let key = a.run("replication-pair --export - racks")?;
        let import = b.command("replication-pair --import -");
        self.lab(Side::B)
            .run(&format!("{import} <<'KEY'\n{}\nKEY", key.trim()))?;
        for side in [Side::A, Side::B] {
            self.lab(side)
                .run("systemctl enable -q --now xl-ext-replication && sync")?;
            self.wait_listening(side)?;
            self.lab(side)
                .run(&format!(
                    "busybox ping -c 1 -W 20 {}",
                    self.address(side.other())?
                ))
                .context("the private network")?;
        }
        Ok(())
    }

    pub(super) const fn lab(&self, side: Side) -> &Lab {
        &self.0[side as usize]
    }

    pub(super) const fn lab_mut(&mut self, side: Side) -> &mut Lab {
        &mut self.0[side as usize]
    }

    pub(super) fn guest<'a>(&'a self, side: Side, name: &str) -> Guest<'a> {
        Guest::attach(self.lab(side), name)
    }

    pub(super) fn product<'a>(&'a self, side: Side, name: &str) -> Product<'a> {
        Product::of(self.lab(side), &self.guest(side, name)).store(STORE)
    }

    fn address(&self, side: Side) -> Result<String> {
        let link = self.lab(side).link().context("no private network")?;
        Ok(link.address.to_string())
    }

    /// Waits until the secondary's unit listens, which it does by itself when the host boots.
    pub(super) fn wait_listening(&self, side: Side) -> Result<()> {
        let script = "tries=0; until ss -ltn | grep -q ':9433 '; do tries=$((tries + 1)); \
                      [ $tries -gt 300 ] && { systemctl status xl-ext-replication >&2; exit 1; }; sleep 0.2; done";
        self.lab(side).run(script).map(drop)
    }

    /// Starts the replication of a domain to the other host, and returns how long that took.
    pub(super) fn start(
        &self,
        side: Side,
        name: &str,
        config: &str,
        options: &str,
    ) -> Result<Duration> {
        let peer = self.address(side.other())?;
        let begun = Instant::now();
        self.product(side, name).run(&format!(
            "replication-start --secondary {peer} --domain-config {config} {options} {{}}"
        ))?;
        Ok(begun.elapsed())
    }

    /// What a side says of the replication of a domain.
    pub(super) fn info(&self, side: Side, name: &str) -> Result<Value> {
        info(&self.product(side, name))
    }

    /// Waits until a side says that the replication of a domain is in a state, and returns all that it says.
    pub(super) fn wait_for(&self, side: Side, name: &str, state: &str) -> Result<Value> {
        let end = Instant::now() + LIMIT;
        loop {
            let info = self.info(side, name)?;
            if info["state"] == state {
                return Ok(info);
            }
            ensure!(Instant::now() < end, "it is not {state}: {info}");
            std::thread::sleep(Duration::from_millis(300));
        }
    }

    /// Where a failover leaves the configuration file of a domain.
    pub(super) fn config_after_failover(name: &str) -> String {
        format!("{STORE}/{name}/replica/domain.cfg")
    }

    /// `xl create` by the product under that name.
    pub(super) fn create(&self, side: Side, config: &str) -> Result<Output> {
        let script = format!("XL_EXT_STORE={STORE} {XL} create {}", quote(config));
        self.lab(side).try_run(&script, LIMIT)
    }

    /// What listens on a side remembers in another place from now on; nothing is there.
    pub(super) fn serve_from(&self, side: Side, store: Option<&str>) -> Result<()> {
        let store = store.unwrap_or(STORE);
        self.lab(side).run(&format!(
            "mkdir -p -m 700 {store}; [ -e {store}/.pairs ] || cp -a {STORE}/.pairs {store}/; echo XL_EXT_STORE={store} >/etc/default/xl-ext; \
             systemctl restart xl-ext-replication"
        ))?;
        self.wait_listening(side)
    }

    /// The logs of both.
    pub(super) fn keep_logs(&self, out: &Path) {
        for lab in &self.0 {
            // One that is silent would not answer.
            drop(lab.thaw());
            let collected = logs::collect(lab, &out.join(lab.name()));
            if let Err(error) = collected {
                eprintln!("lab: no logs of {}: {error:#}", lab.name());
            }
        }
    }

    pub(super) fn destroy(self) -> Result<()> {
        let [a, b] = self.0;
        a.destroy().and(b.destroy())
    }
}

/// What is said of the replication of a product's domain.
pub(super) fn info(product: &Product<'_>) -> Result<Value> {
    let text = product.run("replication-status --json {}")?;
    let infos: Value = serde_json::from_str(&text)?;
    Ok(infos[0].clone())
}

/// The images, and the number of the last checkpoint, of a domain that is, or was, replicated to here.
pub(super) fn images(product: &Product<'_>) -> Result<([String; 2], u64)> {
    let info = info(product)?;
    let mut images = [const { String::new() }; 2];
    for (at, image) in images.iter_mut().enumerate() {
        let disk = &info["disks"][at];
        ensure!(
            disk["vdev"] == VDEVS[at] && disk["format"] == "qcow2",
            "{info}"
        );
        let path = disk["image"].as_str().context("no image")?;
        path.clone_into(image);
    }
    let number = info["checkpoint"]["number"].as_u64();
    Ok((
        images,
        number.with_context(|| format!("no checkpoint: {info}"))?,
    ))
}
