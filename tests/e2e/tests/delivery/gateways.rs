//! Two relays: both start at the same moment, ten times; and one of them, which coordinates, is paused
//! and comes back with leases that are over.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use millrace_harness::clients::crowd::Crowd;
use millrace_harness::clients::tcp::Client;
use millrace_harness::clients::wire::lines;
use millrace_harness::kafka;
use millrace_harness::relay::dead_letters::Letters;
use millrace_harness::relay::fleet::Fleet;
use millrace_harness::servers::by_hand::all_records;
use millrace_harness::system::process::{run, run_ok, wait_until};
use millrace_relay::config::RegistrySection;
use millrace_relay::registry::record::RelayState;
use millrace_relay::registry::{CoordinatorStatus, RegistryStatus};
use millrace_relay::route::ServerState;
use rustix::process::Signal;

const PATIENCE: Duration = Duration::from_mins(1);
const RELAYS: [usize; 2] = [0, 1];

fn client(fleet: &Fleet, relay: usize) -> Result<Client> {
    let address = fleet.address(relay);
    Client::connect_from(address.ip(), address, lines())
}

/// What can be compared: ages and counts are each relay's own.
fn facts(of: &RegistryStatus) -> impl PartialEq + std::fmt::Debug + use<> {
    let servers: Vec<_> = of
        .servers
        .iter()
        .map(|server| (server.id.clone(), server.state, server.partition, server.epoch))
        .collect();
    let relays: Vec<_> = of.relays.iter().map(|of| (of.relay, of.incarnation, of.state)).collect();
    (of.coordinator, servers, relays)
}

/// Waits until both relays live, say the same of the registry, and know of so many clients; of the
/// same number at each server. Who coordinates.
fn wait_agreed(fleet: &Fleet, clients: u64) -> Result<CoordinatorStatus> {
    let mut seen = Vec::new();
    wait_until(PATIENCE, "the relays to agree", || {
        let both = RELAYS.map(|relay| Ok((fleet.registry(relay)?, fleet.associations(relay)?)));
        let both = both.into_iter().collect::<Result<Vec<_>>>()?;
        let live = |of: &RegistryStatus| {
            of.relays.len() == 2 && of.relays.iter().all(|of| of.state == RelayState::Live)
        };
        let agreed = both.iter().all(|(registry, counts)| {
            live(registry)
                && registry.coordinator.is_some()
                && counts.iter().sum::<u64>() == clients
        }) && facts(&both[0].0) == facts(&both[1].0)
            && both[0].1 == both[1].1;
        seen = both;
        Ok(agreed)
    })
    .with_context(|| format!("{seen:?}"))?;
    seen[0].0.coordinator.context("just seen")
}

#[test]
fn two_that_start_at_once_agree_and_both_serve() -> Result<()> {
    for round in 0..10 {
        let mut fleet = Fleet::new("at-once", 2, 0, |config| {
            config.relay.workers = 1;
            config.kafka.uplink_partitions = 2;
            config.registry.lease_ms = 3000;
        })?;
        let addresses = RELAYS.map(|relay| fleet.address(relay).ip().to_string());
        std::thread::scope(|scope| {
            let started: Vec<_> = (fleet.relays.iter_mut().zip(&addresses))
                .map(|(relay, address)| scope.spawn(|| relay.start_at(address)))
                .collect();
            started.into_iter().try_for_each(|started| started.join().expect("no panic"))
        })
        .with_context(|| format!("round {round}"))?;
        let _server = fleet.lease("server", "192.0.2.1", &[])?;
        wait_until(PATIENCE, "both to know of the server", || {
            let live = |relay| -> Result<bool> {
                let servers = fleet.registry(relay)?.servers;
                let is_live = servers.first().is_some_and(|of| of.state == ServerState::Live);
                // The allotment is told a moment later.
                Ok(is_live && fleet.associations(relay).is_ok_and(|of| of.len() == 1))
            };
            Ok(live(0)? && live(1)?)
        })?;
        let mut clients =
            RELAYS.map(|relay| client(&fleet, relay)).into_iter().collect::<Result<Vec<_>>>()?;
        for client in &mut clients {
            client.expect_echo(b"through both").with_context(|| format!("round {round}"))?;
        }
        let coordinator = wait_agreed(&fleet, 2).with_context(|| format!("round {round}"))?;
        println!("round {round}: {coordinator:?}");
        let refused: u64 = RELAYS
            .iter()
            .map(|relay| Ok(fleet.registry(*relay)?.records_refused.values().sum::<u64>()))
            .sum::<Result<u64>>()?;
        ensure!(refused == 0, "round {round}: {refused} records of the registry were refused");
    }
    Ok(())
}

/// What each client sent in the pause is in the uplink once, for a server that reads it, and was
/// answered; or it is a dead letter, and the client's connection has ended.
fn check_each(fleet: &Fleet, clients: &mut [Client], refused: usize) -> Result<()> {
    let records = all_records(&kafka::brokers(), fleet.prefix(), 2)?;
    let mut letters = Letters::of(&fleet.relays[0].config.kafka, refused)?;
    for (number, client) in clients.iter_mut().enumerate() {
        let text = format!("paused {number}");
        let found: Vec<_> =
            records.iter().filter(|record| record.value == text.as_bytes()).collect();
        if found.is_empty() {
            let letter = letters.iter().position(|letter| letter.value == text.as_bytes());
            let letter = letters.swap_remove(letter.with_context(|| format!("`{text}` is lost"))?);
            ensure!(letter.reason() == "lease_over", "{letter:?}");
            ensure!(letter.text("server") == "a", "{letter:?}");
            client.wait_end()?;
            continue;
        }
        ensure!(found.len() == 1, "`{text}` is in the uplink {} times", found.len());
        ensure!(found[0].header("server") != "a", "nobody reads {:?}", found[0]);
        ensure!(client.receive()? == text.as_bytes(), "another echo than `{text}`");
        client.expect_echo(b"after").with_context(|| format!("client {number}"))?;
    }
    ensure!(letters.is_empty(), "{letters:?}");
    println!("{refused} of {} were for the server that was gone", clients.len());
    Ok(())
}

/// The coordinator stands still for `pause`. Meanwhile one of its clients' servers is taken away, and
/// its partition given to another.
fn pause_the_coordinator(registry: &RegistrySection, pause: Duration) -> Result<()> {
    const CLIENTS: usize = 6;
    let mut fleet = Fleet::new("paused", 2, 0, |config| {
        config.relay.workers = 1;
        config.kafka.uplink_partitions = 2;
        config.registry = registry.clone();
    })?;
    RELAYS.iter().try_for_each(|relay| fleet.start(*relay))?;
    let a = fleet.lease("a", "192.0.2.1", &[])?;
    let _b = fleet.lease("b", "192.0.2.2", &[])?;
    wait_until(PATIENCE, "both relays to know of both servers", || {
        Ok(fleet.registry(0)?.servers.len() == 2 && fleet.registry(1)?.servers.len() == 2)
    })?;
    let first = usize::from(wait_agreed(&fleet, 0)?.relay);
    let second = 1 - first;
    let mut waiting = (0..CLIENTS).map(|_| client(&fleet, first)).collect::<Result<Vec<_>>>()?;
    for client in &mut waiting {
        client.expect_echo(b"before")?;
    }
    wait_agreed(&fleet, CLIENTS as u64)?;

    fleet.relays[first].signal(Signal::STOP)?;
    let paused = Instant::now();
    for (number, client) in waiting.iter_mut().enumerate() {
        client.send(format!("paused {number}").as_bytes())?;
    }
    wait_until(PATIENCE, "the other relay to coordinate, and the paused one to be gone", || {
        let status = fleet.registry(second)?;
        Ok(status.coordinator.is_some_and(|of| usize::from(of.relay) == second)
            && status.relays[first].state == RelayState::Gone)
    })?;
    a.signal(Signal::KILL)?;
    a.wait(PATIENCE)?;
    run_ok("relay servers", &mut fleet.servers_command(&["forget", "a"]), PATIENCE)?;
    let c = fleet.lease("c", "192.0.2.3", &[])?;
    let mut crowd = Crowd::start(&[fleet.address(second); 4], Duration::from_millis(100))?;
    while paused.elapsed() < pause {
        crowd.wait_echoed(4)?;
    }
    fleet.relays[first].signal(Signal::CONT)?;
    let resumed = Instant::now();

    // Of what was sent in the pause, some was for the server that is gone.
    let sent = 2 * CLIENTS as u64;
    let mut refused = 0;
    wait_until(PATIENCE, "what was sent in the pause to be acknowledged or refused", || {
        let stats = fleet.relays[first].stats()?;
        refused = stats.count_by("messages_refused", "lease_over")?;
        let acknowledged = stats.count("messages_acknowledged")?;
        Ok(stats.count("messages_received")? == sent && acknowledged + refused == sent)
    })?;
    // The connections of those are closed, and the other clients of that server go on at others.
    wait_until(PATIENCE, "no client to be at the server that is gone", || {
        Ok(fleet.associations(first)?[0] == 0)
    })?;
    let coordinator = wait_agreed(&fleet, CLIENTS as u64 - refused + 4)?;
    println!("they agree {:.1?} after a pause of {:.1?}", resumed.elapsed(), resumed - paused);
    let status = fleet.registry(first)?;
    let of = |id: &str| status.servers.iter().find(|of| of.id == id);
    let (b, c_status) = (of("b").context("no b")?, of("c").context("no c")?);
    ensure!((b.state, b.epoch) == (ServerState::Live, 1), "{b:?}");
    ensure!((c_status.state, c_status.epoch) == (ServerState::Live, 2), "{c_status:?}");
    ensure!(usize::from(coordinator.relay) == second, "{coordinator:?}");
    crowd.wait_echoed(20)?;
    crowd.stop()?;
    check_each(&fleet, &mut waiting, usize::try_from(refused)?)?;
    drop(c);
    for relay in RELAYS {
        let mut command = fleet.relays[relay].command("ledger", false);
        let ledger = run("relay ledger", &mut command, PATIENCE)?;
        ensure!(ledger.status.success(), "{}", ledger.stdout);
    }
    Ok(())
}

#[test]
fn one_that_is_paused_for_six_timeouts_comes_back_with_leases_that_are_over() -> Result<()> {
    // A fifth of the defaults' time, but for the broker's least session.
    let registry =
        RegistrySection { lease_ms: 3000, relay_timeout_ms: 2000, ..RegistrySection::default() };
    pause_the_coordinator(&registry, Duration::from_secs(12))
}

#[test]
#[ignore = "takes more than a minute: the same with the defaults"]
fn one_that_is_paused_for_a_minute_comes_back_with_leases_that_are_over() -> Result<()> {
    pause_the_coordinator(&RegistrySection::default(), Duration::from_mins(1))
}
