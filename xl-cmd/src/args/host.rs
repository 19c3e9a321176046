//! What can be typed when the host goes down and comes up. The variables are those of /etc/default/xl-ext and
//! /etc/default/xendomains.

use super::Output;
use clap::Args;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub(crate) struct HostShutdown {
    /// Seconds in which domains may be saved; those that are not done are shut down.
    #[arg(
        long,
        value_name = "SECONDS",
        env = "XL_EXT_SAVE_SECONDS",
        value_parser = seconds,
        default_value = "300"
    )]
    pub(crate) save_seconds: u64,
    /// Room that all images may take, in MiB [default: what is free].
    #[arg(long, value_name = "MIB", env = "XL_EXT_SAVE_MIB", value_parser = mib, default_value = "")]
    pub(crate) save_mib: Mib,
    /// How many domains are saved at the same time.
    #[arg(long, value_name = "N", env = "XL_EXT_SAVE_PARALLEL", value_parser = parallel, default_value = "2")]
    pub(crate) parallel: u16,
    /// Seconds in which domains that are not saved may shut down.
    #[arg(
        long,
        value_name = "SECONDS",
        env = "XL_EXT_SHUTDOWN_SECONDS",
        value_parser = seconds,
        default_value = "300"
    )]
    pub(crate) shutdown_seconds: u64,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// Seconds that something may take; as many as by default, if the variable is there and empty.
fn seconds(text: &str) -> Result<u64, String> {
    match text.trim() {
        "" => Ok(300),
        text => text
            .parse()
            .map_err(|_| "it is a number of seconds".to_owned()),
    }
}

fn parallel(text: &str) -> Result<u16, String> {
    match text.trim() {
        "" => Ok(2),
        text => match text.parse() {
            Ok(0) | Err(_) => Err("it is a number, at least 1".to_owned()),
            Ok(number) => Ok(number),
        },
    }
}

/// A limit in MiB, if there is one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mib(pub(crate) Option<u64>);

fn mib(text: &str) -> Result<Mib, String> {
    if text.is_empty() {
        return Ok(Mib(None));
    }
    let number = text.parse().map_err(|_| "it is a number of MiB")?;
    Ok(Mib(Some(number)))
}

#[derive(Debug, Args)]
pub(crate) struct HostStart {
    /// Directory of the configuration files of domains that are started at boot; empty for none.
    #[arg(
        long,
        value_name = "DIR",
        env = "XENDOMAINS_AUTO",
        default_value = "/etc/xen/auto"
    )]
    auto: OsString,
    /// Where xendomains saves domains: one that is there is left to it; empty for nowhere.
    #[arg(
        long,
        value_name = "DIR",
        env = "XENDOMAINS_SAVE",
        default_value = "/var/lib/xen/save"
    )]
    xendomains_save: OsString,
    #[command(flatten)]
    pub(crate) output: Output,
}

impl HostStart {
    /// The directory of configuration files.
    pub(crate) fn auto(&self) -> Option<&Path> {
        some(&self.auto)
    }

    /// The file in which xendomains has saved a domain, if it has.
    pub(crate) fn saved_by_xendomains(&self, domain: &str) -> Option<PathBuf> {
        let file = some(&self.xendomains_save)?.join(domain);
        file.is_file().then_some(file)
    }
}

fn some(directory: &OsStr) -> Option<&Path> {
    (!directory.is_empty()).then(|| Path::new(directory))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Arguments, Command};
    use clap::Parser;

    #[test]
    fn an_empty_limit_is_none_and_an_empty_directory_too() {
        assert_eq!(mib("").unwrap().0, None);
        assert_eq!(mib("20").unwrap().0, Some(20));
        assert!(mib("much").is_err() && mib("-1").is_err());
        assert_eq!((seconds(""), seconds("20 ")), (Ok(300), Ok(20)));
        assert!(seconds("5m").is_err() && parallel("0").is_err());
        assert_eq!((parallel(""), parallel("3")), (Ok(2), Ok(3)));
        let words = ["xl-ext", "host-start", "--auto=", "--xendomains-save="];
        match Arguments::try_parse_from(words).unwrap().command {
            Command::HostStart(start) => {
                assert!(start.auto().is_none() && start.saved_by_xendomains("g").is_none());
            }
            other => panic!("{other:?}"),
        }
        assert!(Arguments::try_parse_from(["xl-ext", "host-shutdown", "--parallel=0"]).is_err());
    }
}
