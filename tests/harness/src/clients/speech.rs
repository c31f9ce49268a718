//! The clients' side of each protocol, as bytes: for tests that care for who says what when, and for
//! benchmarks, where the client is to cost little; not for what a whole client of the protocol does.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use millrace_relay::codec::{ByteOrder, Framing, ProtocolKind};
use millrace_relay::config::Service;

use crate::clients::mqtt;
use crate::clients::tcp::PATIENCE;
use crate::clients::wire::Wire;
use crate::net::uninterrupted;

/// The framing of [`Speech::Framing`].
pub const FRAMES: Wire = Wire(Framing::Length { bytes: 2, order: ByteOrder::Big });
/// An upgrade to WebSocket, without the empty line.
pub const UPGRADE: &str = "GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\n\
    Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Sec-WebSocket-Version: 13\r\n";

/// How [`payload`] ends, and what stands nowhere else in what the relay sends to a client.
pub const END: u8 = b'|';
/// Messages of QoS 1 that a client may leave unacknowledged: the relay's default.
pub const RECEIVE_MAXIMUM: u32 = 256;
const PUBACK_BYTES: usize = 4;
const MASK: [u8; 4] = *b"mask";

/// What a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speech {
    /// Plain framing, [`FRAMES`].
    Framing,
    /// HTTP/1.1: a message is the body of a request.
    Http,
    /// WebSocket, binary frames without compression.
    WebSocket,
    /// MQTT 3.1.1 with QoS 0.
    Mqtt,
    /// MQTT 3.1.1 with QoS 1; see [`number`](Self::number).
    MqttQos1,
    /// Lines, the framing that everybody understands.
    Lines,
}

impl Speech {
    /// One of each protocol.
    pub const ALL: [Self; 4] = [Self::Framing, Self::Http, Self::WebSocket, Self::Mqtt];

    /// Makes a service one of clients that speak so.
    pub fn of(self, service: &mut Service) {
        service.framing = None;
        match self {
            Self::Framing => service.framing = Some(FRAMES.0),
            Self::Http => service.protocol = ProtocolKind::Http,
            Self::WebSocket => service.protocol = ProtocolKind::WebSocket,
            Self::Mqtt | Self::MqttQos1 => mqtt::speak(service, |_| {}),
            Self::Lines => service.framing = Some(Framing::Lines),
        }
    }

    /// As reports name it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Framing => "frames",
            Self::Http => "http",
            Self::WebSocket => "websocket",
            Self::Mqtt => "mqtt_qos0",
            Self::MqttQos1 => "mqtt_qos1",
            Self::Lines => "lines",
        }
    }

    /// What comes before the first message. Clients of one name are the same client.
    pub fn greeting(self, name: &str) -> Vec<u8> {
        match self {
            Self::Framing | Self::Http | Self::Lines => Vec::new(),
            Self::WebSocket => format!("{UPGRADE}\r\n").into_bytes(),
            Self::Mqtt | Self::MqttQos1 => {
                let connect = [b"\0\x04MQTT\x04\x02\0\0".as_slice(), &text(name)].concat();
                let subscribe = [b"\0\x01".as_slice(), &text("#"), &[0]].concat();
                [packet(0x10, &connect), packet(0x82, &subscribe)].concat()
            }
        }
    }

    /// Whether all is there that answers the greeting.
    fn is_greeted(self, answer: &[u8]) -> bool {
        match self {
            Self::Framing | Self::Http | Self::Lines => true,
            Self::WebSocket => contains(answer, b"\r\n\r\n"),
            // CONNACK and SUBACK.
            Self::Mqtt | Self::MqttQos1 => answer.len() >= 4 + 5,
        }
    }

    /// A message.
    pub fn message(self, payload: &[u8]) -> Vec<u8> {
        match self {
            Self::Framing => FRAMES.framed(payload),
            Self::Http => {
                let length = payload.len();
                let head =
                    format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\n");
                [head.as_bytes(), payload].concat()
            }
            Self::WebSocket => {
                let masked =
                    payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask);
                let mut frame = vec![0x82];
                match u16::try_from(payload.len()).expect("no message is longer than 65,535 bytes")
                {
                    length @ 0..126 => frame.push(0x80 | length.to_be_bytes()[1]),
                    length => {
                        frame.push(0x80 | 0x7e);
                        frame.extend(length.to_be_bytes());
                    }
                }
                frame.extend(MASK);
                frame.extend(masked);
                frame
            }
            Self::Mqtt => packet(0x30, &[&text("t"), payload].concat()),
            Self::MqttQos1 => packet(0x32, &[&text("t"), &[0; 2][..], payload].concat()),
            Self::Lines => [payload, b"\n"].concat(),
        }
    }

    /// The headers of a message's record that its reply must have too.
    pub const fn correlation(self) -> Option<&'static str> {
        match self {
            Self::Framing | Self::Lines | Self::WebSocket => None,
            Self::Http => Some("http.request"),
            Self::Mqtt | Self::MqttQos1 => Some("mqtt.topic"),
        }
    }

    /// Gives the messages of a write, each so long and with a payload of `size` bytes, the packet
    /// identifiers from the `first` on; nothing for a protocol without.
    pub fn number(self, write: &mut [u8], length: usize, size: usize, first: u64) {
        if self != Self::MqttQos1 {
            return;
        }
        for (message, number) in write.chunks_exact_mut(length).zip(first..) {
            let identifier = u16::try_from(number % u64::from(u16::MAX)).expect("a remainder") + 1;
            let at = length - size - 2;
            message[at..at + 2].copy_from_slice(&identifier.to_be_bytes());
        }
    }

    /// Bytes of the acknowledgement of a message, where there is one.
    pub const fn acknowledgement_bytes(self) -> Option<usize> {
        match self {
            Self::MqttQos1 => Some(PUBACK_BYTES),
            _ => None,
        }
    }
}

/// A payload of so many bytes for clients that count replies without a parser: it ends with [`END`].
pub fn payload(size: usize) -> Vec<u8> {
    let letters = (b'a'..=b'z').cycle().take(size.saturating_sub(1));
    letters.chain([END]).collect()
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

/// A string of MQTT.
fn text(text: &str) -> Vec<u8> {
    let length = u16::try_from(text.len()).expect("a short text");
    [&length.to_be_bytes(), text.as_bytes()].concat()
}

/// A packet of MQTT, with its remaining length (3.1.1, 2.2.3).
fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let (mut packet, mut length) = (vec![first], body.len());
    loop {
        let more = if length > 127 { 0x80 } else { 0 };
        packet.push(u8::try_from(length % 128).expect("seven bits") | more);
        length /= 128;
        if length == 0 {
            packet.extend(body);
            return packet;
        }
    }
}

/// A client whose messages come back to it.
#[derive(Debug)]
pub struct Speaker {
    speech: Speech,
    stream: TcpStream,
    inbox: Vec<u8>,
}

impl Speaker {
    /// One that was greeted.
    pub fn connect(speech: Speech, target: SocketAddr, name: &str) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&target, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut speaker = Self { speech, stream, inbox: Vec::new() };
        speaker.stream.write_all(&speech.greeting(name))?;
        speaker.read_until(|answer| speech.is_greeted(answer)).context("it was not greeted")?;
        Ok(speaker)
    }

    /// Its connection, for who goes on with it otherwise.
    pub fn into_stream(self) -> TcpStream {
        self.stream
    }

    /// Sends a message that no other one is a part of, and waits for it: the time that this took.
    pub fn round_trip(&mut self, payload: &[u8]) -> Result<Duration> {
        let begun = Instant::now();
        self.stream.write_all(&self.speech.message(payload)).context("cannot send")?;
        self.read_until(|answer| contains(answer, payload))
            .with_context(|| format!("{:?}, {}", self.speech, payload.escape_ascii()))?;
        Ok(begun.elapsed())
    }

    fn read_until(&mut self, whole: impl Fn(&[u8]) -> bool) -> Result<()> {
        self.inbox.clear();
        let mut bytes = [0; 4096];
        while !whole(&self.inbox) {
            let read = uninterrupted(|| self.stream.read(&mut bytes));
            let count = read.context("nothing came")?;
            ensure!(count > 0, "the connection ended: {}", self.inbox.escape_ascii());
            self.inbox.extend_from_slice(&bytes[..count]);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_stand_before_the_payload_and_never_are_0() {
        let payload = payload(200);
        let message = Speech::MqttQos1.message(&payload);
        let mut write = message.repeat(2);
        Speech::MqttQos1.number(&mut write, message.len(), 200, 65_534);
        let (first, second) = write.split_at(message.len());
        assert_eq!(first, [&[0x32, 205, 1, 0, 1, b't', 255, 255], &payload[..]].concat());
        assert_eq!(second, [&[0x32, 205, 1, 0, 1, b't', 0, 1], &payload[..]].concat());
    }
}
