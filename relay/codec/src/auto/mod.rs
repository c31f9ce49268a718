//! Recognition: which protocol a connection speaks is told by its first bytes.
//!
//! What is recognised gets its own codec, which is given everything from the first byte on. A
//! connection that is nothing of the service's goes to the server that the client addressed.

mod section;
mod sniff;

use std::sync::Arc;
use std::time::{Duration, Instant};

use millrace_model::{CloseReason, DeliveryFailure, Headers, Reply};

use super::settings::Settings;
use super::spoken::Spoken;
use super::{Actions, Codec, Framing, Sending, Unencodable};

use sniff::{Seen, sniff};

pub use section::{AutoSection, Otherwise, Recognised};

/// First bytes that are kept until a connection is recognised, at most: as long as the head of a
/// request may be. One that is longer is recognised without its end.
const MAX_FIRST_BYTES: usize = 16 << 10;

/// What all connections of a service have in common.
#[derive(Clone, Debug)]
pub struct AutoSettings {
    recognised: Vec<(Recognised, Spoken)>,
    framing: Option<(Framing, u32)>,
    wait: Duration,
    otherwise: Otherwise,
}

impl AutoSettings {
    /// Those of a service. What outlives connections is the former ones', if there are any.
    pub(super) fn new(service: &Settings, former: Option<&Self>) -> Self {
        let auto = &service.auto;
        let framing = service.framing.map(|framing| (framing, service.max_message_bytes));
        let protocol = |one: &Recognised| {
            let former = former.and_then(|former| former.find(*one));
            (*one, Spoken::new(*one, service, former))
        };
        Self {
            recognised: auto.recognise.iter().map(protocol).collect(),
            framing,
            wait: Duration::from_millis(u64::from(auto.wait_ms)),
            otherwise: auto.otherwise,
        }
    }

    /// See [`Protocol::check_reply`](super::Protocol::check_reply): one that no protocol of the service could send.
    pub fn check_reply(&self, headers: Headers<'_>, payload: &[u8]) -> Result<(), Unencodable> {
        let framing = match (self.otherwise, self.framing) {
            (Otherwise::Framing, Some((framing, limit))) => {
                framing.check_payload(limit, payload).is_ok()
            }
            _ => false,
        };
        let mut all = self.recognised.iter();
        let fits = framing || all.any(|(_, one)| one.check_reply(headers, payload).is_ok());
        fits.then_some(()).ok_or(Unencodable)
    }

    /// See [`Protocol::sessions`](super::Protocol::sessions).
    pub fn sessions(&self) -> (usize, usize) {
        self.find(Recognised::Mqtt).map_or((0, 0), Spoken::sessions)
    }

    fn find(&self, wanted: Recognised) -> Option<&Spoken> {
        self.recognised.iter().find(|(one, _)| *one == wanted).map(|(_, protocol)| protocol)
    }

    /// What a connection is whose first bytes these are. `over`: nothing more is waited for.
    fn choose(&self, first: &[u8], over: bool) -> Choice<'_> {
        let framing = self.find(Recognised::Framing).and(self.framing);
        let found = match sniff(first, framing, MAX_FIRST_BYTES, over) {
            Seen::Undecided => return Choice::Undecided,
            Seen::Begun => match (self.find(Recognised::WebSocket), self.find(Recognised::Http)) {
                (None, http) => http,
                (Some(websocket), http) => {
                    return Choice::Request { websocket, otherwise: http };
                }
            },
            // A server of HTTP may leave an upgrade aside (RFC 9110 section 7.8).
            Seen::Upgrade => {
                self.find(Recognised::WebSocket).or_else(|| self.find(Recognised::Http))
            }
            Seen::Request => self.find(Recognised::Http),
            // What is too long to be looked at whole is answered by whoever is there.
            Seen::LongRequest => {
                self.find(Recognised::Http).or_else(|| self.find(Recognised::WebSocket))
            }
            Seen::Framing => self.find(Recognised::Framing),
            Seen::Mqtt => self.find(Recognised::Mqtt),
            Seen::Nothing => None,
        };
        found.map_or(Choice::Otherwise, Choice::Protocol)
    }
}

/// What is done with a connection.
enum Choice<'a> {
    /// It needs more bytes, or more time.
    Undecided,
    /// It is a request, and needs the rest of its head.
    Request {
        websocket: &'a Spoken,
        /// If it asks for no upgrade.
        otherwise: Option<&'a Spoken>,
    },
    Protocol(&'a Spoken),
    Otherwise,
}

/// One connection.
pub struct Auto {
    settings: Arc<AutoSettings>,
    state: State,
}

/// ```text
///  Sniffing ── recognised ─► Known
///      └── not, or not in time ─► Known (framing), handed on, or closed
/// ```
enum State {
    /// What has come, and until when the rest is waited for. None: it is a request, whose head may
    /// take as long as that of any other (`handshake_timeout_ms`).
    Sniffing { first: Vec<u8>, deadline: Option<Instant> },
    /// Recognised, or taken for it.
    Known(Box<dyn Codec>),
    /// Handed on or closed.
    Over,
}

impl std::fmt::Debug for Auto {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Auto").field(&self.name()).finish()
    }
}

impl Auto {
    /// At the beginning of a connection.
    pub fn new(settings: Arc<AutoSettings>, now: Instant) -> Self {
        let deadline = Some(now + settings.wait);
        Self { settings, state: State::Sniffing { first: Vec::new(), deadline } }
    }

    fn first(&mut self) -> Vec<u8> {
        match std::mem::replace(&mut self.state, State::Over) {
            State::Sniffing { first, .. } => first,
            State::Known(_) | State::Over => Vec::new(),
        }
    }

    /// Goes on with a codec, which gets what has come so far.
    fn become_known(&mut self, protocol: &Spoken, now: Instant, actions: &mut dyn Actions) {
        let first = self.first();
        let mut codec = protocol.codec(now);
        if !codec.opened(actions) {
            return;
        }
        let mut codec = codec.boxed();
        codec.receive(&first, now, actions);
        self.state = State::Known(codec);
    }

    /// Nothing more is waited for but the rest of a request.
    fn end_wait(&mut self, now: Instant, actions: &mut dyn Actions) {
        let settings = self.settings.clone();
        let State::Sniffing { first, deadline } = &mut self.state else { return };
        match settings.choose(first, true) {
            Choice::Request { .. } => *deadline = None,
            Choice::Protocol(protocol) => self.become_known(protocol, now, actions),
            Choice::Undecided | Choice::Otherwise => self.otherwise(now, actions),
        }
    }

    fn otherwise(&mut self, now: Instant, actions: &mut dyn Actions) {
        match (self.settings.otherwise, self.settings.framing) {
            (Otherwise::Framing, Some((framing, max_message_bytes))) => {
                let protocol = Spoken::Framing { framing, max_message_bytes };
                self.become_known(&protocol, now, actions);
            }
            (Otherwise::HandOn, _) => {
                let first = self.first();
                actions.hand_on(&first);
            }
            (Otherwise::Close | Otherwise::Framing, _) => {
                self.state = State::Over;
                actions.close(CloseReason::Unsupported);
            }
        }
    }
}

// A method with a default would be forgotten in silence, and the codec that was chosen not asked.
#[deny(clippy::missing_trait_methods)]
impl Codec for Auto {
    fn name(&self) -> &'static str {
        match &self.state {
            State::Known(codec) => codec.name(),
            State::Sniffing { .. } | State::Over => "auto",
        }
    }

    fn receive(&mut self, input: &[u8], now: Instant, actions: &mut dyn Actions) {
        let (first, over) = match &mut self.state {
            State::Known(codec) => return codec.receive(input, now, actions),
            State::Over => return,
            State::Sniffing { first, deadline } => {
                first.extend_from_slice(input);
                (&*first, deadline.is_none())
            }
        };
        let settings = self.settings.clone();
        match settings.choose(first, over) {
            Choice::Undecided | Choice::Request { .. } => {}
            Choice::Protocol(protocol) => self.become_known(protocol, now, actions),
            Choice::Otherwise => self.otherwise(now, actions),
        }
    }

    /// A client that ends its side before it is recognised says no more.
    fn end_of_stream(&mut self, now: Instant, actions: &mut dyn Actions) -> bool {
        if let State::Sniffing { first, .. } = &self.state {
            let settings = self.settings.clone();
            match settings.choose(first, true) {
                Choice::Protocol(protocol) | Choice::Request { otherwise: Some(protocol), .. } => {
                    self.become_known(protocol, now, actions);
                }
                // It asks for no upgrade, as far as it has come.
                Choice::Request { .. } | Choice::Undecided | Choice::Otherwise => {
                    self.otherwise(now, actions);
                }
            }
        }
        match &mut self.state {
            State::Known(codec) => codec.end_of_stream(now, actions),
            State::Sniffing { .. } | State::Over => true,
        }
    }

    fn is_between_messages(&self) -> bool {
        match &self.state {
            State::Known(codec) => codec.is_between_messages(),
            State::Sniffing { .. } | State::Over => true,
        }
    }

    fn owes(&self) -> bool {
        matches!(&self.state, State::Known(codec) if codec.owes())
    }

    fn is_full(&self) -> bool {
        matches!(&self.state, State::Known(codec) if codec.is_full())
    }

    fn has_room(&self) -> bool {
        match &self.state {
            State::Known(codec) => codec.has_room(),
            State::Sniffing { .. } | State::Over => true,
        }
    }

    fn is_patient(&self) -> bool {
        matches!(&self.state, State::Known(codec) if codec.is_patient())
    }

    fn delivered(&mut self, sequence: u64, now: Instant, actions: &mut dyn Actions) {
        if let State::Known(codec) = &mut self.state {
            codec.delivered(sequence, now, actions);
        }
    }

    fn reply(
        &mut self,
        reply: Reply<'_>,
        now: Instant,
        actions: &mut dyn Actions,
    ) -> Result<Sending, Unencodable> {
        match &mut self.state {
            State::Known(codec) => codec.reply(reply, now, actions),
            State::Sniffing { .. } | State::Over => Err(Unencodable),
        }
    }

    fn close_asked(&mut self, headers: Headers<'_>) {
        if let State::Known(codec) = &mut self.state {
            codec.close_asked(headers);
        }
    }

    fn obeys_close(&self) -> bool {
        matches!(&self.state, State::Known(codec) if codec.obeys_close())
    }

    fn lingers(&self) -> bool {
        matches!(&self.state, State::Known(codec) if codec.lingers())
    }

    fn farewell(&mut self, reason: CloseReason, now: Instant, actions: &mut dyn Actions) {
        if let State::Sniffing { first, .. } = &self.state {
            let settings = self.settings.clone();
            if let Choice::Request { websocket, otherwise } = settings.choose(first, true) {
                self.become_known(otherwise.unwrap_or(websocket), now, actions);
            }
        }
        if let State::Known(codec) = &mut self.state {
            codec.farewell(reason, now, actions);
        }
    }

    fn ended(&mut self, reason: CloseReason, now: Instant, actions: &mut dyn Actions) {
        if let State::Known(codec) = &mut self.state {
            codec.ended(reason, now, actions);
        }
    }

    fn refused(
        &mut self,
        failure: DeliveryFailure,
        message: u64,
        now: Instant,
        actions: &mut dyn Actions,
    ) -> bool {
        match &mut self.state {
            State::Known(codec) => codec.refused(failure, message, now, actions),
            State::Sniffing { .. } | State::Over => false,
        }
    }

    fn sent(&mut self, now: Instant) -> bool {
        match &mut self.state {
            State::Known(codec) => codec.sent(now),
            State::Sniffing { .. } | State::Over => false,
        }
    }

    fn not_read(&mut self, now: Instant) {
        if let State::Known(codec) = &mut self.state {
            codec.not_read(now);
        }
    }

    fn deadline(&self) -> Option<Instant> {
        match &self.state {
            State::Sniffing { deadline, .. } => *deadline,
            State::Known(codec) => codec.deadline(),
            State::Over => None,
        }
    }

    fn elapsed(&mut self, now: Instant, actions: &mut dyn Actions) {
        match &mut self.state {
            State::Sniffing { deadline: Some(deadline), .. } if *deadline <= now => {
                self.end_wait(now, actions);
            }
            State::Known(codec) => codec.elapsed(now, actions),
            State::Sniffing { .. } | State::Over => {}
        }
    }

    fn reads(&self) -> bool {
        match &self.state {
            State::Known(codec) => codec.reads(),
            State::Sniffing { .. } | State::Over => true,
        }
    }

    fn kept_bytes(&self) -> usize {
        match &self.state {
            State::Sniffing { first, .. } => first.capacity(),
            State::Known(codec) => codec.kept_bytes(),
            State::Over => 0,
        }
    }
}

#[cfg(test)]
mod tests;
