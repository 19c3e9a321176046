//! The source of libxl, and what its generator makes of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use libxl_idl::Model;
use tempfile::TempDir;

/// Passes a test over, with the reason; under CI that is a failure.
pub(crate) fn skip(test: &str, reason: &str) {
    let reason = reason.trim();
    assert!(
        std::env::var("CI").as_deref() != Ok("true"),
        "{test}: {reason}"
    );
    eprintln!("skipped {test}: {reason}");
}

/// libxl's source, and a directory for what is generated from it.
pub(crate) struct Upstream {
    libxl: PathBuf,
    output: TempDir,
}

impl Upstream {
    /// Finds the source, or tells why the test is skipped.
    pub(crate) fn find(test: &str) -> Option<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/upstream/xen-source.sh");
        let output = TempDir::new().expect("a temporary directory can be made");
        // Tests run side by side, but the download must happen once.
        let lock = fs::File::create(std::env::temp_dir().join("libxl-ext-xen-source.lock"))
            .and_then(|file| file.lock().map(|()| file));
        let run = Command::new("sh").arg(script).output();
        drop(lock);
        let run = match run {
            Ok(run) if run.status.success() => run,
            Ok(run) => {
                let messages = String::from_utf8_lossy(&run.stderr);
                skip(
                    test,
                    messages
                        .lines()
                        .last()
                        .unwrap_or("the source cannot be had"),
                );
                return None;
            }
            Err(error) => {
                skip(test, &error.to_string());
                return None;
            }
        };
        let root = PathBuf::from(String::from_utf8_lossy(&run.stdout).trim().to_owned());
        let libxl = ["tools/libs/light", "tools/libxl"]
            .iter()
            .map(|place| root.join(place))
            .find(|place| place.join("gentypes.py").exists())
            .expect("the source has libxl's generator");
        Some(Self { libxl, output })
    }

    /// The directory for generated files.
    pub(crate) fn output(&self) -> &Path {
        self.output.path()
    }

    /// The model of one of libxl's IDL files.
    pub(crate) fn model(&self, stem: &str) -> Model {
        let path = self.libxl.join(format!("{stem}.idl"));
        let source = fs::read_to_string(&path).expect("the IDL can be read");
        libxl_idl::compile(&source, &path.display().to_string())
            .unwrap_or_else(|diagnostics| panic!("{diagnostics}"))
    }

    /// The headers that libxl's generator writes, of which the public one is returned.
    pub(crate) fn header(&self, stem: &str) -> String {
        let file = |suffix: &str| self.output().join(format!("_{stem}{suffix}"));
        let status = Command::new("python3")
            .arg("-B")
            .arg(self.libxl.join("gentypes.py"))
            .arg(self.libxl.join(format!("{stem}.idl")))
            .args([file(".h"), file("_private.h"), file("_json.h"), file(".c")])
            .output()
            .expect("python3 can be run");
        assert!(
            status.status.success(),
            "{}",
            String::from_utf8_lossy(&status.stderr)
        );
        fs::read_to_string(file(".h")).expect("the generator has written the header")
    }
}
