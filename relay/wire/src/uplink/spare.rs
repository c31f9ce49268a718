//! Memory that is used again: chunks, and batches without any.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::batch::{Batch, Chunks};

/// How long memory may be without use before it is given back.
const TRIM_INTERVAL: Duration = Duration::from_secs(10);
/// Most memory that batches keep for whose their records are. It is this that is limited, and not the number of
/// batches: of short ones there are several for each partition.
const MOST_BYTES: usize = 16 << 20;

/// What batches are made of.
#[derive(Default)]
pub(super) struct Spare {
    /// For records.
    pub(super) chunks: Chunks,
    batches: Vec<Arc<Batch>>,
    /// What all of those keep.
    bytes: usize,
    trimmed: Option<Instant>,
}

impl Spare {
    /// Has the records of an open batch, which is empty then.
    pub(super) fn close(&mut self, open: &mut Batch) -> Arc<Batch> {
        let mut batch = self.batches.pop().unwrap_or_default();
        self.bytes -= batch.kept_memory().min(self.bytes);
        let empty = Arc::get_mut(&mut batch).expect("nobody else has a spare one");
        std::mem::swap(empty, open);
        batch
    }

    /// A batch that is not used any more, unless somebody else has it still.
    pub(super) fn put(&mut self, mut batch: Arc<Batch>) {
        let Some(used) = Arc::get_mut(&mut batch) else { return };
        used.clear(&mut self.chunks);
        let bytes = self.bytes + used.kept_memory();
        if bytes <= MOST_BYTES {
            self.bytes = bytes;
            self.batches.push(batch);
        }
    }

    /// Gives back what was not needed for a while.
    pub(super) fn trim(&mut self, now: Instant) {
        let last = *self.trimmed.get_or_insert(now);
        if now.saturating_duration_since(last) >= TRIM_INTERVAL {
            self.trimmed = Some(now);
            self.chunks.trim();
        }
    }
}

/// How many there are: there is nothing in them.
impl fmt::Debug for Spare {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (batches, bytes) = (self.batches.len(), self.bytes);
        let mut spare = formatter.debug_struct("Spare");
        spare.field("chunks", &self.chunks).field("batches", &batches).field("bytes", &bytes);
        spare.finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{CHUNK_BYTES, Constant, Tag};

    fn closed(spare: &mut Spare, records: u64, bytes: usize) -> Arc<Batch> {
        let (mut batch, value) = (Batch::new(), vec![0; bytes]);
        for token in 0..records {
            let (tag, record) = (Tag { token, booked_bytes: 0 }, (-1, Constant::NONE, &value[..]));
            batch.push((&mut spare.chunks, usize::MAX), record, &std::iter::empty(), tag);
        }
        let closed = spare.close(&mut batch);
        assert!(batch.is_empty());
        closed
    }

    #[test]
    fn memory_is_used_again() {
        let mut spare = Spare::default();
        let batch = closed(&mut spare, 3, CHUNK_BYTES);
        let (count, address) = (batch.pieces().count(), Arc::as_ptr(&batch));
        spare.put(batch);
        assert_eq!(spare.chunks.count(), count);
        let again = closed(&mut spare, 3, CHUNK_BYTES);
        assert_eq!((spare.chunks.count(), Arc::as_ptr(&again)), (0, address));
        assert_eq!(again.count(), 3);
    }

    #[test]
    fn what_batches_keep_is_limited() {
        let mut spare = Spare::default();
        let mut kept = Vec::new();
        let large = MOST_BYTES as u64 / 60;
        for _ in 0..4 {
            kept.push(closed(&mut spare, large, 0));
        }
        for batch in kept {
            spare.put(batch);
        }
        assert!(spare.bytes <= MOST_BYTES, "{} bytes", spare.bytes);
        let count = spare.batches.len();
        assert!((1..4).contains(&count), "{count} of them");
        (0..count).for_each(|_| drop(closed(&mut spare, 1, 0)));
        assert_eq!((spare.bytes, spare.batches.len()), (0, 0));
    }

    #[test]
    fn what_is_not_needed_is_given_back_after_a_while() {
        let (mut spare, now) = (Spare::default(), Instant::now());
        let batch = closed(&mut spare, 1000, CHUNK_BYTES);
        spare.put(batch);
        let all = spare.chunks.count();
        spare.trim(now);
        spare.trim(now + TRIM_INTERVAL);
        assert_eq!(spare.chunks.count(), all, "it was needed");
        spare.trim(now + TRIM_INTERVAL + TRIM_INTERVAL / 2);
        assert_eq!(spare.chunks.count(), all, "too early");
        spare.trim(now + TRIM_INTERVAL * 2);
        assert!(spare.chunks.count() < all);
    }

    #[test]
    fn what_somebody_has_is_not_used_again() {
        let mut spare = Spare::default();
        let shared = closed(&mut spare, 1, 1);
        spare.put(shared.clone());
        assert_eq!((spare.batches.len(), spare.chunks.count()), (0, 0));
        assert_eq!(shared.count(), 1);
    }
}
