//! The program with the fault points, and commands that die at one.

use anyhow::{Result, ensure};
use std::time::Duration;

use crate::host::Lab;
use crate::product::Product;
use crate::step::Context;

/// See `make faults`.
const PROGRAM: &str = "xl-ext-faults";

/// Long enough for a save and a revert on a loaded machine.
const LIMIT: Duration = Duration::from_secs(300);

/// Copies it to dom0.
pub(super) fn install(context: &Context) -> Result<()> {
    let program = context.consumer(PROGRAM)?;
    let target = format!("/usr/local/sbin/{PROGRAM}");
    context.lab().put(&program, &target)
}

/// A command of it, and what it is told in its environment.
pub(super) fn command(product: &Product<'_>, told: &str, arguments: &str) -> String {
    let command = product.command(arguments);
    let command = command.replacen(" xl-ext ", &format!(" {PROGRAM} "), 1);
    format!("{told} {command}")
}

/// Gives a command that dies at a point.
pub(super) fn die_at(lab: &Lab, product: &Product<'_>, arguments: &str, point: &str) -> Result<()> {
    let command = command(product, &format!("XL_EXT_FAULT={point}"), arguments);
    let output = lab.try_run(&format!("{command}; echo status $?"), LIMIT)?;
    ensure!(
        output.stdout.ends_with("status 137\n"),
        "{arguments} was not killed at {point}: {}{}",
        output.stdout,
        output.stderr
    );
    Ok(())
}
