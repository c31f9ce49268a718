//! Packets past the stack: with any source, and whatever the stack thinks of them.

use std::io::Read as _;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use socket2::{Domain, Protocol, Socket, Type};

use crate::net::frames::{Frame, flag};
use crate::net::netns::Host;
use crate::net::uninterrupted;

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// A raw socket of the calling thread's network namespace.
#[derive(Debug)]
pub struct Raw(Socket);

impl Raw {
    /// Takes whole packets with their IPv4 headers, and gives every TCP packet that comes in.
    pub fn new() -> anyhow::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP))?;
        socket.set_header_included_v4(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Self(socket))
    }

    /// Sends the packet of a frame; routing and neighbours are the stack's.
    pub fn send(&self, frame: &Frame) -> anyhow::Result<()> {
        let packet = &frame.bytes()[frame.network_at()..];
        let sent = self.0.send_to(packet, &frame.destination.into())?;
        ensure!(sent == packet.len(), "{sent} of {} bytes were sent", packet.len());
        Ok(())
    }

    /// The next TCP packet, from its IPv4 header on.
    pub fn receive(&self) -> anyhow::Result<Vec<u8>> {
        let mut packet = vec![0; 2048];
        let length = uninterrupted(|| (&self.0).read(&mut packet)).context("no answer")?;
        packet.truncate(length);
        Ok(packet)
    }
}

/// Sends a SYN and gives the sequence number of the SYN-ACK that answers it.
pub fn syn_ack_number(syn: &Frame) -> anyhow::Result<u32> {
    let raw = Raw::new()?;
    raw.send(syn)?;
    loop {
        let packet = raw.receive()?;
        let (ports, rest) = packet[20..].split_first_chunk::<4>().context("a short packet")?;
        let wanted = [syn.destination.port().to_be_bytes(), syn.source.port().to_be_bytes()];
        if ports == wanted.as_flattened() && rest[9] & (flag::SYN | flag::ACK) == 0x12 {
            let number = rest.first_chunk().context("a short packet")?;
            return Ok(u32::from_be_bytes(*number));
        }
    }
}

/// Sends a frame as it is, out of a host's `eth0`.
pub fn send_frame(host: &Host, frame: &Frame) -> anyhow::Result<()> {
    let program = "import socket, sys\n\
                   out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)\n\
                   out.bind(('eth0', 0))\n\
                   out.send(bytes.fromhex(sys.argv[1]))";
    let digits: Vec<_> = frame.bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    let output = host.command("python3").args(["-c", program, &digits.concat()]).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
