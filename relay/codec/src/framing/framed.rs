//! Plain framing as a codec.

use std::time::Instant;

use crate::{Actions, Codec, Sending, Unencodable};
use millrace_model::{Begin, CloseReason, Headers, Reply};

use super::{DecodeError, Decoder, Framing};

/// A connection whose bytes are messages and nothing else.
#[derive(Debug)]
pub struct Framed {
    framing: Framing,
    max_message_bytes: u32,
    decoder: Decoder,
}

impl Framed {
    /// At the beginning of a stream.
    pub fn new(framing: Framing, max_message_bytes: u32) -> Self {
        Self { framing, max_message_bytes, decoder: Decoder::new(framing, max_message_bytes) }
    }

    /// There is nothing to wait for: a client is who it is when it connects. False if it is refused.
    pub fn begin(&self, actions: &mut dyn Actions) -> bool {
        let protocol = self.framing.name();
        match actions.begin(Begin { protocol, holds: true, ..Begin::default() }) {
            Ok(()) => true,
            Err(refusal) => {
                actions.close(refusal.into());
                false
            }
        }
    }

    /// [`Codec::receive`], for actions whose type is known.
    pub fn take<A: Actions + ?Sized>(&mut self, input: &[u8], actions: &mut A) {
        let decoded = self.decoder.decode(input, |message| {
            actions.message(Headers::NONE, message);
        });
        if decoded.is_err() {
            actions.close(CloseReason::OversizedMessage);
        }
    }
}

impl Codec for Framed {
    fn name(&self) -> &'static str {
        self.framing.name()
    }

    fn receive(&mut self, input: &[u8], _now: Instant, actions: &mut dyn Actions) {
        self.take(input, actions);
    }

    fn end_of_stream(&mut self, _now: Instant, actions: &mut dyn Actions) -> bool {
        let ended = self.decoder.end(|message| {
            actions.message(Headers::NONE, message);
        });
        match ended {
            Ok(()) => true,
            Err(DecodeError::Truncated { .. }) => false,
            Err(DecodeError::Oversized { .. }) => {
                actions.close(CloseReason::OversizedMessage);
                true
            }
        }
    }

    fn is_between_messages(&self) -> bool {
        self.decoder.finish().is_ok()
    }

    fn reply(
        &mut self,
        reply: Reply<'_>,
        _now: Instant,
        actions: &mut dyn Actions,
    ) -> Result<Sending, Unencodable> {
        self.framing
            .encode(self.max_message_bytes, reply.payload, actions.output())
            .map(|()| Sending::WithOutput)
            .map_err(|_| Unencodable)
    }

    fn kept_bytes(&self) -> usize {
        self.decoder.kept_bytes()
    }
}
