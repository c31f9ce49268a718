//! What `relay trace` is told of a packet.
//!
//! The traced programs put one [`Event`] into a log record for each packet of the client in
//! question, as hexadecimal digits; userspace reads it back.

use crate::flow::Address;

/// Names of what the tracer sets in the object before it loads it.
pub mod global {
    /// [`super::Client`]: whose packets are told.
    pub const CLIENT: &str = "TRACED_CLIENT";
    /// `u32`: most packets that each processor tells in a second.
    pub const LIMIT: &str = "TRACE_LIMIT";
}

/// Name of the per-CPU array of one [`Desk`].
pub const MAP: &str = "TRACE";

/// The client in question: [`Address::words`] of its address.
pub type Client = [u32; 4];

/// Where a packet was seen.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// By `ingress`: from the client.
    FromClient = 0,
    /// By `egress`: to the client.
    ToClient = 1,
}

/// One packet and what became of it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// `CLOCK_MONOTONIC` in nanoseconds.
    pub at_ns: u64,
    /// From the IP header.
    pub source: Address,
    /// From the IP header.
    pub destination: Address,
    /// [`crate::verdict::Verdict`] as its number.
    pub verdict: u32,
    /// Device that it came in on.
    pub ifindex: u32,
    /// Bytes of the frame.
    pub length: u32,
    /// TCP's, if the parser has read so far; as are the ports and the flags.
    pub sequence: u32,
    /// Network byte order; 0 if not read.
    pub source_port: [u8; 2],
    /// Network byte order; 0 if not read.
    pub destination_port: [u8; 2],
    /// IANA protocol number.
    pub protocol: u8,
    /// TCP control bits; 0 if not read.
    pub flags: u8,
    /// [`Direction`] as its number.
    pub direction: u8,
    /// Zero.
    pub reserved: u8,
}

/// A processor's place to write an event, and its account of what it has told.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Desk {
    /// The event being written.
    pub event: Event,
    /// The second, of the monotonic clock, that `told` is about.
    pub second: u64,
    /// Packets told in that second.
    pub told_in_second: u64,
    /// Packets told since the trace began.
    pub told: u64,
    /// Packets not told because there were too many, since the trace began.
    pub withheld: u64,
}

const _: () = assert!(size_of::<Event>() == Event::LENGTH && size_of::<Desk>() == 96);

impl Event {
    /// Bytes of an event.
    pub const LENGTH: usize = 64;

    /// Reads an event back from its bytes.
    pub fn from_bytes(bytes: &[u8; Self::LENGTH]) -> Self {
        let words = bytes.as_chunks::<4>().0;
        let word = |index: usize| u32::from_ne_bytes(words[index]);
        let address = |first: usize| {
            Address::from_words([word(first), word(first + 1), word(first + 2), word(first + 3)])
        };
        let [a, b, c, d] = words[14];
        let [protocol, flags, direction, reserved] = words[15];
        Self {
            at_ns: u64::from_ne_bytes(bytes.as_chunks().0[0]),
            source: address(2),
            destination: address(6),
            verdict: word(10),
            ifindex: word(11),
            length: word(12),
            sequence: word(13),
            source_port: [a, b],
            destination_port: [c, d],
            protocol,
            flags,
            direction,
            reserved,
        }
    }
}
