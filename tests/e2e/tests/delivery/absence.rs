//! A server that is away while its clients send on: all of it arrives, in order, when it is back, as
//! fast as it wants.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use millrace_harness::relay::fleet::Fleet;
use millrace_harness::system::process::wait_until;
use rustix::process::Signal;

const PATIENCE: Duration = Duration::from_mins(2);
const CLIENTS: usize = 10;
const MESSAGES: usize = 100_000;
/// Messages a second that the server wants when it is back.
const RATE: usize = 20_000;
/// So long it has for all of them.
const IDEAL: Duration = Duration::from_secs((MESSAGES / RATE) as u64);
/// In which the clients send them.
const PARTS: usize = 20;

/// What the relay says of the server.
fn is_state(fleet: &Fleet, state: &str) -> Result<bool> {
    Ok(fleet.relays[0].stats()?.0["registry"]["servers"][0]["state"] == state)
}

fn line(client: usize, number: usize) -> String {
    format!("client {client} message {number}\n")
}

#[test]
fn what_clients_sent_to_an_absent_server_arrives_in_order_at_its_own_pace() -> Result<()> {
    let took = absence(Duration::ZERO)?;
    println!("{MESSAGES} messages in {took:.1?} at {RATE} a second");
    Ok(())
}

#[test]
#[ignore = "takes 40 s, and wants a machine that does nothing else"]
fn a_server_that_is_away_for_30_seconds_by_the_clock_keeps_up_with_its_own_pace() -> Result<()> {
    let took = absence(Duration::from_secs(30))?;
    println!("{MESSAGES} messages in {took:.1?} at {RATE} a second");
    let most = IDEAL.mul_f64(1.15);
    ensure!(took <= most, "the server has read more slowly than it wanted: {took:?}");
    Ok(())
}

/// The server is away until everything waits for it, and for `at_least`; meanwhile its clients send
/// all the time. How long it has for the messages then, from the first echo on.
fn absence(at_least: Duration) -> Result<Duration> {
    let mut fleet = Fleet::new("absence", 1, 0, |config| {
        config.kafka.uplink_partitions = 1;
        config.registry.lease_ms = 1500;
    })?;
    fleet.start(0)?;
    let first = fleet.lease("server", "192.0.2.1", &[])?;
    wait_until(PATIENCE, "the server to be live", || is_state(&fleet, "live"))?;
    let mut clients = (0..CLIENTS)
        .map(|_| {
            let stream = TcpStream::connect(fleet.address(0))?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            Ok((stream.try_clone()?, BufReader::new(stream)))
        })
        .collect::<Result<Vec<_>>>()?;
    for (stream, answers) in &mut clients {
        stream.write_all(b"before\n")?;
        let mut echo = String::new();
        answers.read_line(&mut echo)?;
        ensure!(echo == "before\n");
    }

    first.signal(Signal::KILL)?;
    first.wait(PATIENCE)?;
    wait_until(PATIENCE, "the server to be away", || is_state(&fleet, "away"))?;
    let (each, away) = (MESSAGES / CLIENTS, Instant::now());
    for part in 0..PARTS {
        for (client, (stream, _)) in clients.iter_mut().enumerate() {
            let numbers = part * each / PARTS..(part + 1) * each / PARTS;
            let text: String = numbers.map(|number| line(client, number)).collect();
            stream.write_all(text.as_bytes())?;
        }
        let until = at_least * u32::try_from(part + 1)? / u32::try_from(PARTS)?;
        std::thread::sleep(until.saturating_sub(away.elapsed()));
    }
    let all = (MESSAGES + CLIENTS) as u64;
    wait_until(PATIENCE, "everything to wait in the queue", || {
        Ok(fleet.relays[0].stats()?.count("messages_acknowledged")? == all)
    })?;
    ensure!(is_state(&fleet, "away")?, "it came back too early");

    let _second = fleet.lease("server", "192.0.2.1", &["--rate", &RATE.to_string()])?;
    // All of them read at once: who leaves its replies unread holds back the others' as well.
    let first = &OnceLock::new();
    std::thread::scope(|scope| -> Result<()> {
        let readers: Vec<_> = (0..)
            .zip(&mut clients)
            .map(|(client, (_, answers))| scope.spawn(move || read(client, each, answers, first)))
            .collect();
        readers.into_iter().try_for_each(|reader| reader.join().expect("no panic"))
    })?;
    let took = first.get().map_or(Duration::ZERO, Instant::elapsed);
    ensure!(took >= IDEAL.mul_f64(0.9), "the server has read faster than it wanted: {took:?}");
    Ok(took)
}

/// Reads all echoes of a client, in order.
fn read(
    client: usize,
    each: usize,
    answers: &mut BufReader<TcpStream>,
    first: &OnceLock<Instant>,
) -> Result<()> {
    let mut number = 0;
    while number < each {
        let mut echo = String::new();
        answers.read_line(&mut echo)?;
        first.get_or_init(Instant::now);
        // What it had answered, and not committed, before it was killed comes again.
        if number == 0 && echo == "before\n" {
            continue;
        }
        ensure!(echo == line(client, number), "message {number} of {client} is {echo}");
        number += 1;
    }
    Ok(())
}
