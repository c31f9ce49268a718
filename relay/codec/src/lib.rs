//! Codecs: bytes to messages and back, without I/O.
//!
//! A [`Codec`] is one connection's protocol as a state machine. It is told what was received (cut
//! anywhere: what it does never depends on the cuts), what the time is, which messages Kafka has
//! acknowledged and what the server replies; what it wants done it asks of [`Actions`].
//!
//! ```text
//!  bytes ──► receive ──┐               ┌──► begin      who the client is: association, `open` record
//!  clock ──► elapsed ──┤               ├──► message    a record of the uplink
//!  Kafka ──► delivered ┼──► Codec ─────┼──► output     bytes for the client
//!  server ─► reply ────┤               ├──► settle, release   what became of a reply that was kept
//!  close ──► farewell ─┘               └──► close      after what is in the output
//! ```
//!
//! The registry of codecs is [`Protocol`]: a new one is a module here, a variant there.
#![forbid(unsafe_code)]

mod any;
mod auto;
mod framing;
mod http;
mod mqtt;
mod protocol;
pub mod script;
mod settings;
mod spoken;
mod websocket;

use std::time::Instant;

use millrace_model::{
    Begin, CloseReason, ConnectionKey, DeliveryFailure, Headers, Refusal, Reply, ReplyOrigin,
};

pub use any::AnyCodec;
pub use auto::{Auto, AutoSection, AutoSettings, Otherwise, Recognised};
pub use framing::{ByteOrder, DecodeError, Decoder, EncodeError, Framed, Framing};
pub use http::{Http, HttpSection, HttpSettings, MAX_REQUEST_FIELDS};
pub use mqtt::{Mqtt, MqttSection, Passwords};
pub use protocol::Protocol;
pub use settings::{ProtocolKind, Settings};
pub use spoken::Spoken;
pub use websocket::{ReplyOpcode, WebSocket, WebSocketSection, WebSocketSettings};

/// What a codec has made of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sending {
    /// It is in the output, and done with when that is sent.
    WithOutput,
    /// It is done with when the codec says so with [`Actions::settle`]: the client has to confirm it,
    /// or others come first. If the connection ends before, it is not delivered.
    Kept,
    /// The client does not want it; done with, and counted as `replies_filtered`.
    Unwanted,
}

/// A reply that the protocol cannot express, or that breaks a limit: it becomes a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the reply does not fit the connection's protocol or limits")]
pub struct Unencodable;

/// What a codec wants done, in its order.
pub trait Actions {
    /// This connection.
    fn key(&self) -> ConnectionKey;

    /// Finds the client's server and writes the `open` record. Once, before the first message.
    /// Refused, the codec says so in its protocol's way and closes with
    /// [`refusal.into()`](CloseReason).
    fn begin(&mut self, begin: Begin<'_>) -> Result<(), Refusal>;

    /// Makes a record of a message. Its number on the connection, from 1.
    fn message(&mut self, headers: Headers<'_>, payload: &[u8]) -> u64;

    /// Bytes to send, behind those that are there already. What is there must not be changed.
    fn output(&mut self) -> &mut Vec<u8>;

    /// The client has confirmed a reply that was [kept](Sending::Kept), or does not want it any more.
    fn settle(&mut self, reply: ReplyOrigin);

    /// A reply that was [kept](Sending::Kept) is not to be sent: the client does not want it. Done with,
    /// and counted as `replies_filtered`.
    fn give_up(&mut self, reply: ReplyOrigin);

    /// Behind the last reply that this relay has read from its downlink.
    fn downlink_end(&self) -> i64;

    /// A reply that was [kept](Sending::Kept) is in the output now, and done with when that is sent.
    fn release(&mut self, reply: ReplyOrigin);

    /// Reads no more, sends what is in the output, closes. The first reason counts.
    fn close(&mut self, reason: CloseReason);

    /// The client can take the replies that waited for it while it was away. Once, after a
    /// [`begin`](Self::begin) with [`later`](Begin::later).
    fn ask_held(&mut self);

    /// Closes another connection of this relay, for [`CloseReason::TakenOver`].
    fn take_over(&mut self, other: ConnectionKey);

    /// The connection is not for the relay: hands it on to the server that the client addressed,
    /// with all that was received so far. Nothing was begun, and the codec is not called again.
    fn hand_on(&mut self, received: &[u8]);
}

/// One connection's protocol.
///
/// None of it may panic or loop for ever, whatever a client or server sends. What a codec keeps in
/// memory is bounded, and said by [`kept_bytes`](Self::kept_bytes).
pub trait Codec: Send {
    /// For people.
    fn name(&self) -> &'static str;

    /// Takes the next bytes of the stream: all of them, whatever [`reads`](Self::reads) says then.
    fn receive(&mut self, input: &[u8], now: Instant, actions: &mut dyn Actions);

    /// The client has ended its side. False if the stream ended within a message.
    fn end_of_stream(&mut self, now: Instant, actions: &mut dyn Actions) -> bool;

    /// False while only a part of a message has come.
    fn is_between_messages(&self) -> bool;

    /// True if the client is owed something: its silence is not counted meanwhile. If it has ended its
    /// side, the codec then ends the connection, and the time that others are given for late replies does
    /// not count.
    fn owes(&self) -> bool {
        false
    }

    /// Kafka has acknowledged every message up to this number. Only if [`Begin::acknowledge`]; comes
    /// after [`ended`](Self::ended) too, and then of the actions none has an effect.
    fn delivered(&mut self, _sequence: u64, _now: Instant, _actions: &mut dyn Actions) {}

    /// Takes a server's reply.
    fn reply(
        &mut self,
        reply: Reply<'_>,
        now: Instant,
        actions: &mut dyn Actions,
    ) -> Result<Sending, Unencodable>;

    /// The server asks for the connection to be closed, by a record with these headers (its `close`
    /// among them). If it has a value, that went through [`reply`](Self::reply) before;
    /// [`farewell`](Self::farewell) comes next.
    fn close_asked(&mut self, _headers: Headers<'_>) {}

    /// True if further replies should stay in the log: what is [kept](Sending::Kept) for a client that
    /// has yet to confirm others is at its bound.
    fn is_full(&self) -> bool {
        false
    }

    /// True if those may come now.
    fn has_room(&self) -> bool {
        true
    }

    /// True if the client may take any time to confirm what is kept. Otherwise it is closed after
    /// `relay.reply_timeout_ms`.
    fn is_patient(&self) -> bool {
        false
    }

    /// True if the header `close` of a reply is the codec's to obey, because its protocol says it, or
    /// because the reply may have to wait for others.
    fn obeys_close(&self) -> bool {
        false
    }

    /// True if a client that is still sending shall get what was sent to it last: see
    /// `State::Draining` of the worker's connections.
    fn lingers(&self) -> bool {
        false
    }

    /// Last words, before the connection is closed for a reason that is not the codec's own.
    fn farewell(&mut self, _reason: CloseReason, _now: Instant, _actions: &mut dyn Actions) {}

    /// The connection is over, however it ended; comes once, and after it only
    /// [`delivered`](Self::delivered) or [`refused`](Self::refused). Nothing can be done for the
    /// client any more: of the actions only [`message`](Actions::message) has an effect, for a last
    /// one before the `close` record.
    fn ended(&mut self, _reason: CloseReason, _now: Instant, _actions: &mut dyn Actions) {}

    /// Kafka has refused a message, by its number, for good; no later one counts as
    /// [delivered](Self::delivered). True if the codec ends the connection, for it may owe the client
    /// something that came before. Otherwise [`farewell`](Self::farewell) comes next, if the connection
    /// has not [ended](Self::ended).
    fn refused(
        &mut self,
        _failure: DeliveryFailure,
        _message: u64,
        _now: Instant,
        _actions: &mut dyn Actions,
    ) -> bool {
        false
    }

    /// When [`elapsed`](Self::elapsed) should be called, if nothing else happens.
    fn deadline(&self) -> Option<Instant> {
        None
    }

    /// The deadline has come.
    fn elapsed(&mut self, _now: Instant, _actions: &mut dyn Actions) {}

    /// The kernel has taken all of the output: what was written last is on its way. True if
    /// [`deadline`](Self::deadline) is another one now.
    fn sent(&mut self, _now: Instant) -> bool {
        false
    }

    /// Until now the relay did not read from the client, for reasons of its own: the client's silence
    /// does not count.
    fn not_read(&mut self, _now: Instant) {}

    /// False while nothing more should be read from the client: replies must go first.
    fn reads(&self) -> bool {
        true
    }

    /// Bytes kept in memory for this connection.
    fn kept_bytes(&self) -> usize;
}
