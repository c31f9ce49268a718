//! Empty batches, whose memory is used again.

use std::fmt;
use std::sync::Arc;

use crate::batch::Batch;

/// Most memory that is kept. It is this that is limited, and not the number of batches: of short ones there
/// are several for each partition, and to make one anew costs about as much as to write its few records.
const MOST_BYTES: usize = 64 << 20;

/// Empty batches.
#[derive(Default)]
pub(super) struct Spare {
    batches: Vec<Arc<Batch>>,
    /// Memory of all of them.
    bytes: usize,
}

impl Spare {
    /// An empty batch, which is a new one if none is there.
    pub(super) fn take(&mut self) -> Arc<Batch> {
        let Some(batch) = self.batches.pop() else { return Arc::default() };
        self.bytes -= batch.memory();
        batch
    }

    /// A batch that is not used any more, unless somebody else has it still. So much of its memory may
    /// stay.
    pub(super) fn put(&mut self, mut batch: Arc<Batch>, most_bytes: usize) {
        let Some(empty) = Arc::get_mut(&mut batch) else { return };
        empty.clear(most_bytes);
        let bytes = self.bytes + empty.memory();
        if bytes <= MOST_BYTES {
            self.bytes = bytes;
            self.batches.push(batch);
        }
    }
}

/// How many there are: there is nothing in them.
impl fmt::Debug for Spare {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (batches, bytes) = (self.batches.len(), self.bytes);
        formatter.debug_struct("Spare").field("batches", &batches).field("bytes", &bytes).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{Constant, Tag};

    fn batch(bytes: usize) -> Arc<Batch> {
        let mut batch = Batch::new();
        let tag = Tag { token: 0, booked_bytes: 0 };
        batch.push(-1, Constant::NONE, &vec![0; bytes], std::iter::empty(), tag);
        Arc::new(batch)
    }

    #[test]
    fn memory_is_limited() {
        let mut spare = Spare::default();
        for _ in 0..3 {
            spare.put(batch(MOST_BYTES / 2), MOST_BYTES / 2 - 1000);
        }
        assert_eq!(spare.batches.len(), 2, "there is no room for the third");
        assert!(spare.take().is_empty());
        spare.put(batch(MOST_BYTES), 1000);
        assert_eq!(spare.batches.len(), 2, "what it has too much is given back");
        (0..2).for_each(|_| drop(spare.take()));
        assert_eq!((spare.bytes, spare.batches.len()), (0, 0));
        assert_eq!(spare.take().memory(), Batch::new().memory(), "it is a new one");
    }

    #[test]
    fn what_somebody_has_is_not_used_again() {
        let (mut spare, shared) = (Spare::default(), batch(1));
        spare.put(shared.clone(), 1000);
        assert_eq!(spare.batches.len(), 0);
        assert_eq!(shared.count(), 1);
    }
}
