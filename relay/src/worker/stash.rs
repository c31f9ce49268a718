//! What was received of a connection before its pause took effect.
//!
//! A turn may bring as much as all buffers of the engine hold, and a pause in its midst concerns the rest of
//! it. That stays in the buffers, so that it is not copied, into memory that would have to be got for it and
//! given back. The buffers are there for all connections, though: small pieces are copied, and so is all when
//! no more than the [reserve] is left.

use std::collections::VecDeque;
use std::ops::Range;

use crate::config::RelaySection;
use crate::engine::{BufferId, reserve};

/// A buffer that is filled to less than this part is emptied: to copy little is cheaper than to be without the
/// buffer.
const WORTH_A_BUFFER: usize = 8;

/// What waits of one connection.
#[derive(Debug, Default)]
pub(super) struct Stash {
    /// Buffers of the engine, and what of them is not decoded.
    pub(super) lent: VecDeque<(BufferId, Range<usize>)>,
    /// What came after those.
    pub(super) copied: Vec<u8>,
    /// So much of that is decoded.
    pub(super) taken: usize,
    /// All bytes that wait.
    pub(super) length: usize,
}

/// The stashes of a worker that are nobody's, and what all have together.
#[derive(Debug)]
pub(super) struct Stashes {
    #[expect(clippy::vec_box, reason = "as connections have them: an idle one is small")]
    pub(super) spare: Vec<Box<Stash>>,
    /// Buffers of the engine in all stashes.
    pub(super) lent: usize,
    pub(super) most_lent: usize,
    /// Bytes in a buffer that are worth it.
    pub(super) worth: usize,
}

impl Stashes {
    /// For an engine with these buffers.
    pub(super) fn new(limits: &RelaySection) -> Self {
        let buffers = limits.receive_buffers;
        Self {
            spare: Vec::new(),
            lent: 0,
            most_lent: usize::from(buffers - reserve(buffers)),
            worth: limits.receive_buffer_bytes as usize / WORTH_A_BUFFER,
        }
    }
}
