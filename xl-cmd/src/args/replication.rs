//! What can be typed for replication.

use clap::Args;
use libxl_ext::model::replica::{DEFAULT_PORT, Pace};
use std::path::PathBuf;
use uuid::Uuid;

#[derive(Debug, Args)]
pub(crate) struct ReplicationPair {
    /// Write the key, which is a secret, to a new file, or with - to standard output.
    #[arg(long, value_name = "FILE", conflicts_with = "import")]
    pub(crate) export: Option<PathBuf>,
    /// Take the key that the other host has written, from a file, or with - from standard input.
    #[arg(long, value_name = "FILE", conflicts_with = "name")]
    pub(crate) import: Option<PathBuf>,
    /// Name of the key; it is made if there is none of the name [default: all are listed].
    pub(crate) name: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ReplicationServe {
    /// Where to listen.
    #[arg(long, value_name = "ADDRESS[:PORT]", default_value = "0.0.0.0", value_parser = peer)]
    pub(crate) listen: String,
    /// Directory in which each domain has a directory of its images [default: in the store].
    #[arg(long, value_name = "DIR")]
    pub(crate) images: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct ReplicationStart {
    /// Where `xl-ext replication-serve` listens.
    #[arg(long, value_name = "HOST[:PORT]", value_parser = peer)]
    pub(crate) secondary: String,
    /// Name of the key that both hosts have [default: the only one].
    #[arg(long, value_name = "NAME")]
    pub(crate) pair: Option<String>,
    /// Make a checkpoint every so many milliseconds [default: by replication-checkpoint alone].
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(100..=86_400_000))]
    pub(crate) interval: Option<u64>,
    /// How long the secondary may be silent before the guest goes on without it, in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 5_000, value_parser = clap::value_parser!(u64).range(500..=60_000))]
    pub(crate) heartbeat: u64,
    /// Take the memory with each checkpoint: after a failover the guest goes on from there, and does not boot.
    #[arg(long)]
    pub(crate) memory: bool,
    /// The domain's configuration file, with which a failover starts it.
    #[arg(long, value_name = "FILE")]
    pub(crate) domain_config: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// The domain.
    pub(crate) domain: String,
}

impl ReplicationStart {
    /// How long is waited, and how often a checkpoint made.
    pub(crate) fn pace(&self) -> Pace {
        Pace {
            heartbeat_ms: self.heartbeat,
            interval_ms: self.interval,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct ReplicationKeep {
    /// Which start of replication.
    #[arg(long)]
    pub(crate) session: Uuid,
    /// The domain.
    pub(crate) domain: String,
}

#[derive(Debug, Args)]
pub(crate) struct ReplicationOf {
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// The domain.
    pub(crate) domain: String,
}

#[derive(Debug, Args)]
pub(crate) struct ReplicationStatus {
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// Print it again whenever it has changed, until ^C.
    #[arg(long)]
    pub(crate) watch: bool,
    /// The domain [default: all that this host has to do with].
    pub(crate) domain: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ReplicationStop {
    /// Remember nothing of it, also if the domain has failed over: it may be started here again.
    #[arg(long)]
    pub(crate) forget: bool,
    /// The domain.
    pub(crate) domain: String,
}

#[derive(Debug, Args)]
pub(crate) struct ReplicationFailover {
    /// Leave the start of the domain to the user.
    #[arg(long)]
    pub(crate) no_start: bool,
    /// Take the paths in its configuration as they are, of a kernel for instance.
    #[arg(long)]
    pub(crate) keep_paths: bool,
    /// Leave the memory, if the checkpoint has one: the guest boots.
    #[arg(long)]
    pub(crate) disks_only: bool,
    /// The domain.
    pub(crate) domain: String,
}

/// A host, with the port that is meant.
fn peer(text: &str) -> Result<String, String> {
    let bad = || format!("{text:?} is no HOST or HOST:PORT");
    let is_port = |port: &str| port.parse::<u16>().is_ok_and(|port| port != 0);
    let with_default = |host: &str| format!("{host}:{DEFAULT_PORT}");
    if let Some(rest) = text.strip_prefix('[') {
        let (host, port) = rest.split_once(']').ok_or_else(bad)?;
        return match port.strip_prefix(':') {
            None if port.is_empty() && !host.is_empty() => Ok(with_default(text)),
            Some(port) if is_port(port) && !host.is_empty() => Ok(text.to_owned()),
            _ => Err(bad()),
        };
    }
    match text.split_once(':') {
        None if !text.is_empty() => Ok(with_default(text)),
        Some((host, port)) if !host.is_empty() && is_port(port) => Ok(text.to_owned()),
        // An IPv6 address without brackets.
        Some((_, rest)) if rest.contains(':') => Ok(with_default(&format!("[{text}]"))),
        _ => Err(bad()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Arguments, Command};
    use clap::Parser;

    #[test]
    fn a_host_has_a_port_or_gets_the_usual_one() {
        for (typed, meant) in [
            ("b", "b:9433"),
            ("10.0.0.2:77", "10.0.0.2:77"),
            ("[::1]", "[::1]:9433"),
            ("[::1]:5", "[::1]:5"),
            ("fe80::1", "[fe80::1]:9433"),
        ] {
            assert_eq!(peer(typed).as_deref(), Ok(meant), "{typed}");
        }
        for bad in ["", ":5", "b:", "b:0", "b:65536", "[::1", "[]:5", "[::1]x"] {
            assert!(peer(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_a_usage_error() {
        let parse = |words: &[&str]| Arguments::try_parse_from(["xl-ext"].iter().chain(words));
        for bad in [
            &["replication-start", "g1"][..],
            &[
                "replication-start",
                "--secondary",
                "b",
                "--heartbeat",
                "0",
                "g1",
            ],
            &[
                "replication-start",
                "--secondary",
                "b",
                "--interval",
                "5",
                "g1",
            ],
            &["replication-pair", "--export", "-", "--import", "-"],
            &["replication-pair", "--import", "-", "name"],
            &["replication-failover"],
            &["replication-checkpoint"],
        ] {
            let error = parse(bad).expect_err("taken");
            assert_eq!(error.exit_code(), 2, "{bad:?}");
        }
        let words = ["replication-start", "--secondary", "b", "g1"];
        let Command::ReplicationStart(start) = parse(&words).unwrap().command else {
            panic!()
        };
        let (heartbeat_ms, interval_ms) = (5000, None);
        assert_eq!(
            start.pace(),
            Pace {
                heartbeat_ms,
                interval_ms
            }
        );
    }
}
