//! `relay trace`: a client's packets, until enough of them or a signal.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use millrace_relay::gateway::{self, TraceEnd, TraceOptions, TraceSummary, Traced};
use millrace_relay::logging;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use super::{ConfigFile, step};

#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// Address of the client.
    #[arg(value_name = "ADDRESS")]
    client: IpAddr,
    #[command(flatten)]
    config: ConfigFile,
    /// End after N seconds.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    seconds: Option<u64>,
    /// End after N packets.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Maximum packets per second that each processor reports; the end says how many more there were.
    #[arg(long, value_name = "N", default_value_t = 1000,
        value_parser = clap::value_parser!(u32).range(1..=100_000))]
    per_second: u32,
    /// Print one JSON object per line, the last one a summary.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Summary {
    summary: TraceSummary,
}

/// Traces until enough is told, nobody reads on, or SIGINT, SIGTERM or SIGHUP comes.
pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let config = arguments.config.read()?;
    let options = TraceOptions {
        client: arguments.client,
        per_second: arguments.per_second,
        count: arguments.count,
        duration: arguments.seconds.map(Duration::from_secs),
    };
    let ended = on_signal()?;
    let mut known = BTreeSet::new();
    let mut tell = |packet: &Traced| {
        let mut out = std::io::stdout().lock();
        if arguments.json {
            let line = serde_json::to_string(packet).expect("strings and numbers");
            return writeln!(out, "{line}");
        }
        writeln!(out, "{packet}")?;
        if known.insert(packet.verdict) {
            writeln!(out, "                {} means: {}", packet.verdict, packet.meaning)?;
        }
        out.flush()
    };
    let ended = || ended.load(Relaxed);
    let summary = gateway::trace(&config, &options, &mut step, &ended, &mut tell)?;
    let TraceSummary { end, shown, withheld, lost } = summary;
    if arguments.json {
        // Whoever closed the pipe does not want it.
        let line = serde_json::to_string(&Summary { summary })?;
        let _ = writeln!(std::io::stdout(), "{line}");
    }
    logging::say(&format!(
        "{shown} packet(s) shown, {withheld} withheld by the limit, {lost} lost"
    ));
    if end == TraceEnd::Replaced {
        logging::say("the programs were replaced or the instance unloaded: the trace has ended");
    }
    Ok(())
}

/// Is set when a signal asks to end. The default of these signals would leave the traced programs
/// in their place.
fn on_signal() -> anyhow::Result<Arc<AtomicBool>> {
    let ended = Arc::new(AtomicBool::new(false));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .context("wait for signals")?;
    let mut signals = {
        let _inside = runtime.enter();
        [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()]
            .into_iter()
            .map(signal)
            .collect::<std::io::Result<Vec<_>>>()
            .context("wait for signals")?
    };
    let set = Arc::clone(&ended);
    std::thread::spawn(move || {
        runtime.block_on(async {
            let [interrupt, terminate, hangup] = signals.as_mut_slice() else { return };
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
        });
        set.store(true, Relaxed);
    });
    Ok(ended)
}
