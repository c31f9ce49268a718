//! A traced packet: from the digits in the log to what an operator reads.

use std::collections::HashMap;
use std::net::SocketAddr;

use millrace_common::flow::Address;
use millrace_common::packet::TCP;
use millrace_common::trace::{Direction, Event};
use millrace_common::verdict::Verdict;
use serde::Serialize;

/// One packet of the client and what became of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Traced {
    /// Microseconds since 1970.
    pub at_unix_us: u64,
    /// Device that it came in on.
    pub device: String,
    /// `from_client` or `to_client`.
    pub direction: &'static str,
    /// `action/reason`.
    pub verdict: &'static str,
    /// What that means.
    pub meaning: &'static str,
    /// Sender; its port is 0 if it was not read, as are the flags and the number.
    pub source: SocketAddr,
    /// Receiver.
    pub destination: SocketAddr,
    /// `tcp`, `udp`, …, or IANA's number.
    pub protocol: String,
    /// TCP's.
    pub flags: Vec<&'static str>,
    /// TCP's.
    pub sequence: u32,
    /// Bytes of the frame.
    pub length: u32,
}

impl Traced {
    /// Names what is numbers in an event. `epoch_ns` is the monotonic clock's zero since 1970.
    pub(super) fn of(event: &Event, devices: &HashMap<u32, String>, epoch_ns: u64) -> Self {
        let verdict = Verdict::ALL.iter().find(|verdict| **verdict as u32 == event.verdict);
        let device = devices.get(&event.ifindex);
        let end = |address: Address, port: [u8; 2]| {
            SocketAddr::new(address.into(), u16::from_be_bytes(port))
        };
        Self {
            at_unix_us: (epoch_ns + event.at_ns) / 1000,
            device: device.cloned().unwrap_or_else(|| format!("if{}", event.ifindex)),
            direction: match event.direction {
                direction if direction == Direction::FromClient as u8 => "from_client",
                _ => "to_client",
            },
            verdict: verdict.map_or("unknown", |verdict| verdict.name()),
            meaning: verdict.map_or("", |verdict| verdict.meaning()),
            source: end(event.source, event.source_port),
            destination: end(event.destination, event.destination_port),
            protocol: protocol(event.protocol),
            flags: flags(event.flags),
            sequence: event.sequence,
            length: event.length,
        }
    }
}

/// Reads an event from its hexadecimal digits.
pub(super) fn decode(line: &str) -> Option<Event> {
    let digits = line.as_bytes().as_chunks::<2>().0;
    if line.len() != 2 * Event::LENGTH {
        return None;
    }
    let mut bytes = [0; Event::LENGTH];
    for (byte, pair) in bytes.iter_mut().zip(digits) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(Event::from_bytes(&bytes))
}

fn protocol(number: u8) -> String {
    match number {
        1 => "icmp".to_owned(),
        TCP => "tcp".to_owned(),
        17 => "udp".to_owned(),
        58 => "icmpv6".to_owned(),
        other => other.to_string(),
    }
}

/// Control bits of TCP (RFC 9293 section 3.1), from the lowest.
fn flags(bits: u8) -> Vec<&'static str> {
    let names = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"];
    names.into_iter().enumerate().filter(|(bit, _)| bits >> bit & 1 == 1).map(|(_, n)| n).collect()
}

impl std::fmt::Display for Traced {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { device, verdict, source, destination, protocol, length, .. } = self;
        let day_us = self.at_unix_us % 86_400_000_000;
        let (second, micro) = (day_us / 1_000_000, day_us % 1_000_000);
        let (hours, minutes, seconds) = (second / 3600, second / 60 % 60, second % 60);
        write!(f, "{hours:02}:{minutes:02}:{seconds:02}.{micro:06} {device:<12} {verdict:<22} ")?;
        write!(f, "{source} > {destination} {protocol} {length} bytes")?;
        if self.flags.is_empty() {
            return Ok(());
        }
        write!(f, " [{}] seq {}", self.flags.join(" "), self.sequence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_survives_its_way_through_the_log() {
        let bytes: [u8; Event::LENGTH] =
            std::array::from_fn(|index| u8::try_from(index * 3).unwrap_or(0));
        let line = bytes.iter().fold(String::new(), |line, byte| format!("{line}{byte:02x}"));
        assert_eq!(decode(&line), Some(Event::from_bytes(&bytes)));
        assert_eq!(decode(&line[1..]), None);
        assert_eq!(decode("verdict"), None);
        assert_eq!(decode(&"zz".repeat(Event::LENGTH)), None);
    }

    #[test]
    fn a_line_for_people() {
        let traced = Traced {
            at_unix_us: 86_400_000_000 + 3_723_000_042,
            device: "eth1".to_owned(),
            direction: "from_client",
            verdict: "pass/no_rule",
            meaning: "",
            source: "192.0.2.1:40000".parse().unwrap(),
            destination: "203.0.113.1:80".parse().unwrap(),
            protocol: protocol(6),
            flags: flags(0b1_0010),
            sequence: 7,
            length: 74,
        };
        assert_eq!(
            traced.to_string(),
            "01:02:03.000042 eth1         pass/no_rule           192.0.2.1:40000 > 203.0.113.1:80 \
             tcp 74 bytes [SYN ACK] seq 7"
        );
    }
}
