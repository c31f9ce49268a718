//! A server that is away while its clients send on: all of it arrives, in order, when it is back, as
//! fast as it wants.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use millrace_tests::fleet::{Fleet, SERVICE};
use millrace_tests::process::{Process, wait_until};
use millrace_tests::{kafka, paths};
use rustix::process::Signal;

const PATIENCE: Duration = Duration::from_mins(2);
const CLIENTS: usize = 10;
const MESSAGES: usize = 100_000;
/// Messages a second that the server wants when it is back.
const RATE: usize = 20_000;

fn server(fleet: &Fleet, more: &[&str]) -> Result<Process> {
    let mut command = Command::new(paths::example_server()?);
    command.args([&kafka::brokers(), "lease", fleet.prefix()]);
    command.args(["--id", "server", "--service", SERVICE, "--address", "192.0.2.1"]).args(more);
    let server = Process::spawn("the example server", &mut command)?;
    server.wait_line("lease:", PATIENCE)?;
    Ok(server)
}

/// What the relay says of the server.
fn is_state(fleet: &Fleet, state: &str) -> Result<bool> {
    Ok(fleet.relays[0].stats()?.0["registry"]["servers"][0]["state"] == state)
}

fn line(client: usize, number: usize) -> String {
    format!("client {client} message {number}\n")
}

#[test]
fn what_clients_sent_to_an_absent_server_arrives_in_order_at_its_own_pace() -> Result<()> {
    let mut fleet = Fleet::new("absence", 1, 0, |config| {
        config.kafka.uplink_partitions = 1;
        config.registry.lease_ms = 1500;
    })?;
    fleet.start(0)?;
    let first = server(&fleet, &[])?;
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
    let each = MESSAGES / CLIENTS;
    for (client, (stream, _)) in clients.iter_mut().enumerate() {
        let text: String = (0..each).map(|number| line(client, number)).collect();
        stream.write_all(text.as_bytes())?;
    }
    let all = (MESSAGES + CLIENTS) as u64;
    wait_until(PATIENCE, "everything to wait in the queue", || {
        Ok(fleet.relays[0].stats()?.count("messages_acknowledged")? == all)
    })?;
    ensure!(is_state(&fleet, "away")?, "it came back too early");

    let back = Instant::now();
    let _second = server(&fleet, &["--rate", &RATE.to_string()])?;
    for (client, (_, answers)) in clients.iter_mut().enumerate() {
        let mut number = 0;
        while number < each {
            let mut echo = String::new();
            answers.read_line(&mut echo)?;
            // What it had answered, and not committed, before it was killed comes again.
            if number == 0 && echo == "before\n" {
                continue;
            }
            ensure!(echo == line(client, number), "message {number} of {client} is {echo}");
            number += 1;
        }
    }
    let took = back.elapsed();
    println!("{MESSAGES} messages in {took:.1?} at {RATE} a second");
    let least = Duration::from_secs((MESSAGES / RATE) as u64).mul_f64(0.9);
    ensure!(took >= least, "the server has read faster than it wanted: {took:?}");
    Ok(())
}
