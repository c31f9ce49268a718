//! Whose record a report of librdkafka's is about.

use crate::model::{Headers, Identity, Kind};

/// Whose record a report is about, small enough to travel through librdkafka.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// Not a message but an `open` or `close` record.
    pub control: bool,
    /// The worker wants to know when Kafka has acknowledged it.
    pub acknowledge: bool,
    /// It has headers of its protocol, which are booked.
    pub weighed: bool,
    /// The worker, 7 bits.
    pub worker: u8,
    /// The slot, 22 bits.
    pub slot: u32,
    /// The user of the slot.
    pub generation: u32,
}

impl Token {
    pub(crate) fn pack(self) -> u64 {
        u64::from(self.control) << 63
            | u64::from(self.worker) << 56
            | u64::from(self.acknowledge) << 55
            | u64::from(self.weighed) << 54
            | u64::from(self.slot) << 32
            | u64::from(self.generation)
    }

    #[allow(clippy::cast_possible_truncation)]
    pub(crate) fn unpack(token: u64) -> Self {
        Self {
            control: token >> 63 == 1,
            worker: (token >> 56 & 0x7f) as u8,
            acknowledge: token >> 55 & 1 == 1,
            weighed: token >> 54 & 1 == 1,
            slot: (token >> 32 & 0x3f_ffff) as u32,
            generation: token as u32,
        }
    }
}

/// The token of a connection's record.
pub(crate) fn token(identity: &Identity, kind: Kind, headers: Headers<'_>) -> Token {
    Token {
        control: !kind.is_message(),
        acknowledge: identity.acknowledge && kind.is_message(),
        weighed: !headers.is_empty(),
        worker: identity.key.worker,
        slot: identity.key.slot,
        generation: identity.key.generation,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_token_survives_the_journey(
            (control, acknowledge, weighed) in any::<(bool, bool, bool)>(),
            worker in 0..128_u8,
            slot in 0..crate::config::MAX_CONNECTIONS,
            generation in any::<u32>(),
        ) {
            let token = Token { control, acknowledge, weighed, worker, slot, generation };
            prop_assert_eq!(Token::unpack(token.pack()), token);
        }
    }
}
