//! The disk of the Xen host, and what boots it: built once and kept in a cache under a name that tells what it is
//! made of.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::process;

const SUITE: &str = "bookworm";

const PACKAGES: &[&str] = &[
    "systemd-sysv",
    "udev",
    "kmod",
    "iproute2",
    "linux-image-amd64",
    "xen-hypervisor-4.17-amd64",
    "xen-utils-4.17",
    "qemu-system-xen",
    // The secondary's side of a replication: that of Xen has no replication driver.
    "qemu-system-x86",
    "qemu-utils",
    "openssh-server",
    "procps",
    "busybox-static",
    "xenstore-utils",
    "socat",
    "valgrind",
];

/// Files of the packages that nothing in the lab reads. They are half of the image.
const EXCLUDED: &[&str] = &[
    "/usr/share/doc/*",
    "/usr/share/man/*",
    "/usr/share/locale/*",
    "/lib/modules/*/kernel/sound/*",
    "/lib/modules/*/kernel/drivers/gpu/*",
    "/lib/modules/*/kernel/drivers/media/*",
    "/lib/modules/*/kernel/drivers/net/wireless/*",
    "/lib/modules/*/kernel/drivers/net/ethernet/*",
    // Of valgrind only memcheck, for programs like dom0's own: it adds 16 MiB, with the C library's symbols, instead
    // of 86.
    "/usr/include/valgrind/*",
    "/usr/lib/x86_64-linux-gnu/valgrind/*",
    "/usr/libexec/valgrind/*-x86-linux*",
    "/usr/libexec/valgrind/[!mv]*-amd64-linux",
    "/usr/libexec/valgrind/massif-*",
    "/usr/libexec/valgrind/*.xml",
];

/// Size of the root file system. It is sparse.
const DISK_SIZE: &str = "8G";

/// The files that go into the image or make it: path below the assets, text, whether it is run.
const ASSETS: &[(&str, &str)] = &[
    ("dom0/customize", include_str!("../assets/dom0/customize")),
    (
        "dom0/initrd-init",
        include_str!("../assets/dom0/initrd-init"),
    ),
    ("dom0/guest-ask", include_str!("../assets/dom0/guest-ask")),
    ("guest/init", include_str!("../assets/guest/init")),
    ("guest/count", include_str!("../assets/guest/count")),
    (
        "guest/mark-disks",
        include_str!("../assets/guest/mark-disks"),
    ),
    ("guest/answer", include_str!("../assets/guest/answer")),
];

const BUILD_LIMIT: Duration = Duration::from_secs(20 * 60);

/// A built image: a directory that never changes once it has its name.
#[derive(Debug, Clone)]
pub struct Image {
    dir: PathBuf,
}

impl Image {
    /// Returns the image for this recipe, which is built first when the cache does not hold it.
    ///
    /// # Errors
    /// When the cache cannot be written or the build fails; the build's log is kept beside and named then.
    pub fn get() -> Result<Self> {
        let cache = cache_dir()?;
        fs::create_dir_all(&cache)
            .with_context(|| format!("cannot create the cache {}", cache.display()))?;
        let name = format!("lab-{}", key(PACKAGES, EXCLUDED, ASSETS));
        let dir = cache.join(&name);
        if dir.is_dir() {
            return Ok(Self { dir });
        }
        let lock_path = cache.join(format!("{name}.lock"));
        let lock = File::create(&lock_path)
            .with_context(|| format!("cannot create {}", lock_path.display()))?;
        lock.lock()
            .with_context(|| format!("cannot lock {}", lock_path.display()))?;
        // Another builder may have finished while this one waited.
        if !dir.is_dir() {
            build(&cache, &name, &dir)?;
        }
        Ok(Self { dir })
    }

    /// The image in `dir`, as a running lab recorded it.
    pub fn at(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// The directory that holds the files.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The hypervisor, unpacked.
    pub fn xen(&self) -> PathBuf {
        self.dir.join("xen")
    }

    /// Dom0's kernel, unpacked.
    pub fn kernel(&self) -> PathBuf {
        self.dir.join("kernel")
    }

    /// Dom0's first file system.
    pub fn initrd(&self) -> PathBuf {
        self.dir.join("initrd")
    }

    /// Dom0's root disk, raw; only ever a backing file.
    pub fn disk(&self) -> PathBuf {
        self.dir.join("root.img")
    }

    /// The private key that dom0's root lets in.
    pub fn ssh_key(&self) -> PathBuf {
        self.dir.join("ssh_key")
    }
}

fn cache_dir() -> Result<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(dir) = set("LIBXL_EXT_CACHE") {
        return std::path::absolute(&dir).context("LIBXL_EXT_CACHE is not a usable path");
    }
    let base = set("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| set("HOME").map(|home| Path::new(&home).join(".cache")));
    match base {
        Some(base) => Ok(base.join("libxl-ext")),
        None => bail!("no place for the image: set LIBXL_EXT_CACHE, XDG_CACHE_HOME or HOME"),
    }
}

fn key(packages: &[&str], excluded: &[&str], assets: &[(&str, &str)]) -> String {
    let mut hash = Sha256::new();
    // Each part with its length, or two lists could run into one another and look alike.
    let mut part = |text: &str| {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    };
    part(SUITE);
    part(DISK_SIZE);
    part(&packages.join(" "));
    part(&excluded.join(" "));
    for (path, text) in assets {
        part(path);
        part(text);
    }
    let digest = hash.finalize();
    digest
        .iter()
        .take(8)
        .fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

fn build(cache: &Path, name: &str, dir: &Path) -> Result<()> {
    let started = std::time::Instant::now();
    let temp = tempfile::Builder::new()
        .prefix(&format!("{name}.new-"))
        .tempdir_in(cache)
        .with_context(|| format!("cannot create a directory in {}", cache.display()))?;
    let assets = temp.path().join("assets");
    for (path, text) in ASSETS {
        let path = assets.join(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).context("cannot unpack the assets")?;
        }
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    process::run_ok(
        Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f"])
            .arg(temp.path().join("ssh_key")),
        Duration::from_secs(60),
    )?;
    let public = fs::read_to_string(temp.path().join("ssh_key.pub")).context("no public key")?;

    let log_path = cache.join(format!("{name}.log"));
    let log =
        File::create(&log_path).with_context(|| format!("cannot create {}", log_path.display()))?;
    eprintln!("lab: building the image, log in {}", log_path.display());
    let mut child = Command::new("mmdebstrap")
        .args(["--variant=minbase", "--format=null"])
        .arg(format!("--include={}", PACKAGES.join(",")))
        .args(
            EXCLUDED
                .iter()
                .map(|path| format!("--dpkgopt=path-exclude={path}")),
        )
        .arg(r#"--customize-hook=sh "$LAB_ASSETS/dom0/customize" "$1""#)
        .args([SUITE, "/dev/null"])
        .env("LAB_OUT", temp.path())
        .env("LAB_ASSETS", &assets)
        .env("LAB_SSH_KEY", public.trim())
        .env("LAB_IMAGE_SIZE", DISK_SIZE)
        // The image has an initramfs of its own; Debian's would only be built to be thrown away.
        .env("INITRD", "No")
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("cannot share the build's log")?)
        .stderr(log)
        .spawn()
        .context("cannot start mmdebstrap; is its package installed?")?;
    match process::wait(&mut child, BUILD_LIMIT)? {
        Some(0) => {}
        Some(status) => bail!(
            "mmdebstrap ended with {status}; the end of {}:\n{}",
            log_path.display(),
            last_lines(&log_path, 15)
        ),
        None => bail!(
            "mmdebstrap did not end within {} s; see {}",
            BUILD_LIMIT.as_secs(),
            log_path.display()
        ),
    }
    let temp = temp.keep();
    fs::rename(&temp, dir)
        .with_context(|| format!("cannot rename {} to {}", temp.display(), dir.display()))?;
    eprintln!("lab: image built in {} s", started.elapsed().as_secs());
    Ok(())
}

pub(crate) fn last_lines(path: &Path, count: usize) -> String {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_tells_every_part_apart() {
        let base = key(&["a", "b"], &["c"], &[("p", "text")]);
        assert_eq!(base, key(&["a", "b"], &["c"], &[("p", "text")]));
        assert_eq!(base.len(), 16);
        for other in [
            key(&["a"], &["c"], &[("p", "text")]),
            key(&["a", "b"], &["b"], &[("p", "text")]),
            key(&["a", "b"], &["c"], &[("p", "text2")]),
            key(&["a", "b"], &["c"], &[("pt", "ext")]),
            key(&["a", "b"], &["c"], &[]),
        ] {
            assert_ne!(base, other);
        }
    }
}
