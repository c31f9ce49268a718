//! Hosts, and what goes between them.

pub mod frames;
pub mod netns;
pub mod ordinary;
pub mod pktgen;
pub mod raw_socket;
pub mod socket_table;
pub mod tcp;
pub mod tproxy;

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};

use anyhow::{Context as _, Result};

/// What a signal has interrupted is done again. A call with a timeout is not by itself (signal(7)), and
/// SIGCHLD comes though nobody handles it: the end of a child that `posix_spawn` has made just before.
pub fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Below the ports that the kernel gives to whoever connects (`net.ipv4.ip_local_port_range`, from 32768
/// by default): one of those may be a client's by the time that it is listened at.
const FIRST_PORT: u16 = 10_000;
const PORTS: u16 = 22_000;

/// A port that nobody listens at now, and that this process has not been given before.
pub fn free_port() -> Result<u16> {
    static GIVEN: AtomicU16 = AtomicU16::new(0);
    // Processes that run at the same time begin in different places.
    let start = std::process::id().wrapping_mul(40_503) % u32::from(PORTS);
    let start = u16::try_from(start).expect("less than PORTS");
    for _ in 0..PORTS {
        let place = (u32::from(start) + u32::from(GIVEN.fetch_add(1, Relaxed))) % u32::from(PORTS);
        let port = FIRST_PORT + u16::try_from(place).expect("less than PORTS");
        match TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)) {
            Ok(_) => return Ok(port),
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            Err(error) => return Err(error).with_context(|| format!("bind to port {port}")),
        }
    }
    anyhow::bail!("no port from {FIRST_PORT} on is free")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_free_different_and_no_clients() {
        let ports: Vec<u16> = (0..100).map(|_| free_port().unwrap()).collect();
        let different: std::collections::HashSet<_> = ports.iter().collect();
        assert_eq!(different.len(), ports.len());
        assert!(ports.iter().all(|port| (FIRST_PORT..FIRST_PORT + PORTS).contains(port)));
    }
}
