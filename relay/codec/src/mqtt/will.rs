//! What is published when a client is gone.

use crate::Actions;
use millrace_model::HeaderList;

use super::packet::Message;
use super::reason::Reason;
use super::record;
use super::wire::Parsed;

/// A will, ready for its record but for its delay.
#[derive(Debug)]
pub(super) struct Will {
    headers: HeaderList,
    payload: Vec<u8>,
    delay_s: u32,
}

impl Will {
    pub(super) fn new(message: &Message<'_>, max_message_bytes: usize) -> Parsed<Self> {
        let mut headers = HeaderList::default();
        record::will(&mut headers);
        let fits = message.payload.len() <= max_message_bytes;
        if !fits || !record::describe(&mut headers, message.topic, message) {
            return Err(Reason::QUOTA_EXCEEDED);
        }
        let delay_s = message.properties.will_delay.unwrap_or(0);
        Ok(Self { headers, payload: message.payload.to_vec(), delay_s })
    }

    /// Whether it is to be published although the session has gone on at another connection: "If a new
    /// Network Connection to this Session is made before the Will Delay Interval has passed, the Server
    /// MUST NOT send the Will Message" (MQTT-3.1.3-9).
    pub(super) const fn survives_resumption(&self) -> bool {
        self.delay_s == 0
    }

    /// Makes a record of it. Its delay is over when the session ends, if that comes first
    /// (section 3.1.3.2.2).
    pub(super) fn publish(mut self, session_goes_on_s: u32, actions: &mut dyn Actions) -> u64 {
        record::will_delay(&mut self.headers, self.delay_s.min(session_goes_on_s));
        actions.message(self.headers.headers(), &self.payload)
    }

    /// Bytes kept in memory.
    pub(super) fn bytes(&self) -> usize {
        self.payload.len() + self.headers.headers().as_bytes().len()
    }
}
