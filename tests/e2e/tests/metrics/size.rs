//! What a scrape costs with many connections and services.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use millrace_harness::net::free_port;
use millrace_harness::relay::direct::Direct;
use millrace_harness::system::process::wait_until;
use millrace_relay::config::{Listen, Server};
use millrace_relay::model::Partition;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::exposition::{OPEN_METRICS, get, scrape};

const SERVICES: u16 = 100;
const CONNECTIONS: u16 = 15_000;
const SCRAPES: usize = 20;
const MOST_BYTES: usize = 1 << 20;
const MOST_TIME: Duration = Duration::from_millis(20);

/// Lets this process have a file for each connection.
fn raise_limit() -> Result<()> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    Ok(setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?)
}

#[test]
fn a_scrape_of_many_connections_and_services_is_small_and_quick() -> Result<()> {
    raise_limit()?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
    let mut ports = Vec::new();
    for _ in 0..SERVICES {
        ports.push(free_port()?);
    }
    let mut relay = Direct::build("size", |config| {
        config.relay.workers = 2;
        config.relay.max_connections = 16_384;
        config.metrics.listen = Some(Listen(address));
        let first = config.services[0].clone();
        config.services = (0..SERVICES)
            .zip(&ports)
            .map(|(number, port)| {
                let mut service = first.clone();
                service.name = format!("service-{number}");
                service.port = (*port).into();
                let id = format!("server-{number}");
                let server = Server::new(id, Ipv4Addr::LOCALHOST.into(), Partition(number));
                service.servers = vec![server];
                service
            })
            .collect();
    })?;
    relay.instance.start()?;
    let mut connections = Vec::new();
    for number in 0..CONNECTIONS {
        let port = ports[usize::from(number % SERVICES)];
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port));
        connections.push(stream.with_context(|| format!("connection {number}"))?);
    }
    wait_until(Duration::from_mins(1), "all to be accepted", || {
        Ok(relay.instance.stats()?.count("connections")? == u64::from(CONNECTIONS))
    })?;
    let mut times = Vec::new();
    let mut bytes = 0;
    for _ in 0..SCRAPES {
        let began = Instant::now();
        bytes = get(address, "/metrics", OPEN_METRICS)?.1.len();
        times.push(began.elapsed());
    }
    times.sort_unstable();
    println!(
        "{CONNECTIONS} connections, {SERVICES} services: {bytes} bytes; fastest {:?}, median {:?}, \
         slowest {:?} of {SCRAPES}",
        times[0],
        times[SCRAPES / 2],
        times[SCRAPES - 1]
    );
    let samples = scrape(address, OPEN_METRICS)?;
    let each = f64::from(CONNECTIONS / SERVICES);
    for number in 0..SERVICES {
        let name = format!("millrace_connections{{service=\"service-{number}\"}}");
        ensure!(samples.get(&name) == Some(&each), "{name}: {:?}", samples.get(&name));
    }
    ensure!(bytes < MOST_BYTES, "{bytes} bytes");
    // The machine may be busy: what the relay needs is the time of the fastest.
    ensure!(times[0] < MOST_TIME, "{times:?}");
    drop(connections);
    relay.instance.stop().map(drop)
}
