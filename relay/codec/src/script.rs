//! [`Actions`] that write down what a codec asks for: for the tests and fuzzers of codecs.

use millrace_model::{
    Begin, CloseReason, ConnectionKey, Headers, Incarnation, Refusal, RelayId, ReplyOrigin,
};

use super::Actions;

/// A record's headers, as text where they are.
pub type Named = Vec<(String, Vec<u8>)>;

/// What a codec has asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// See [`Actions::begin`].
    Begin {
        /// How records name the protocol.
        protocol: &'static str,
        /// It wants to hear of deliveries.
        acknowledge: bool,
        /// The client's name.
        client: Option<String>,
        /// Replies may wait.
        holds: bool,
        /// Of the `open` record.
        headers: Named,
    },
    /// See [`Actions::message`].
    Message {
        /// Of the record.
        headers: Named,
        /// Its value.
        payload: Vec<u8>,
    },
    /// See [`Actions::settle`].
    Settle(ReplyOrigin),
    /// See [`Actions::give_up`].
    GiveUp(ReplyOrigin),
    /// See [`Actions::release`].
    Release(ReplyOrigin),
    /// See [`Actions::ask_held`].
    AskHeld,
    /// See [`Actions::close`].
    Close(CloseReason),
    /// See [`Actions::take_over`].
    TakeOver(ConnectionKey),
    /// See [`Actions::hand_on`].
    HandOn(Vec<u8>),
}

/// Writes down what a codec asks for. Bytes for the client stand apart from the rest.
#[derive(Debug)]
pub struct Script {
    /// In their order.
    pub actions: Vec<Action>,
    /// For the client.
    pub output: Vec<u8>,
    /// What [`Actions::begin`] answers.
    pub refusal: Option<Refusal>,
    /// The connection's key.
    pub key: ConnectionKey,
    /// See [`Actions::downlink_end`].
    pub downlink_end: i64,
    sequence: u64,
}

impl Default for Script {
    fn default() -> Self {
        let key = ConnectionKey {
            relay: RelayId(0),
            incarnation: Incarnation::new(1),
            worker: 0,
            slot: 0,
            generation: 1,
        };
        let (actions, output) = (Vec::new(), Vec::new());
        Self { actions, output, refusal: None, key, downlink_end: 0, sequence: 0 }
    }
}

impl Script {
    /// Takes what was written down since the last time: actions and output.
    pub fn take(&mut self) -> (Vec<Action>, Vec<u8>) {
        (std::mem::take(&mut self.actions), std::mem::take(&mut self.output))
    }

    /// True once the codec has asked to close or to hand on: the relay calls it no more but for
    /// `ended`, and gives it no more bytes.
    pub fn is_closed(&self) -> bool {
        self.actions.iter().any(|action| matches!(action, Action::Close(_) | Action::HandOn(_)))
    }
}

fn named(headers: Headers<'_>) -> Named {
    headers.iter().map(|(name, value)| (name.to_string_lossy().into(), value.to_vec())).collect()
}

impl Actions for Script {
    fn key(&self) -> ConnectionKey {
        self.key
    }

    fn begin(&mut self, begin: Begin<'_>) -> Result<(), Refusal> {
        self.actions.push(Action::Begin {
            protocol: begin.protocol,
            acknowledge: begin.acknowledge,
            client: begin.client.map(Into::into),
            holds: begin.holds,
            headers: named(begin.headers),
        });
        self.refusal.map_or(Ok(()), Err)
    }

    fn message(&mut self, headers: Headers<'_>, payload: &[u8]) -> u64 {
        self.actions.push(Action::Message { headers: named(headers), payload: payload.to_vec() });
        self.sequence += 1;
        self.sequence
    }

    fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    fn settle(&mut self, reply: ReplyOrigin) {
        self.actions.push(Action::Settle(reply));
    }

    fn give_up(&mut self, reply: ReplyOrigin) {
        self.actions.push(Action::GiveUp(reply));
    }

    fn downlink_end(&self) -> i64 {
        self.downlink_end
    }

    fn release(&mut self, reply: ReplyOrigin) {
        self.actions.push(Action::Release(reply));
    }

    fn ask_held(&mut self) {
        self.actions.push(Action::AskHeld);
    }

    fn close(&mut self, reason: CloseReason) {
        self.actions.push(Action::Close(reason));
    }

    fn take_over(&mut self, other: ConnectionKey) {
        self.actions.push(Action::TakeOver(other));
    }

    fn hand_on(&mut self, received: &[u8]) {
        self.actions.push(Action::HandOn(received.to_vec()));
    }
}
