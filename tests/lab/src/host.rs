//! One lab: a booted Xen host, or one that was and can be again.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use crate::image::{self, Image};
use crate::link::Link;
use crate::process::{self, Input, Output};
use crate::qemu::{self, Lifetime};
use crate::run_dir::{RunDir, State};
use crate::ssh::{Ssh, quote};

/// An idle machine needs half a minute, a loaded one two.
const BOOT_LIMIT: Duration = Duration::from_secs(400);

/// The limit of a command that nothing else is known about.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(180);

/// Prints "bad" for each line that comes out of a pipe other than it went in. With AVX on in the emulated CPU six
/// such loops showed it 7 times in 300 rounds, and never without. See [`crate::qemu`].
const SELF_TEST: &str = r#"
for loop in 1 2 3 4 5 6; do
	(
		round=0
		while [ $round -lt 12 ]; do
			round=$((round + 1))
			out=$(echo "lab $loop $round" | grep "$loop $round" 2>&1)
			[ "$out" = "lab $loop $round" ] || echo "bad: $loop $round: $out"
		done
	) &
done
wait
"#;

/// How to start a lab.
#[derive(Debug, Clone, Copy)]
pub struct BootOptions {
    /// Virtual CPUs of the host.
    pub smp: u32,
    /// Its memory in MiB; dom0 takes 1536 of them.
    pub mem: u32,
    /// How long it lives.
    pub lifetime: Lifetime,
    /// Its end of a private network; one that has a disk already keeps the one that it has, if this is none.
    pub link: Option<Link>,
}

impl Default for BootOptions {
    fn default() -> Self {
        Self {
            smp: 1,
            mem: 4096,
            lifetime: Lifetime::Detached,
            link: None,
        }
    }
}

/// A Xen host in QEMU.
#[derive(Debug)]
pub struct Lab {
    name: String,
    run: RunDir,
    state: State,
    ssh: Ssh,
    lifetime: Lifetime,
    child: Option<Child>,
}

impl Lab {
    /// Boots the lab that is called `name`: from the image if it has no disk yet, else from its disk as it is.
    ///
    /// # Errors
    /// When it runs already, the image cannot be built, or the host does not come up whole.
    pub fn boot(name: &str, options: BootOptions) -> Result<Self> {
        let mut lab = Self::switched_off(name, options)?;
        lab.start()?;
        Ok(lab)
    }

    /// As [`Lab::boot`], and does not switch it on.
    ///
    /// # Errors
    /// When it runs already, or the image cannot be built.
    pub fn switched_off(name: &str, options: BootOptions) -> Result<Self> {
        let run = RunDir::of(name)?;
        let state = match run.state()? {
            Some(state) => {
                if state.qemu.is_some_and(qemu::is_running) {
                    bail!("lab {name} runs already; see `lab list`");
                }
                State {
                    smp: options.smp,
                    mem: options.mem,
                    link: options.link.or(state.link),
                    qemu: None,
                    ..state
                }
            }
            None => new_run(&run, options)?,
        };
        let ssh = Ssh::new(
            run.path(),
            Image::at(state.image.clone()).ssh_key(),
            state.port,
        );
        Ok(Self {
            name: name.to_owned(),
            run,
            state,
            ssh,
            lifetime: options.lifetime,
            child: None,
        })
    }

    /// The lab that is called `name` and was booted before, perhaps by another process.
    ///
    /// # Errors
    /// When there is none.
    pub fn attach(name: &str) -> Result<Self> {
        let run = RunDir::of(name)?;
        let Some(state) = run.state()? else {
            bail!("there is no lab {name}; `lab boot --name {name}` makes one");
        };
        let ssh = Ssh::new(
            run.path(),
            Image::at(state.image.clone()).ssh_key(),
            state.port,
        );
        let lab = Self {
            name: name.to_owned(),
            run,
            state,
            ssh,
            lifetime: Lifetime::Detached,
            child: None,
        };
        if lab.is_running() && !lab.ssh.is_connected() {
            lab.ssh.disconnect();
            // Commands work without it, only slower.
            drop(lab.ssh.connect());
        }
        Ok(lab)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its directory on this machine.
    pub fn run_dir(&self) -> &Path {
        self.run.path()
    }

    /// The port on loopback that leads to dom0's ssh.
    pub fn port(&self) -> u16 {
        self.state.port
    }

    /// Its end of a private network.
    pub fn link(&self) -> Option<Link> {
        self.state.link
    }

    /// Whether the outer QEMU runs.
    pub fn is_running(&self) -> bool {
        self.state.qemu.is_some_and(qemu::is_running)
    }

    /// Runs `script` with dom0's shell and returns its standard output, without the line end.
    ///
    /// # Errors
    /// When its status is not 0, or it takes longer than [`COMMAND_LIMIT`].
    pub fn run(&self, script: &str) -> Result<String> {
        self.run_within(script, COMMAND_LIMIT)
    }

    /// As [`Lab::run`], with a limit of its own.
    ///
    /// # Errors
    /// As [`Lab::run`].
    pub fn run_within(&self, script: &str, limit: Duration) -> Result<String> {
        let output = self.try_run(script, limit)?;
        if output.status != 0 {
            bail!(
                "in dom0, `{script}` ended with {}: {}{}",
                output.status,
                output.stdout,
                output.stderr.trim_end()
            );
        }
        Ok(output.stdout.trim_end_matches('\n').to_owned())
    }

    /// As [`Lab::run_within`], for a script that may fail: its status is in the output.
    ///
    /// # Errors
    /// When dom0 cannot be reached, or the script does not end within `limit`.
    pub fn try_run(&self, script: &str, limit: Duration) -> Result<Output> {
        self.ssh.run(script, Input::Nothing, limit)
    }

    /// The ssh command into dom0, for a caller who connects it to a terminal.
    pub fn ssh_command(&self) -> Command {
        self.ssh.command()
    }

    /// Copies the file `source` of this machine to `target` in dom0, with its permission bits.
    ///
    /// # Errors
    /// When either cannot be used.
    pub fn put(&self, source: &Path, target: &str) -> Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(source)
            .with_context(|| format!("cannot read {}", source.display()))?
            .permissions()
            .mode()
            & 0o777;
        let target = quote(target);
        let script = format!("cat > {target} && chmod {mode:o} {target}");
        let output = self
            .ssh
            .run(&script, process::input_file(source)?, COMMAND_LIMIT)?;
        if output.status != 0 {
            bail!(
                "cannot copy {} to dom0: {}",
                source.display(),
                output.stderr.trim()
            );
        }
        Ok(())
    }

    /// Writes `text` to the file `target` in dom0.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn put_text(&self, text: &str, target: &str) -> Result<()> {
        let script = format!("cat > {}", quote(target));
        let output = self
            .ssh
            .run(&script, Input::Bytes(text.into()), COMMAND_LIMIT)?;
        if output.status != 0 {
            bail!("cannot write {target} in dom0: {}", output.stderr.trim());
        }
        Ok(())
    }

    /// Unpacks a staging directory, as `make install DESTDIR=...` fills it, over dom0's root.
    ///
    /// # Errors
    /// When it cannot be packed or unpacked.
    pub fn install(&self, stage: &Path) -> Result<()> {
        if !stage.is_dir() {
            bail!(
                "{} is no directory; fill it by `make install DESTDIR=...`",
                stage.display()
            );
        }
        let mut tar = Command::new("tar")
            .args(["--owner=0", "--group=0", "--numeric-owner", "-C"])
            .arg(stage)
            .args(["-cf", "-", "."])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start tar")?;
        let pipe = tar.stdout.take().context("tar without a pipe")?;
        // Dom0's /lib is a link to usr/lib, and stays one.
        let script = "tar -C / --keep-directory-symlink --no-overwrite-dir -xf - && ldconfig && \
                      systemctl daemon-reload && sync";
        let output = self.ssh.run(script, Input::Child(pipe), COMMAND_LIMIT)?;
        let packed = process::wait(&mut tar, Duration::from_secs(10))?;
        if packed != Some(0) || output.status != 0 {
            bail!(
                "cannot install {} in dom0: {}",
                stage.display(),
                output.stderr.trim()
            );
        }
        Ok(())
    }

    /// Runs the self-test of dom0's user land once.
    ///
    /// # Errors
    /// When it shows corruption: nothing that such a host does can be believed.
    pub fn self_test(&self) -> Result<()> {
        let bad = self.run(SELF_TEST)?;
        if !bad.is_empty() {
            bail!("dom0's user land is corrupted by the emulation; do not trust this lab:\n{bad}");
        }
        Ok(())
    }

    /// Whether dom0 answers and its toolstack works.
    pub fn is_healthy(&self) -> bool {
        self.is_running()
            && self
                .try_run("xl list", Duration::from_secs(60))
                .is_ok_and(|output| output.status == 0)
    }

    /// Shuts dom0 down and waits until the machine is off.
    ///
    /// # Errors
    /// When it does not go down; use [`Lab::power_cut`] then.
    pub fn poweroff(&mut self) -> Result<()> {
        let Some(id) = self.state.qemu.filter(|&id| qemu::is_running(id)) else {
            return Ok(());
        };
        // The connection may break before the command's status arrives.
        drop(self.try_run("systemctl poweroff", Duration::from_secs(60)));
        if !qemu::wait_until_gone(id, Duration::from_secs(240)) {
            bail!(
                "lab {} does not power off; its console ends:\n{}",
                self.name,
                self.log_tail("serial.log")
            );
        }
        // The machine is off by itself: this only clears up after it.
        self.power_cut()
    }

    /// Takes the power away: kills the outer QEMU. The disk keeps what dom0 had flushed.
    ///
    /// # Errors
    /// When QEMU does not end.
    pub fn power_cut(&mut self) -> Result<()> {
        if let Some(id) = self.state.qemu {
            if let Some(mut child) = self.child.take() {
                drop(child.kill());
                drop(child.wait());
            }
            qemu::kill(id)?;
        }
        self.ssh.disconnect();
        self.state.qemu = None;
        self.run.save(&self.state)
    }

    /// Stops the outer QEMU (SIGSTOP): the host is there and says nothing.
    ///
    /// # Errors
    /// When it does not run.
    pub fn freeze(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Has it go on after [`Lab::freeze`].
    ///
    /// # Errors
    /// When it does not run.
    pub fn thaw(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let id = self.state.qemu.context("the lab is switched off")?;
        qemu::signal(id, signal)
    }

    /// Boots again from the disk as it is, after [`Lab::poweroff`] or [`Lab::power_cut`].
    ///
    /// # Errors
    /// When it runs still, or does not come up whole.
    pub fn start(&mut self) -> Result<()> {
        let started = self.switch_on()?;
        self.wait_up(started)
    }

    /// The first half of [`Lab::start`]: whoever has several labs boot at the same time switches all of them on first.
    /// Returns when that was.
    ///
    /// # Errors
    /// When it runs still, or QEMU cannot be started.
    pub fn switch_on(&mut self) -> Result<Instant> {
        if self.is_running() {
            bail!("lab {} runs already", self.name);
        }
        let started = Instant::now();
        let (child, id, port) = qemu::start(&self.run, &self.state, self.lifetime)?;
        self.child = Some(child);
        self.state.qemu = Some(id);
        self.state.port = port;
        self.run.save(&self.state)?;
        self.ssh = Ssh::new(
            self.run.path(),
            Image::at(self.state.image.clone()).ssh_key(),
            self.state.port,
        );
        Ok(started)
    }

    /// The second half of [`Lab::start`]: waits until a host that was switched on at `started` is up.
    ///
    /// # Errors
    /// When it does not come up whole.
    pub fn wait_up(&mut self, started: Instant) -> Result<()> {
        self.wait_for_ssh(started)?;
        let to_ssh = started.elapsed();
        self.wait_for_xl(started)?;
        let to_xl = started.elapsed();
        let info = self.run("xl info")?;
        if !info.contains("xen_version") {
            bail!("xl info does not tell Xen's version:\n{info}");
        }
        if let Some(link) = self.state.link {
            self.run(&link.bring_up())?;
        }
        self.self_test()?;
        eprintln!(
            "lab: {} is up: ssh after {:.0} s, xl after {:.0} s, tested after {:.0} s",
            self.name,
            to_ssh.as_secs_f32(),
            to_xl.as_secs_f32(),
            started.elapsed().as_secs_f32()
        );
        Ok(())
    }

    /// Ends the lab and removes all that it wrote.
    ///
    /// # Errors
    /// When QEMU does not end or a file cannot be removed.
    pub fn destroy(mut self) -> Result<()> {
        self.power_cut()?;
        self.run.remove()
    }

    fn wait_for_ssh(&mut self, started: Instant) -> Result<()> {
        loop {
            if let Some(child) = &mut self.child
                && let Some(status) = child.try_wait().context("cannot wait for QEMU")?
            {
                bail!("QEMU ended with {status}: {}", self.log_tail("qemu.log"));
            }
            // Asking too often costs the two emulated CPUs a handshake each time; QEMU takes the connection
            // before dom0 can.
            if self.ssh.connect().is_ok() {
                return Ok(());
            }
            if started.elapsed() > BOOT_LIMIT {
                bail!(
                    "lab {} did not come up in {} s; its console ends:\n{}",
                    self.name,
                    BOOT_LIMIT.as_secs(),
                    self.log_tail("serial.log")
                );
            }
            thread::sleep(Duration::from_millis(300));
        }
    }

    /// Xen's daemons come up beside sshd, not before it.
    fn wait_for_xl(&self, started: Instant) -> Result<()> {
        loop {
            let output = self.try_run(
                "systemctl is-active -q xen.service && xl list > /dev/null",
                Duration::from_secs(60),
            )?;
            if output.status == 0 {
                return Ok(());
            }
            if started.elapsed() > BOOT_LIMIT {
                bail!(
                    "xl does not work in lab {}: {}",
                    self.name,
                    output.stderr.trim()
                );
            }
            thread::sleep(Duration::from_millis(500));
        }
    }

    fn log_tail(&self, file: &str) -> String {
        image::last_lines(&self.run.file(file), 20)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.lifetime == Lifetime::Process && self.is_running() {
            // The process is about to end, and QEMU with it in any case.
            drop(self.power_cut());
        }
    }
}

fn new_run(run: &RunDir, options: BootOptions) -> Result<State> {
    let image = Image::get()?;
    run.create()?;
    let made = process::run_ok(
        Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
            .arg(image.disk())
            .arg(run.file("disk.qcow2")),
        Duration::from_secs(60),
    );
    if let Err(error) = made {
        // A directory without a disk would be in the way of the next attempt.
        run.remove()?;
        return Err(error);
    }
    let state = State {
        image: PathBuf::from(image.dir()),
        smp: options.smp,
        mem: options.mem,
        link: options.link,
        port: 0,
        qemu: None,
    };
    run.save(&state)?;
    Ok(state)
}
