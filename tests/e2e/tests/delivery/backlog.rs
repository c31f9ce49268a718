//! Clients that read slower than their servers write: what the relay does not keep in memory stays in
//! Kafka, and comes in order when they read on.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use millrace_harness::clients::tcp::Client;
use millrace_harness::relay::dead_letters::Letters;
use millrace_harness::relay::direct::Direct;
use millrace_harness::servers::by_hand::{HandServer, Record};
use millrace_harness::system::process::{run, wait_until};
use millrace_relay::config::Config;
use millrace_relay::model::IdentityKind;

const PATIENCE: Duration = Duration::from_mins(1);
/// More than the kernel takes for a connection, and than the relay keeps in memory.
const REPLIES: usize = 750;
const REPLY_BYTES: usize = 40_000;

fn relay(name: &str, adjust: impl FnOnce(&mut Config)) -> Result<(Direct, HandServer)> {
    let mut relay = Direct::build(name, |config| {
        config.services[0].max_message_bytes = 1 << 20;
        adjust(config);
    })?;
    relay.instance.start()?;
    let server = HandServer::on(&relay.brokers, relay.topics.prefix(), &[0])?;
    Ok((relay, server))
}

fn connect(relay: &Direct, server: &HandServer) -> Result<(Client, Record)> {
    let client = relay.connect()?;
    let address = client.address()?.to_string();
    let open = server.next("open", |record| record.header("client") == address)?;
    Ok((client, open))
}

fn reply(number: usize) -> Vec<u8> {
    let mut reply = format!("reply {number} ").into_bytes();
    reply.resize(REPLY_BYTES, b'.');
    reply
}

fn wait_counted(relay: &Direct, name: &str, wanted: impl Fn(u64) -> bool) -> Result<()> {
    wait_until(PATIENCE, name, || Ok(wanted(relay.instance.stats()?.count(name)?)))
        .with_context(|| format!("{:?}", relay.instance.stats()))
}

fn check_ledger(relay: &Direct) -> Result<()> {
    let ledger = run("relay ledger", &mut relay.instance.command("ledger", false), PATIENCE)?;
    ensure!(ledger.status.success(), "{}", ledger.stdout);
    Ok(())
}

/// Replies that are not sent become dead letters, each once; `sent` were.
fn check_letters(relay: &Direct, reasons: &[&str], sent: usize) -> Result<()> {
    let letters = Letters::read(relay, REPLIES - sent)?;
    for letter in &letters {
        ensure!(reasons.contains(&&*letter.reason()), "{letter:?}");
    }
    let mut offsets = letters
        .iter()
        .map(|letter| Ok(letter.text("millrace.offset").parse()?))
        .collect::<Result<Vec<usize>>>()?;
    offsets.sort_unstable();
    ensure!(offsets.iter().copied().eq(sent..REPLIES), "{offsets:?} after {sent}");
    Ok(())
}

#[test]
fn who_reads_late_gets_everything_in_order_and_stops_nobody() -> Result<()> {
    let (relay, server) = relay("backlog", |_| {})?;
    let (mut honest, to_honest) = connect(&relay, &server)?;
    let mut slow = [connect(&relay, &server)?, connect(&relay, &server)?];
    for number in 0..REPLIES {
        for (_, open) in &slow {
            server.reply_soon(open, &reply(number), &[])?;
        }
    }
    let all = 2 * REPLIES as u64;
    wait_counted(&relay, "replies_received", |count| count == all)?;
    // The worker has said so of the last ones a moment later.
    wait_counted(&relay, "replies_backlog", |count| count > REPLIES as u64)?;
    let kept = relay.instance.stats()?.count("connection_bytes")?;
    let most = relay.instance.config.relay.reply_limit_bytes + REPLY_BYTES + 4;
    ensure!(kept <= 2 * most as u64, "{kept} bytes are kept");
    server.reply(&to_honest, b"beside them")?;
    ensure!(honest.receive()? == b"beside them");
    check_ledger(&relay)?;

    for number in 0..REPLIES {
        for (client, _) in &mut slow {
            let came = client.receive().with_context(|| format!("reply {number}"))?;
            ensure!(came == reply(number), "reply {number} is another: {:?}", &came[..12]);
        }
    }
    wait_counted(&relay, "replies_backlog", |count| count == 0)?;
    wait_counted(&relay, "replies_sent", |count| count == all + 1)?;
    wait_until(PATIENCE, "the downlink's offset to pass all", || {
        Ok(relay.committed_downlink()? == Some(i64::try_from(all + 1)?))
    })?;
    // They are like all others again.
    for (client, open) in &mut slow {
        server.reply(open, b"after")?;
        ensure!(client.receive()? == b"after");
    }
    let again = relay.instance.stats()?.count("replies_postponed")?;
    ensure!(again < all, "{again} of {all} were postponed");
    check_ledger(&relay)
}

#[test]
fn who_never_reads_is_ended_and_leaves_dead_letters() -> Result<()> {
    let (relay, server) = relay("deaf", |config| config.relay.reply_timeout_ms = 1500)?;
    let (mut client, open) = connect(&relay, &server)?;
    server.reply_many(&open, (0..REPLIES).map(reply))?;
    let close = server.next("close", |record| record.kind() == "close")?;
    ensure!(close.header("reason") == "slow_reader", "{close:?}");
    wait_counted(&relay, "replies_backlog", |count| count == 0)?;
    let stats = relay.instance.stats()?;
    let (sent, postponed) = (stats.count("replies_sent")?, stats.count("replies_postponed")?);
    ensure!(postponed > 0 && sent < REPLIES as u64, "{:?}", stats.0);
    let reasons = ["connection_lost", "closing", "stale"];
    check_letters(&relay, &reasons, usize::try_from(sent)?)?;
    check_ledger(&relay)?;
    client.wait_end()
}

#[test]
fn no_more_waits_for_a_client_than_may() -> Result<()> {
    let (relay, server) = relay("bound", |config| config.relay.reply_backlog_bytes = 5 << 20)?;
    let (mut client, open) = connect(&relay, &server)?;
    server.reply_many(&open, (0..REPLIES).map(reply))?;
    let close = server.next("close", |record| record.kind() == "close")?;
    ensure!(close.header("reason") == "slow_reader", "{close:?}");
    wait_counted(&relay, "replies_received", |count| count == REPLIES as u64)?;
    wait_counted(&relay, "replies_backlog", |count| count == 0)?;
    let sent = relay.instance.stats()?.count("replies_sent")?;
    check_letters(&relay, &["connection_lost", "closing", "stale"], usize::try_from(sent)?)?;
    check_ledger(&relay)?;
    client.wait_end()
}

#[test]
fn an_order_to_close_that_its_client_does_not_wait_for_is_kept_nowhere() -> Result<()> {
    let (relay, server) =
        relay("order", |config| config.services[0].identity = IdentityKind::Address)?;
    let (client, open) = connect(&relay, &server)?;
    server.reply_many(&open, (0..REPLIES).map(reply))?;
    server.reply_with(&open, None, &[("close", b"1")])?;
    wait_counted(&relay, "replies_received", |count| count == REPLIES as u64 + 1)?;
    wait_counted(&relay, "replies_backlog", |count| count > 1)?;
    ensure!(relay.instance.stats()?.count("replies_orders")? == 0, "it waits, behind the replies");
    drop(client);
    wait_counted(&relay, "replies_backlog", |count| count == 0)?;
    let sent = usize::try_from(relay.instance.stats()?.count("replies_sent")?)?;
    wait_counted(&relay, "replies_held", |count| count == (REPLIES - sent) as u64)?;
    wait_counted(&relay, "replies_orders", |count| count == 1)?;
    check_ledger(&relay)?;
    ensure!(relay.record_count("held")? == (REPLIES - sent) as u64, "the order is not held");
    ensure!(relay.record_count("deadletter")? == 0, "nor is it a dead letter");
    // It gets what it had not got, nothing between that and what comes then, and is not closed.
    let (mut client, open) = connect(&relay, &server)?;
    for number in sent..REPLIES {
        let came = client.receive().with_context(|| format!("reply {number}"))?;
        ensure!(came == reply(number), "reply {number} is another");
    }
    server.reply(&open, b"after")?;
    ensure!(client.receive()? == b"after");
    check_ledger(&relay)
}

#[test]
fn a_relay_that_is_killed_loses_nothing_of_what_waits_and_repeats_nothing_else() -> Result<()> {
    let (mut relay, server) = relay("killed", |_| {})?;
    let (mut client, open) = connect(&relay, &server)?;
    let (mut honest, to_honest) = connect(&relay, &server)?;
    server.reply_many(&open, (0..REPLIES).map(reply))?;
    server.reply(&to_honest, b"beside it")?;
    ensure!(honest.receive()? == b"beside it");
    // So far that everything in memory has been in Kafka for its client.
    let mut came = 0;
    while came < REPLIES / 2 {
        ensure!(client.receive()? == reply(came), "reply {came} is another");
        came += 1;
    }
    let all = i64::try_from(REPLIES)? + 1;
    wait_until(PATIENCE, "the downlink's offset to pass all", || {
        Ok(relay.committed_downlink()? == Some(all))
    })?;
    wait_until(PATIENCE, "the note beside it to leave out what came", || {
        Ok(usize::try_from(relay.postponed_downlink()?)? <= REPLIES - came)
    })?;
    check_ledger(&relay)?;
    relay.instance.kill()?;
    while let Ok(message) = client.receive() {
        ensure!(message == reply(came), "reply {came} is another");
        came += 1;
    }
    relay.instance.start()?;
    let stats = relay.instance.stats()?;
    let carried = usize::try_from(stats.count("downlink_carried")?)?;
    ensure!(carried >= REPLIES - came, "{carried} of {REPLIES} wait, and {came} came");
    ensure!(carried < REPLIES / 2, "{carried} wait, more than the client has not read");
    check_letters(&relay, &["former_run"], REPLIES - carried)?;
    wait_counted(&relay, "replies_received", |count| count == carried as u64)?;
    check_ledger(&relay)?;
    // The next run has nothing to see to.
    relay.instance.stop()?;
    relay.instance.start()?;
    let stats = relay.instance.stats()?;
    ensure!(stats.count("replies_received")? == 0, "{:?}", stats.0);
    Ok(())
}
