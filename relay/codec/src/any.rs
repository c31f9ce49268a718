//! A connection's codec, whichever it is.

use std::time::Instant;

use millrace_model::{CloseReason, DeliveryFailure, Headers, Reply};

use super::framing::Framed;
use super::{Actions, Codec, Sending, Unencodable};

/// A connection's codec. Plain framing is known by its type, so that the compiler sees through it on
/// the hot path; the others are behind a pointer, which idle connections are the smaller for.
pub enum AnyCodec {
    /// Plain framing.
    Framed(Framed),
    /// Any other.
    Other(Box<dyn Codec>),
}

impl std::fmt::Debug for AnyCodec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = match self {
            Self::Framed(framed) => framed.name(),
            Self::Other(codec) => codec.name(),
        };
        f.debug_tuple("AnyCodec").field(&name).finish()
    }
}

/// Calls the same function of whichever codec it is.
macro_rules! whichever {
    ($any:expr, $codec:ident => $call:expr) => {
        match $any {
            AnyCodec::Framed($codec) => $call,
            AnyCodec::Other($codec) => $call,
        }
    };
}

impl AnyCodec {
    /// See [`Codec::receive`].
    pub fn receive<A: Actions>(&mut self, input: &[u8], now: Instant, actions: &mut A) {
        match self {
            Self::Framed(framed) => framed.take(input, actions),
            Self::Other(codec) => codec.receive(input, now, actions),
        }
    }

    /// The connection is there, and nothing was received yet. False if it is closed at once.
    pub fn opened(&mut self, actions: &mut dyn Actions) -> bool {
        match self {
            Self::Framed(framed) => framed.begin(actions),
            Self::Other(_) => true,
        }
    }

    /// Behind a pointer, whichever it is.
    pub(super) fn boxed(self) -> Box<dyn Codec> {
        match self {
            Self::Framed(framed) => Box::new(framed),
            Self::Other(codec) => codec,
        }
    }

    /// See [`Codec::name`].
    pub fn name(&self) -> &'static str {
        whichever!(self, codec => codec.name())
    }

    /// See [`Codec::end_of_stream`].
    pub fn end_of_stream(&mut self, now: Instant, actions: &mut dyn Actions) -> bool {
        whichever!(self, codec => codec.end_of_stream(now, actions))
    }

    /// See [`Codec::is_between_messages`].
    pub fn is_between_messages(&self) -> bool {
        whichever!(self, codec => codec.is_between_messages())
    }

    /// See [`Codec::owes`].
    pub fn owes(&self) -> bool {
        whichever!(self, codec => codec.owes())
    }

    /// See [`Codec::delivered`].
    pub fn delivered(&mut self, sequence: u64, now: Instant, actions: &mut dyn Actions) {
        whichever!(self, codec => codec.delivered(sequence, now, actions));
    }

    /// See [`Codec::reply`].
    pub fn reply<A: Actions>(
        &mut self,
        reply: Reply<'_>,
        now: Instant,
        actions: &mut A,
    ) -> Result<Sending, Unencodable> {
        whichever!(self, codec => codec.reply(reply, now, actions))
    }

    /// See [`Codec::close_asked`].
    pub fn close_asked(&mut self, headers: Headers<'_>) {
        whichever!(self, codec => codec.close_asked(headers));
    }

    /// See [`Codec::is_full`].
    pub fn is_full(&self) -> bool {
        whichever!(self, codec => codec.is_full())
    }

    /// See [`Codec::has_room`].
    pub fn has_room(&self) -> bool {
        whichever!(self, codec => codec.has_room())
    }

    /// See [`Codec::is_patient`].
    pub fn is_patient(&self) -> bool {
        whichever!(self, codec => codec.is_patient())
    }

    /// See [`Codec::obeys_close`].
    pub fn obeys_close(&self) -> bool {
        whichever!(self, codec => codec.obeys_close())
    }

    /// See [`Codec::lingers`].
    pub fn lingers(&self) -> bool {
        whichever!(self, codec => codec.lingers())
    }

    /// See [`Codec::farewell`].
    pub fn farewell(&mut self, reason: CloseReason, now: Instant, actions: &mut dyn Actions) {
        whichever!(self, codec => codec.farewell(reason, now, actions));
    }

    /// See [`Codec::ended`].
    pub fn ended(&mut self, reason: CloseReason, now: Instant, actions: &mut dyn Actions) {
        whichever!(self, codec => codec.ended(reason, now, actions));
    }

    /// See [`Codec::deadline`].
    pub fn deadline(&self) -> Option<Instant> {
        whichever!(self, codec => codec.deadline())
    }

    /// See [`Codec::elapsed`].
    pub fn elapsed(&mut self, now: Instant, actions: &mut dyn Actions) {
        whichever!(self, codec => codec.elapsed(now, actions));
    }

    /// See [`Codec::refused`].
    pub fn refused(
        &mut self,
        failure: DeliveryFailure,
        message: u64,
        now: Instant,
        actions: &mut dyn Actions,
    ) -> bool {
        whichever!(self, codec => codec.refused(failure, message, now, actions))
    }

    /// See [`Codec::sent`].
    pub fn sent(&mut self, now: Instant) -> bool {
        whichever!(self, codec => codec.sent(now))
    }

    /// See [`Codec::not_read`].
    pub fn not_read(&mut self, now: Instant) {
        whichever!(self, codec => codec.not_read(now));
    }

    /// See [`Codec::reads`].
    pub fn reads(&self) -> bool {
        whichever!(self, codec => codec.reads())
    }

    /// See [`Codec::kept_bytes`].
    pub fn kept_bytes(&self) -> usize {
        whichever!(self, codec => codec.kept_bytes())
    }
}
