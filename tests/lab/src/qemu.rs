//! The outer QEMU: the machine that Xen runs on.

use std::fs::{File, OpenOptions};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::image::Image;
use crate::link::Link;
use crate::process;
use crate::run_dir::{QemuId, RunDir, State};

/// Why these CPU flags: with SMAP the PV kernel dies at its first iret; with AVX and XSAVE dom0's user land is
/// silently corrupted under load, which the self-test at boot watches for. Both are QEMU 7.2's emulation. It also does
/// `rep movsb` byte by byte, which a kernel that is told of ERMS and FSRM copies everything by: 200 MiB into a tmpfs took
/// 6.3 s with them and 2.6 s without.
const CPU: &str = "max,-smap,-smep,-xsave,-avx,-avx2,-fma,-f16c,-erms,-fsrm";

const XEN_ARGS: &str = "console=com1 com1=115200,8n1 dom0_mem=1536M,max:1536M loglvl=all guest_loglvl=all \
                        noreboot spec-ctrl=no";

/// 112 is REP_GOOD: without it, words are copied by unrolled loops, which are quicker here than `rep movsq`.
const KERNEL_ARGS: &str = "root=/dev/vda rw console=hvc0 nomodeset net.ifnames=0 mitigations=off \
                           clearcpuid=112 modprobe.blacklist=powernow_k8 loglevel=5 systemd.show_status=false";

/// How long the lab outlives the process that booted it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// Until `lab poweroff`, `power-cut` or `destroy`.
    Detached,
    /// Until the process that booted it ends, however that happens.
    Process,
}

/// Starts the machine, and returns it with the process that identifies it and the port of its ssh.
///
/// # Errors
/// When QEMU cannot be started.
pub fn start(run: &RunDir, state: &State, lifetime: Lifetime) -> Result<(Child, QemuId, u16)> {
    let port = free_port()?;
    let log = append(&run.file("qemu.log"))?;
    let mut command = match lifetime {
        Lifetime::Detached => Command::new("qemu-system-x86_64"),
        Lifetime::Process => {
            let mut command = Command::new("setpriv");
            command.args(["--pdeathsig", "KILL", "--", "qemu-system-x86_64"]);
            command
        }
    };
    let image = Image::at(state.image.clone());
    command
        .current_dir(run.path())
        .args([
            "-name",
            "libxl-ext-lab",
            "-M",
            "q35",
            "-accel",
            "tcg",
            "-cpu",
            CPU,
        ])
        .args(["-smp", &state.smp.to_string(), "-m", &state.mem.to_string()])
        .args(["-nodefaults", "-display", "none", "-no-reboot"])
        .arg("-kernel")
        .arg(image.xen())
        .arg("-append")
        .arg(format!("{XEN_ARGS} dom0_max_vcpus={}", state.smp))
        .arg("-initrd")
        .arg(modules(&image))
        // Writeback is what a power cut needs to be honest and quick: a write that dom0 flushed is in this
        // machine's page cache at least, which survives the kill of QEMU; what QEMU still holds is lost.
        .args([
            "-drive",
            "file=disk.qcow2,if=virtio,format=qcow2,cache=writeback,discard=unmap",
        ])
        .arg("-netdev")
        .arg(format!(
            "user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:22"
        ))
        .args(["-device", "virtio-net-pci,netdev=net,romfile="])
        .args(state.link.into_iter().flat_map(Link::arguments))
        .args([
            "-chardev",
            "file,id=serial,path=serial.log,append=on",
            "-serial",
            "chardev:serial",
        ])
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("cannot share QEMU's log")?)
        .stderr(log);
    {
        use std::os::unix::process::CommandExt;
        // A Ctrl-C for `lab` must not reach a machine that is to stay.
        command.process_group(0);
    }
    let child = command
        .spawn()
        .context("cannot start qemu-system-x86_64; is its package installed?")?;
    let pid = i32::try_from(child.id()).context("a process number beyond 31 bits")?;
    let Some(started) = process::start_time(pid) else {
        bail!("QEMU ended at once; see {}", run.file("qemu.log").display());
    };
    Ok((child, QemuId { pid, started }, port))
}

/// Whether the process that was recorded still runs.
pub fn is_running(id: QemuId) -> bool {
    process::start_time(id.pid) == Some(id.started)
}

/// Kills the process that was recorded, and nothing else, and waits until it is gone.
///
/// # Errors
/// When it does not go.
pub fn kill(id: QemuId) -> Result<()> {
    if !is_running(id) {
        return Ok(());
    }
    signal(id, Signal::KILL)?;
    if !wait_until_gone(id, Duration::from_secs(30)) {
        bail!("QEMU {} does not end", id.pid);
    }
    Ok(())
}

/// Sends a signal to the process that was recorded, and to nothing else.
///
/// # Errors
/// When it is gone.
pub fn signal(id: QemuId, signal: Signal) -> Result<()> {
    let Some(pid) = Pid::from_raw(id.pid).filter(|_| is_running(id)) else {
        bail!("QEMU {} is gone", id.pid);
    };
    kill_process(pid, signal).with_context(|| format!("cannot send {signal:?} to QEMU {}", id.pid))
}

/// Waits until the process has ended; says whether it did within `limit`.
pub fn wait_until_gone(id: QemuId, limit: Duration) -> bool {
    let end = Instant::now() + limit;
    while is_running(id) {
        if Instant::now() >= end {
            return false;
        }
        thread::sleep(Duration::from_millis(50));
    }
    true
}

fn modules(image: &Image) -> String {
    // QEMU separates multiboot modules by commas, and a comma in a path is doubled.
    let path = |path: &Path| path.display().to_string().replace(',', ",,");
    format!(
        "{} {KERNEL_ARGS},{}",
        path(&image.kernel()),
        path(&image.initrd())
    )
}

/// A port that was free a moment ago. Should another program take it in between, QEMU ends at once and says so.
fn free_port() -> Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).context("no free port on loopback")?;
    Ok(listener
        .local_addr()
        .context("a listener without an address")?
        .port())
}

fn append(path: &Path) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("cannot write {}", path.display()))
}
