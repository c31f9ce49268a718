//! The memory of batches.

use std::fmt;

/// Bytes of a chunk. A partition with little traffic has one or two of them in use, and a full batch some
/// dozens.
pub const CHUNK_BYTES: usize = 16 << 10;

/// A piece of memory.
pub(super) type Chunk = Box<[u8; CHUNK_BYTES]>;

/// So many are kept in any case: 4 MiB.
const LEAST_KEPT: usize = 256;

/// Chunks that no batch has. Memory that was got is kept for as long as it is needed now and then: to give it
/// back and get it again costs more than to fill it, because the kernel clears it each time.
#[derive(Default)]
pub struct Chunks {
    /// The one that was used last is used first: it may be in the processor's cache.
    spare: Vec<Chunk>,
    /// So many were not needed since the last [trim](Self::trim).
    unneeded: usize,
}

impl Chunks {
    /// One of them, or a new one.
    pub(super) fn take(&mut self) -> Chunk {
        let Some(chunk) = self.spare.pop() else {
            let chunk = vec![0; CHUNK_BYTES].into_boxed_slice();
            return chunk.try_into().expect("it is as long as that");
        };
        self.unneeded = self.unneeded.min(self.spare.len());
        chunk
    }

    pub(super) fn put(&mut self, chunk: Chunk) {
        self.spare.push(chunk);
    }

    /// Gives those back that were not needed since the last time, but for a few.
    pub fn trim(&mut self) {
        let count = self.unneeded.min(self.spare.len().saturating_sub(LEAST_KEPT));
        self.spare.drain(..count);
        self.unneeded = self.spare.len();
    }

    /// Number of those that no batch has.
    pub fn count(&self) -> usize {
        self.spare.len()
    }
}

/// How many there are: what is in them means nothing.
impl fmt::Debug for Chunks {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (spare, unneeded) = (self.spare.len(), self.unneeded);
        formatter
            .debug_struct("Chunks")
            .field("spare", &spare)
            .field("unneeded", &unneeded)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_needed_stays_and_what_was_not_goes() {
        let mut chunks = Chunks::default();
        let use_at_once = |chunks: &mut Chunks, count| {
            let taken: Vec<_> = (0..count).map(|_| chunks.take()).collect();
            for chunk in taken {
                chunks.put(chunk);
            }
        };
        let many = 3 * LEAST_KEPT;
        use_at_once(&mut chunks, many);
        chunks.trim();
        assert_eq!(chunks.count(), many, "all were");
        use_at_once(&mut chunks, 2 * LEAST_KEPT);
        use_at_once(&mut chunks, 1);
        chunks.trim();
        assert_eq!(chunks.count(), 2 * LEAST_KEPT);
        chunks.trim();
        assert_eq!(chunks.count(), LEAST_KEPT, "there was nothing to do");
        chunks.trim();
        assert_eq!(chunks.count(), LEAST_KEPT);
    }
}
