//! The kernel's packet generator, driven through `/proc/net/pktgen`
//! (`Documentation/networking/pktgen.rst`): configure, run, read the result.
//!
//! It sends UDP over IPv4 out of a device of a [`Host`]; what is under test sits at the other end of
//! that device. Every packet is built anew: a veth refuses to send one twice (`clone_skb`, `burst`).

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::net::netns::Host;

/// Of the calling thread's network namespace: `/proc/net` would be the main thread's.
const DIRECTORY: &str = "/proc/thread-self/net/pktgen";
/// The generator's thread on the first processor.
const THREAD: &str = "kpktgend_0";
/// Headers without which it sends nothing: Ethernet, IPv4, UDP and its own 16 bytes.
const MIN_FRAME_BYTES: u32 = 14 + 20 + 8 + 16;

/// What to send. Addresses and ports are counted up, packet by packet, and begin again at the end of
/// their range.
#[derive(Clone, Debug)]
pub struct Traffic {
    /// So many packets, and then it ends.
    pub packets: u64,
    /// From the Ethernet header on, without the frame check sequence.
    pub frame_bytes: u32,
    /// Hardware address of the next hop.
    pub next_hop: [u8; 6],
    /// Source addresses.
    pub sources: RangeInclusive<Ipv4Addr>,
    /// Destination addresses.
    pub destinations: RangeInclusive<Ipv4Addr>,
    /// Source ports.
    pub source_ports: RangeInclusive<u16>,
    /// Destination ports.
    pub destination_ports: RangeInclusive<u16>,
}

impl Traffic {
    fn commands(&self) -> Vec<String> {
        let mac: Vec<_> = self.next_hop.iter().map(|byte| format!("{byte:02x}")).collect();
        vec![
            format!("count {}", self.packets),
            format!("pkt_size {}", self.frame_bytes),
            // As fast as it can.
            "delay 0".to_owned(),
            // The source address of the frame stays the device's.
            format!("dst_mac {}", mac.join(":")),
            format!("src_min {}", self.sources.start()),
            format!("src_max {}", self.sources.end()),
            format!("dst_min {}", self.destinations.start()),
            format!("dst_max {}", self.destinations.end()),
            format!("udp_src_min {}", self.source_ports.start()),
            format!("udp_src_max {}", port_limit(&self.source_ports)),
            format!("udp_dst_min {}", self.destination_ports.start()),
            format!("udp_dst_max {}", port_limit(&self.destination_ports)),
        ]
    }
}

/// What pktgen calls the largest port: it begins again before it gets there, unlike with addresses
/// (`mod_cur_headers` in `net/core/pktgen.c`). So no range of several ports has port 65,535.
fn port_limit(ports: &RangeInclusive<u16>) -> u16 {
    ports.end().saturating_add(1)
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Packets that the device took.
    pub packets: u64,
    /// Packets that the device, or what it is connected to, refused.
    pub errors: u64,
    /// From the first packet to the last.
    pub elapsed: Duration,
}

impl Sent {
    /// Packets per second that the device took.
    pub fn packets_per_second(&self) -> f64 {
        // 2^52 packets are more than any run's.
        #[expect(clippy::cast_precision_loss, reason = "a rate needs no 53 bits")]
        let packets = self.packets as f64;
        packets / self.elapsed.as_secs_f64()
    }
}

/// Refuses a kernel without the generator, and says what to do.
pub fn require() -> Result<()> {
    ensure!(
        Path::new(DIRECTORY).join("pgctrl").exists(),
        "this kernel has no packet generator loaded: `modprobe pktgen` loads it where it was built \
         (CONFIG_NET_PKTGEN); `cargo xtask vm-test` runs one that has it"
    );
    Ok(())
}

/// Sends the traffic out of a host's device. A run that takes longer than `limit` is stopped, and is
/// an error.
pub fn run(host: &Host, device: &str, traffic: &Traffic, limit: Duration) -> Result<Sent> {
    ensure!(
        traffic.frame_bytes >= MIN_FRAME_BYTES,
        "a frame of pktgen has at least {MIN_FRAME_BYTES} bytes, not {}",
        traffic.frame_bytes
    );
    // On a thread inside the host, and so are the threads that it makes.
    host.run(|| {
        require()?;
        let claim = Claim::of(device)?;
        for command in traffic.commands() {
            claim.configure(&command)?;
        }
        start(limit)?;
        let sent = claim.result()?;
        ensure!(
            sent.packets + sent.errors >= traffic.packets,
            "pktgen sent {} of {} packets within {limit:?}",
            sent.packets,
            traffic.packets
        );
        Ok(sent)
    })?
}

/// A device that the generator's thread has taken up; it lets go of it when this is dropped.
#[derive(Debug)]
struct Claim {
    device: PathBuf,
}

impl Claim {
    fn of(device: &str) -> Result<Self> {
        command(&Path::new(DIRECTORY).join(THREAD), "rem_device_all")?;
        command(&Path::new(DIRECTORY).join(THREAD), &format!("add_device {device}"))?;
        Ok(Self { device: Path::new(DIRECTORY).join(device) })
    }

    fn configure(&self, parameter: &str) -> Result<()> {
        command(&self.device, parameter)
    }

    fn result(&self) -> Result<Sent> {
        let text = std::fs::read_to_string(&self.device)
            .with_context(|| format!("read {}", self.device.display()))?;
        parse(&text).with_context(|| format!("pktgen reports no result:\n{text}"))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Err(error) = command(&Path::new(DIRECTORY).join(THREAD), "rem_device_all") {
            eprintln!("pktgen keeps {}: {error:#}", self.device.display());
        }
    }
}

fn command(file: &Path, words: &str) -> Result<()> {
    std::fs::write(file, format!("{words}\n"))
        .with_context(|| format!("pktgen refuses `{words}` in {}", file.display()))
}

/// Runs what is configured to its end, or stops it after `limit`.
fn start(limit: Duration) -> Result<()> {
    let control = Path::new(DIRECTORY).join("pgctrl");
    std::thread::scope(|scope| {
        let (done, ended) = channel::<()>();
        let watch = scope.spawn(|| {
            let ended = ended;
            match ended.recv_timeout(limit) {
                Err(RecvTimeoutError::Timeout) => command(&control, "stop"),
                _ => Ok(()),
            }
        });
        // Returns when the last packet has been sent.
        let outcome = command(&control, "start");
        drop(done);
        outcome.and(watch.join().expect("the watch"))
    })
}

/// Reads the end of a device's file:
/// `Result: OK: USEC(cUSEC+dUSEC) usec, PACKETS (…)` and `… errors: ERRORS`.
fn parse(text: &str) -> Option<Sent> {
    let result = text.split_once("Result: OK: ")?.1;
    let elapsed_us = result.split_once('(')?.0.parse().ok()?;
    let packets = result.split_once(" usec, ")?.1.split_once(' ')?.0.parse().ok()?;
    let errors = result.split_once("errors: ")?.1.split_whitespace().next()?.parse().ok()?;
    Some(Sent { packets, errors, elapsed: Duration::from_micros(elapsed_us) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_port_is_sent_too() {
        assert_eq!((port_limit(&(9..=9)), port_limit(&(6996..=7000))), (10, 7001));
        assert_eq!(port_limit(&(1024..=u16::MAX)), u16::MAX);
    }

    #[test]
    fn the_result_is_read() {
        let text = "Params: count 1000  min_pkt_size: 60  max_pkt_size: 60\nCurrent:\n     \
                    pkts-sofar: 1000  errors: 0\nResult: OK: 4211(c4100+d111) usec, 1000 \
                    (60byte,0frags)\n  237473pps 113Mb/sec (113987040bps) errors: 3\n";
        let sent = parse(text).unwrap();
        assert_eq!(sent, Sent { packets: 1000, errors: 3, elapsed: Duration::from_micros(4211) });
        assert!((sent.packets_per_second() - 237_473.0).abs() < 1.0);
        assert_eq!(parse("Result: Idle\n"), None);
    }
}
