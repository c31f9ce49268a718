//! Crowds of MQTT clients: of those who confirm nothing, and of those who all come at once.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use argon2::password_hash::{PasswordHasher as _, SaltString};
use argon2::{Algorithm, Argon2, Params, Version};
use millrace_harness::clients::mqtt::{Hand, speak};
use millrace_harness::relay::fleet::Fleet;
use millrace_harness::servers::by_hand::{HandServer, Record};
use millrace_harness::system::process::wait_until;
use millrace_relay::codec::MqttSection;

const PATIENCE: Duration = Duration::from_mins(2);

fn fleet(name: &str, adjust: impl Fn(&mut MqttSection)) -> Result<Fleet> {
    let mut fleet = Fleet::new(name, 1, 1, |config| speak(&mut config.services[0], &adjust))?;
    fleet.start(0)?;
    Ok(fleet)
}

fn wait_for(fleet: &Fleet, counter: &str, count: u64) -> Result<()> {
    let mut known = 0;
    let waited = wait_until(PATIENCE, counter, || {
        known = fleet.relays[0].stats()?.count(counter)?;
        Ok(known == count)
    });
    waited.with_context(|| format!("{known} instead of {count}"))
}

/// Clients that have subscribed once and are away, by name; their `open` records.
fn away(
    fleet: &Fleet,
    server: &HandServer,
    names: impl Iterator<Item = String>,
) -> Result<HashMap<String, Record>> {
    let mut opens = HashMap::new();
    for name in names {
        let (mut hand, _) = Hand::connect(fleet.address(0), &name)?;
        hand.subscribe()?;
        opens.insert(name, None);
    }
    while opens.values().any(Option::is_none) {
        let open = server.next("an `open` record", |record| record.kind() == "open")?;
        let name = open.header("mqtt.client").to_owned();
        opens.insert(name, Some(open));
    }
    wait_for(fleet, "connections", 0)?;
    Ok(opens.into_iter().filter_map(|(name, open)| Some((name, open?))).collect())
}

#[test]
fn who_confirms_nothing_keeps_nobody_waiting_for_long() -> Result<()> {
    /// As many as have a place at a time.
    const DEAF: usize = 1024;
    const OTHERS: usize = 20;
    let fleet = fleet("mqtt-deaf", |_| ())?;
    let server = fleet.server(&[0])?;
    let names = (0..DEAF).map(|number| format!("deaf {number}"));
    let others: Vec<_> = (0..OTHERS).map(|number| format!("other {number}")).collect();
    let opens = away(&fleet, &server, names.clone().chain(others.iter().cloned()))?;
    for open in opens.values() {
        server.reply_soon(open, b"waited", &[("mqtt.topic", "a"), ("mqtt.qos", "1")])?;
    }
    wait_for(&fleet, "held_waiting", (DEAF + OTHERS) as u64)?;

    let connect = |name: &String| Hand::connect(fleet.address(0), name).map(|(hand, _)| hand);
    let mut deaf = names.map(|name| connect(&name)).collect::<Result<Vec<_>>>()?;
    // All of them have theirs, so that every place is taken, or was given up again.
    for hand in &mut deaf {
        let publish = hand.read()?;
        ensure!(publish[0] == 0x32 && publish.ends_with(b"waited"), "{publish:?}");
    }
    let begun = Instant::now();
    for mut hand in others.iter().map(connect).collect::<Result<Vec<_>>>()? {
        let publish = hand.read()?;
        ensure!(publish[0] == 0x32 && publish.ends_with(b"waited"), "{publish:?}");
        hand.send(&[0x40, 2, publish[5], publish[6]])?;
        hand.ping()?;
    }
    let took = begun.elapsed();
    ensure!(took < Duration::from_secs(30), "{took:?}");
    wait_for(&fleet, "held_waiting", DEAF as u64)?;
    // Their places are given up, and not what they have.
    wait_for(&fleet, "held_late", DEAF as u64)?;
    for hand in &mut deaf {
        hand.ping()?;
    }
    drop(deaf);
    wait_for(&fleet, "connections", 0)?;
    wait_for(&fleet, "held_late", 0)?;
    wait_for(&fleet, "held_waiting", DEAF as u64)
}

/// Users whose passwords are all the same and take some tens of milliseconds to check.
fn costly_users(file: &Path) -> Result<()> {
    let cost = Params::new(16 << 10, 3, 1, None).map_err(|error| anyhow::anyhow!("{error}"))?;
    let argon = Argon2::new(Algorithm::Argon2id, Version::V0x13, cost);
    let hash = SaltString::from_b64("c2FsdHNhbHQ")
        .and_then(|salt| Ok(argon.hash_password(b"secret", &salt)?.to_string()))
        .map_err(|error| anyhow::anyhow!("{error}"))?;
    Ok(std::fs::write(file, format!("anna:{hash}\n"))?)
}

const CREDENTIALS: Option<(&str, &str)> = Some(("anna", "secret"));

/// Comes until it may stay, and then again whenever the relay has gone. Each attempt is given up after a
/// second or two, which is much less than it takes to ask about everybody.
fn come_back(address: SocketAddr, number: u64, inside: &AtomicUsize, over: &AtomicU64) {
    let patience = Duration::from_millis(1000 + 10 * (number % 100));
    while over.load(Ordering::SeqCst) == 0 {
        let entered = Hand::greet(address, &format!("client {number}"), CREDENTIALS)
            .and_then(|hand| hand.set_patience(patience).and_then(|()| hand.connected()));
        let Ok((mut hand, _)) = entered else {
            // The relay is away, or has not answered; who is turned away comes at once.
            thread::sleep(Duration::from_millis(10));
            continue;
        };
        inside.fetch_add(1, Ordering::SeqCst);
        while over.load(Ordering::SeqCst) == 0 {
            let ended = hand.read().is_err_and(|error| {
                let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
                kind != Some(std::io::ErrorKind::WouldBlock)
            });
            if ended {
                break;
            }
        }
        inside.fetch_sub(1, Ordering::SeqCst);
    }
}

#[test]
fn a_crowd_whose_passwords_are_costly_gets_in_after_a_restart() -> Result<()> {
    const CLIENTS: usize = 150;
    let directory = std::env::temp_dir().join(format!("millrace-crowd-{}", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    let file = directory.join("passwords");
    costly_users(&file)?;
    let mut fleet = fleet("mqtt-crowd", |section| section.passwords = Some(file.clone()))?;
    let address = fleet.address(0);
    let (inside, over) = (AtomicUsize::new(0), AtomicU64::new(0));
    let all_in = || {
        let mut most = 0;
        let waited = wait_until(PATIENCE, "all to be inside", || {
            most = inside.load(Ordering::SeqCst);
            Ok(most == CLIENTS)
        });
        waited.with_context(|| format!("{most} are"))
    };
    let used = |fleet: &Fleet| -> Result<Duration> {
        let (user, system) = fleet.relays[0].stats()?.cpu_us()?;
        Ok(Duration::from_micros(user + system))
    };
    thread::scope(|scope| {
        for number in 0..CLIENTS as u64 {
            let (inside, over) = (&inside, &over);
            scope.spawn(move || come_back(address, number, inside, over));
        }
        let tested = (|| {
            all_in()?;
            fleet.relays[0].stop()?;
            wait_until(PATIENCE, "all to be outside", || Ok(inside.load(Ordering::SeqCst) == 0))?;
            fleet.start(0)?;
            let begun = (Instant::now(), used(&fleet)?);
            all_in()?;
            let cost = used(&fleet)?.saturating_sub(begun.1);
            println!("all were inside after {:?}, which cost {cost:?}", begun.0.elapsed());

            // Those who have gone are not asked about.
            let gone: Vec<_> = (0..CLIENTS)
                .map(|number| Hand::greet(address, &format!("gone {number}"), CREDENTIALS))
                .collect::<Result<_>>()?;
            let before = used(&fleet)?;
            drop(gone);
            wait_for(&fleet, "connections", CLIENTS as u64)?;
            Hand::greet(address, "late", CREDENTIALS)?.connected()?;
            let mut last = used(&fleet)?;
            wait_until(PATIENCE, "the relay to be idle", || {
                thread::sleep(Duration::from_millis(300));
                let former = std::mem::replace(&mut last, used(&fleet)?);
                Ok(last.saturating_sub(former) < Duration::from_millis(30))
            })?;
            let rest = last.saturating_sub(before);
            println!("those who had gone cost {rest:?}");
            ensure!(rest < cost / 3, "{rest:?}, and {cost:?} for all who came");
            let stats = fleet.relays[0].stats()?;
            ensure!(stats.count_by("connections_closed", "not_authorized")? == 0);
            Ok(())
        })();
        over.store(1, Ordering::SeqCst);
        tested
    })?;
    std::fs::remove_dir_all(&directory)?;
    Ok(())
}
