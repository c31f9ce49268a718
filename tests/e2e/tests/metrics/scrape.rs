//! What a scrape says, against what `relay status` says.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use millrace_harness::net::free_port;
use millrace_harness::relay::direct::Direct;
use millrace_harness::servers::by_hand::HandServer;
use millrace_harness::system::process::{run_ok, wait_until};
use millrace_relay::config::Listen;

use crate::exposition::{OPEN_METRICS, scrape};

const PATIENCE: Duration = Duration::from_secs(30);
const CLIENTS: u64 = 4;
const MESSAGES: u64 = 5;

/// Counters of `relay status --json`, and what they are called for Prometheus.
const SAME: [(&str, &str); 13] = [
    ("/connections", "millrace_connections{service=\"echo\"}"),
    ("/accepted", "millrace_connections_accepted_total{service=\"echo\"}"),
    (
        "/connections_closed/end_of_stream",
        "millrace_connections_closed_total{reason=\"end_of_stream\"}",
    ),
    ("/messages_received", "millrace_messages_received_total{service=\"echo\"}"),
    ("/received_bytes", "millrace_received_bytes_total{service=\"echo\"}"),
    ("/messages_acknowledged", "millrace_messages_acknowledged_total"),
    ("/messages_acknowledged", "millrace_message_acknowledge_seconds_count"),
    ("/replies_received", "millrace_replies_received_total"),
    ("/replies_sent", "millrace_replies_sent_total{service=\"echo\"}"),
    ("/replies_sent", "millrace_reply_send_seconds_count"),
    ("/accepted", "millrace_allot_seconds_count"),
    ("/registry/coordinator/term", "millrace_coordinator_term"),
    ("/associations/echo/server", "millrace_server_clients{service=\"echo\",server=\"server\"}"),
];

#[test]
fn a_scrape_says_in_both_formats_what_the_status_says() -> Result<()> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
    let mut relay = Direct::build("metrics", |config| {
        config.relay.workers = 2;
        config.metrics.listen = Some(Listen(address));
    })?;
    relay.instance.start()?;
    let server = HandServer::on(&relay.brokers, relay.topics.prefix(), &[0])?;
    let mut clients = Vec::new();
    for client in 0..CLIENTS {
        let mut connection = relay.connect()?;
        for message in 0..MESSAGES {
            let text = format!("{client} {message}");
            connection.send(text.as_bytes())?;
            let record = server.next("the message", |one| one.value == text.as_bytes())?;
            server.reply(&record, b"yes")?;
            ensure!(connection.receive()? == b"yes");
        }
        clients.push(connection);
    }
    clients.pop().context("some clients")?.end()?;
    // When nothing moves any more, all that is said of it agrees.
    wait_until(PATIENCE, "the relay to be still", || {
        let stats = relay.instance.stats()?;
        Ok(stats.count("messages_in_flight")? == 0
            && stats.count("replies_sent")? == CLIENTS * MESSAGES
            && stats.count_by("connections_closed", "end_of_stream")? == 1
            && stats.value()["registry"]["coordinator"]["term"].is_i64())
    })?;
    let status = relay.instance.status()?["relay"].clone();
    let config_file = relay.instance.config_file();
    let sum = run_ok("sha1sum", Command::new("sha1sum").arg(config_file), PATIENCE)?;
    let sum = sum.stdout.split_whitespace().next().context("a sum")?.to_owned();
    for accept in [OPEN_METRICS, "text/plain", "*/*"] {
        let samples = scrape(address, accept)?;
        let sample = |name: &str| {
            samples.get(name).copied().with_context(|| format!("no {name} in {samples:#?}"))
        };
        for (pointer, name) in SAME {
            let told = status.pointer(pointer).and_then(serde_json::Value::as_f64);
            let told = told.with_context(|| format!("no {pointer} in {status}"))?;
            ensure!((sample(name)? - told).abs() < 0.5, "{name} {} {told}", sample(name)?);
        }
        let is = |name: &str, value: f64| anyhow::Ok((sample(name)? - value).abs() < 0.5);
        let none = "millrace_connections_closed_total{reason=\"slow_reader\"}";
        ensure!(is(none, 0.0)?, "what has not happened is there");
        ensure!(is(&format!("millrace_config_info{{sha1=\"{sum}\"}}"), 1.0)?);
        ensure!(sample("millrace_message_acknowledge_seconds_sum")? > 0.0);
        ensure!(is("millrace_workers", 2.0)?);
        ensure!(sample("millrace_thread_busy_seconds_total{thread=\"worker-1\"}")? > 0.0);
        ensure!(sample("millrace_sent_bytes_total{service=\"echo\"}")? > 3.0);
    }
    relay.instance.stop().map(drop)
}
