//! Why a connection is not read from.
//!
//! A connection is paused while there is a [reason](Reasons) not to read from it. Each reason has a mark
//! at which a pause begins and one at which it may end:
//!
//! | reason | a pause begins | it may end | what has it looked at again |
//! |---|---|---|---|
//! | `OUTPUT` | more than `relay.reply_pause_bytes` wait for the client | half of that is left | a send was taken |
//! | `CODEC` | its codec [wants no more](crate::codec::Codec::reads) | it does again | its codec was called |
//! | `RATE` | more messages than `max_messages_per_second` | the time is over that the rate allows for them | its timer |
//! | `CREDIT` | `kafka.partition_in_flight_bytes` of its partition are under way | half of that is free | a wake-up by the account |
//! | `RING` | the ring to the producer is full | there is room | a wake-up by the ring |
//! | `MOVE` | it is about to go on at another server | it has, or stays where it is | the next [order](super::orders) |
//!
//! All but `MOVE` are bounds. A connection that was paused for one of them is read from again when none of
//! them is above the mark of its end: it may be just below that of another one's beginning.

use std::ops::BitOr;

/// Names of the bounds, in the order of their bits.
pub const BOUNDS: [&str; 5] = ["output", "codec", "rate", "credit", "ring"];

/// Why a connection is not read from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Reasons(u8);

impl Reasons {
    /// None: it is read from.
    pub(super) const NONE: Self = Self(0);
    /// Its client has not read what it was sent.
    pub(super) const OUTPUT: Self = Self(1);
    /// Its codec has as much as it takes.
    pub(super) const CODEC: Self = Self(1 << 1);
    /// It has sent more messages than it may.
    pub(super) const RATE: Self = Self(1 << 2);
    /// Too much is under way to its partition.
    pub(super) const CREDIT: Self = Self(1 << 3);
    /// The ring to the producer is full.
    pub(super) const RING: Self = Self(1 << 4);
    /// Its server may change.
    pub(super) const MOVE: Self = Self(1 << 5);

    /// What is nobody else's.
    pub(super) const OWN: Self = Self(Self::OUTPUT.0 | Self::CODEC.0 | Self::RATE.0);
    /// All but orders.
    pub(super) const BOUNDS: Self = Self(Self::OWN.0 | Self::CREDIT.0 | Self::RING.0);

    /// The place of the first of its bounds among [`BOUNDS`].
    pub(super) const fn first_bound(self) -> usize {
        let place = (self.0 & Self::BOUNDS.0).trailing_zeros() as usize;
        if place < BOUNDS.len() { place } else { BOUNDS.len() - 1 }
    }

    /// This one if it stands.
    #[inline]
    pub(super) const fn when(self, stands: bool) -> Self {
        if stands { self } else { Self::NONE }
    }

    /// True if there is none.
    #[inline]
    pub(super) const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// True if there is one of those.
    #[inline]
    pub(super) const fn has(self, some: Self) -> bool {
        self.0 & some.0 != 0
    }

    /// All but those.
    pub(super) const fn without(self, some: Self) -> Self {
        Self(self.0 & !some.0)
    }
}

impl BitOr for Reasons {
    type Output = Self;

    #[inline]
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}
