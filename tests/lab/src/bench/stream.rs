//! One job of QEMU's that pulls, timed by QEMU itself: by the events that it sends whenever the job's status changes.
//!
//! Whoever asks how far a job is takes time from it where dom0 has one slow CPU; whoever hears of it does not. The events
//! come to QEMU's second monitor, libxenstat's, which nobody else uses.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::time::Duration;

use crate::host::Lab;

/// Long enough for any pull on a loaded machine.
const LIMIT: Duration = Duration::from_secs(600);

/// Who has QEMU do it.
#[derive(Clone, Copy, Debug)]
pub(super) enum By<'a> {
    /// This command.
    Command(&'a str),
    /// We ourselves, by QMP, for this node.
    Hand(&'a str),
}

/// How long a job took; all in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Timed {
    /// From when it ran until all was copied.
    pub(super) copying: f64,
    /// From the beginning of the command until QEMU had no more to do.
    pub(super) whole: f64,
    /// From the beginning of the command until the job ran.
    pub(super) start: f64,
}

/// Has a disk pulled by the QEMU of domain `domid`, and waits for the end.
pub(super) fn run(lab: &Lab, domid: u32, dir: &str, by: By<'_>) -> Result<Timed> {
    let begin = match by {
        By::Command(command) => command.to_owned(),
        By::Hand(node) => format!(
            "echo '{{\"execute\":\"block-stream\",\"arguments\":{{\"job-id\":\"by-hand\",\"device\":\"{node}\"}}}}' >&3"
        ),
    };
    let said = lab.run_within(
        &format!(
            "sync; mkfifo {dir}/words {dir}/events || exit 1; \
             socat - UNIX-CONNECT:/var/run/xen/qmp-libxenstat-{domid} <{dir}/words >{dir}/events & \
             exec 3>{dir}/words 4<{dir}/events; rm {dir}/words {dir}/events; \
             echo '{{\"execute\":\"qmp_capabilities\"}}' >&3; read -r greeting <&4; read -r ready <&4; \
             echo began $(date +%s%N); {{ {begin}; }} >/dev/null || exit 1; \
             while read -r event <&4; do echo \"$event\"; \
             case $event in *'\"null\"'* | *'\"error\"'*) break ;; esac; done; exec 3>&-"
        ),
        LIMIT,
    )?;
    read(&said).with_context(|| format!("{by:?}: {said}"))
}

/// Reads when the command began, and the events.
fn read(said: &str) -> Result<Timed> {
    let mut began = None;
    let (mut ran, mut copied, mut ended) = (None, None, None);
    for line in said.lines() {
        if let Some(nanos) = line.strip_prefix("began ") {
            began = Some(nanos.parse::<f64>()? / 1e9);
            continue;
        }
        let event: Value = serde_json::from_str(line)?;
        ensure!(event.get("error").is_none(), "QEMU refuses it");
        ensure!(event["data"].get("error").is_none(), "it failed");
        if event["event"] != "JOB_STATUS_CHANGE" {
            continue;
        }
        let part = |name: &str| event["timestamp"][name].as_f64();
        let (seconds, micros) = part("seconds")
            .zip(part("microseconds"))
            .context("an event without a time")?;
        let at = match event["data"]["status"].as_str() {
            Some("running") => &mut ran,
            Some("pending") => &mut copied,
            Some("concluded") => &mut ended,
            _ => continue,
        };
        // A job that stood still runs again.
        at.get_or_insert(seconds + micros / 1e6);
    }
    let began = began.context("it was not begun")?;
    let ran = ran.context("it did not run")?;
    Ok(Timed {
        copying: copied.context("it did not copy all")? - ran,
        whole: ended.context("it did not end")? - began,
        start: ran - began,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(status: &str, seconds: u32) -> String {
        format!(
            r#"{{"timestamp": {{"seconds": {seconds}, "microseconds": 500000}}, "event": "JOB_STATUS_CHANGE", "data": {{"status": "{status}", "id": "a"}}}}"#
        )
    }

    #[test]
    fn times_are_those_of_the_events() {
        let lines = [
            "began 9000000000".to_owned(),
            event("created", 10),
            event("running", 11),
            event("paused", 12),
            event("running", 13),
            event("waiting", 14),
            event("pending", 15),
            event("concluded", 17),
            event("null", 18),
        ];
        let timed = Timed {
            copying: 4.0,
            whole: 8.5,
            start: 2.5,
        };
        assert_eq!(read(&lines.join("\n")).unwrap(), timed);
        assert!(read(&lines[..5].join("\n")).is_err());
        let refused = format!(
            "{}\n{}",
            lines[0], r#"{"error": {"class": "GenericError"}}"#
        );
        assert!(read(&refused).unwrap_err().to_string().contains("refuses"));
    }
}
