//! `relay ledger`: whether everything is accounted for.

use anyhow::ensure;
use millrace_relay::config::Config;
use millrace_relay::control;

use super::show;

/// Prints the ledger; an error if it does not balance.
pub(super) fn run(config: &Config, json: bool) -> anyhow::Result<()> {
    let ledger = control::ledger(config)?;
    // Whoever reads no more of it still gets the exit code.
    let shown = show(&ledger, json);
    ensure!(ledger.balanced, "the ledger does not balance: {}", ledger.problems.join("; "));
    shown
}
