//! What can be typed for pulls.

use super::Output;
use clap::{Args, ValueEnum};
use libxl_ext::model::pull::OnError;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(crate) struct BlockPull {
    /// Let the disk stand on this in the end: a snapshot whose state is an image below it, or the path of such an image
    /// [default: on nothing].
    #[arg(long, value_name = "SNAPSHOT|FILE")]
    pub(crate) base: Option<String>,
    /// Copy no more than so many bytes per second; K, M and G may follow.
    #[arg(long, value_name = "BYTES", value_parser = size, default_value = "0", hide_default_value = true)]
    pub(crate) bandwidth: u64,
    /// What becomes of the pull if something cannot be read or written, as when a disk is full.
    #[arg(long, value_enum, default_value_t = Trouble::Fail)]
    pub(crate) on_error: Trouble,
    /// Remove the images that the disk does not need any more then, if no record names them and nobody has them open.
    #[arg(long)]
    pub(crate) release_base: bool,
    /// Wait until it is over.
    #[arg(long, conflicts_with = "step")]
    pub(crate) wait: bool,
    /// Only an increment, of so many bytes of the disk; K, M and G may follow.
    #[arg(long, value_name = "SIZE", value_parser = at_least_one)]
    pub(crate) step: Option<u64>,
    /// The domain's configuration file, if it is off [default: as in the snapshot that it comes from].
    #[arg(long, value_name = "FILE")]
    pub(crate) domain_config: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) output: Output,
    /// The domain.
    pub(crate) domain: String,
    /// The disk: its virtual device, or its image.
    #[arg(value_name = "VDEV|PATH")]
    pub(crate) disk: String,
}

/// What becomes of a pull if something cannot be read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Trouble {
    /// It fails; what was pulled stays
    Fail,
    /// It stands still until block-pull is given again
    Pause,
}

impl From<Trouble> for OnError {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Fail => Self::Fail,
            Trouble::Pause => Self::Pause,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct BlockPullInfo {
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// Wait until the pull is over, and show how far it is meanwhile.
    #[arg(long, requires = "disk")]
    pub(crate) watch: bool,
    /// The domain.
    pub(crate) domain: String,
    /// The disk: its virtual device, or its image [default: all of which there was a pull].
    #[arg(value_name = "VDEV|PATH")]
    pub(crate) disk: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct BlockPullAbort {
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// The domain.
    pub(crate) domain: String,
    /// The disk: its virtual device, or its image.
    #[arg(value_name = "VDEV|PATH")]
    pub(crate) disk: String,
}

#[derive(Debug, Args)]
pub(crate) struct BlockPullSetSpeed {
    /// The domain.
    pub(crate) domain: String,
    /// The disk: its virtual device, or its image.
    #[arg(value_name = "VDEV|PATH")]
    pub(crate) disk: String,
    /// Copy no more than so many bytes per second; K, M and G may follow; 0 for as many as can be.
    #[arg(value_name = "BYTES", value_parser = size)]
    pub(crate) bandwidth: u64,
}

/// A number of bytes, with a binary unit.
fn size(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.char_indices().last() {
        Some((at, 'k' | 'K')) => (&text[..at], 10),
        Some((at, 'm' | 'M')) => (&text[..at], 20),
        Some((at, 'g' | 'G')) => (&text[..at], 30),
        _ => (text, 0),
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| "a number of bytes, or with K, M or G behind it".to_owned())?;
    // QEMU counts in signed 64 bits.
    let bytes = number
        .checked_shl(shift)
        .filter(|bytes| bytes >> shift == number);
    bytes
        .filter(|bytes| i64::try_from(*bytes).is_ok())
        .ok_or_else(|| "that are too many bytes".to_owned())
}

fn at_least_one(text: &str) -> Result<u64, String> {
    match size(text)? {
        0 => Err("an increment has at least one byte".into()),
        bytes => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Arguments, Command};
    use clap::Parser;

    #[test]
    fn sizes_have_binary_units_and_an_end() {
        assert_eq!(size("7"), Ok(7));
        assert_eq!(size("0"), Ok(0));
        assert_eq!(size("3M"), Ok(3 << 20));
        assert_eq!(size("2g"), Ok(2 << 30));
        for bad in [
            "",
            "M",
            "-1",
            "1.5M",
            "1T",
            "9223372036854775808",
            "99999999999G",
        ] {
            assert!(size(bad).is_err(), "{bad}");
        }
        assert!(at_least_one("0K").is_err());
    }

    #[test]
    fn an_increment_is_waited_for_in_any_case() {
        let parse = |words: &[&str]| Arguments::try_parse_from(["xl-ext"].iter().chain(words));
        for bad in [
            &["block-pull", "g1"][..],
            &["block-pull", "--wait", "--step", "1M", "g1", "xvda"],
            &["block-pull", "--step", "0", "g1", "xvda"],
            &["block-pull", "--on-error", "ignore", "g1", "xvda"],
            &["block-pull-info", "--watch", "g1"],
            &["block-pull-set-speed", "g1", "xvda"],
        ] {
            let error = parse(bad).expect_err("taken");
            assert_eq!(error.exit_code(), 2, "{bad:?}");
        }
        let words = [
            "block-pull",
            "--bandwidth=1M",
            "--base",
            "s1",
            "g1",
            "/i/a.qcow2",
        ];
        let Command::BlockPull(pull) = parse(&words).unwrap().command else {
            panic!()
        };
        assert_eq!(
            (pull.bandwidth, pull.base.as_deref()),
            (1 << 20, Some("s1"))
        );
        assert_eq!(OnError::from(pull.on_error), OnError::Fail);
    }
}
