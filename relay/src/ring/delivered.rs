//! What has become of replies that waited for their client.

/// Replies of one delivery.
pub const DELIVERY_PARTS: usize = 256;

/// Some parts of a delivery.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parts([u64; DELIVERY_PARTS / 64]);

impl Parts {
    /// Adds one.
    pub fn add(&mut self, part: u32) {
        self.0[part as usize / 64] |= 1 << (part % 64);
    }

    /// Whether it is one of them.
    pub fn has(&self, part: u32) -> bool {
        self.0[part as usize / 64] & 1 << (part % 64) != 0
    }
}

/// What has become of a delivery: said once, when the end of every part is known or the connection
/// is over. Parts that are in neither set wait on, though they may have been sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivered {
    /// Which.
    pub delivery: u64,
    /// The client is done with these.
    pub sent: Parts,
    /// These cannot be sent to it.
    pub unencodable: Parts,
}

impl Delivered {
    /// The client is done with nothing of it.
    pub fn nothing(delivery: u64) -> Self {
        Self { delivery, sent: Parts::default(), unencodable: Parts::default() }
    }
}
