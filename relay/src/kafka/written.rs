//! How far the uplink's partitions are written, so that the ledger can tell a message that is missing
//! from one whose log is gone.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::model::Partition;

/// What this run has written to a partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct WrittenPart {
    /// Behind the last record that Kafka has acknowledged.
    pub end: i64,
    /// Messages acknowledged there, since the log is that one.
    pub messages: u64,
}

#[derive(Debug, Default)]
struct Part {
    end: AtomicI64,
    messages: AtomicU64,
}

/// What this run has written. One thread writes.
#[derive(Debug)]
pub struct Written {
    parts: Box<[Part]>,
    gone: AtomicU64,
}

impl Written {
    pub(crate) fn new(partitions: usize) -> Self {
        Self { parts: (0..partitions).map(|_| Part::default()).collect(), gone: AtomicU64::new(0) }
    }

    /// So many records were acknowledged, the first of them at this offset, if the broker has told it; either
    /// all are messages or none is. Offsets only grow, unless the topic was deleted and made again: what was
    /// acknowledged before is gone then.
    pub(crate) fn acknowledged(
        &self,
        partition: Partition,
        (offset, records): (i64, u32),
        are_messages: bool,
    ) {
        let Some(part) = self.parts.get(partition.index()) else { return };
        let add = |to: &AtomicU64, count| {
            to.store(to.load(Ordering::Relaxed) + count, Ordering::Release);
        };
        if offset >= 0 {
            if offset < part.end.load(Ordering::Relaxed) {
                let (before, most) =
                    (part.end.load(Ordering::Relaxed), part.messages.load(Ordering::Relaxed));
                tracing::error!(
                    %partition, before, offset, messages = most,
                    "a record was acknowledged at an offset that another record had: the cluster \
                     has lost what was acknowledged there (an unclean election, a broker without \
                     its data), or the topic was deleted and recreated. `relay ledger` counts the \
                     messages that are gone"
                );
                add(&self.gone, most);
                part.messages.store(0, Ordering::Release);
            }
            part.end.store(offset + i64::from(records), Ordering::Release);
        }
        add(&part.messages, if are_messages { records.into() } else { 0 });
    }

    /// Messages that were acknowledged in logs that are gone.
    pub fn gone(&self) -> u64 {
        self.gone.load(Ordering::Acquire)
    }

    /// Behind the last record that was acknowledged in a partition; 0: none was.
    pub fn end(&self, partition: Partition) -> i64 {
        self.parts.get(partition.index()).map_or(0, |part| part.end.load(Ordering::Acquire))
    }

    /// Partitions that were written, with their numbers.
    pub fn parts(&self) -> impl Iterator<Item = (u16, WrittenPart)> {
        let parts = (0..).zip(&self.parts).map(|(number, part)| {
            let (end, messages) = (&part.end, &part.messages);
            let (end, messages) = (end.load(Ordering::Acquire), messages.load(Ordering::Acquire));
            (number, WrittenPart { end, messages })
        });
        parts.filter(|(_, part)| part.end > 0)
    }
}

/// How far the topics of replies that wait and of dead letters are written.
#[derive(Debug, Default)]
pub struct LogEnds(Mutex<BTreeMap<String, LogEnd>>);

/// How far a topic is written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct LogEnd {
    /// By partition: behind the last record that Kafka has acknowledged.
    pub ends: BTreeMap<i32, i64>,
    /// It was deleted and made again since: what had been written before is gone.
    pub made_anew: bool,
}

impl LogEnds {
    /// A record was acknowledged at an offset. See [`Written`].
    pub(crate) fn acknowledged(&self, topic: &str, partition: i32, offset: i64) {
        if offset < 0 {
            return;
        }
        let mut topics = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !topics.contains_key(topic) {
            topics.insert(topic.to_owned(), LogEnd::default());
        }
        let Some(log) = topics.get_mut(topic) else { return };
        let end = log.ends.insert(partition, offset + 1);
        log.made_anew |= end.is_some_and(|end| offset < end);
    }

    /// By topic.
    pub fn all(&self) -> BTreeMap<String, LogEnd> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offset_that_goes_back_says_that_the_log_is_another() {
        let written = Written::new(3);
        let part = Partition(1);
        written.acknowledged(part, (5, 1), false);
        written.acknowledged(part, (6, 3), true);
        written.acknowledged(part, (-1, 1), true);
        let is = |end, messages| written.parts().eq([(1, WrittenPart { end, messages })]);
        assert!(is(9, 4) && written.gone() == 0);
        assert_eq!([1, 0, 9].map(|of| written.end(Partition(of))), [9, 0, 0]);
        written.acknowledged(part, (0, 2), true);
        assert!(is(2, 2) && written.gone() == 4);
    }

    #[test]
    fn so_it_does_for_other_topics() {
        let ends = LogEnds::default();
        for (partition, offset) in [(0, 4), (1, 0), (0, 5), (0, -1)] {
            ends.acknowledged("held", partition, offset);
        }
        let held = &ends.all()["held"];
        assert_eq!((held.ends[&0], held.ends[&1], held.made_anew), (6, 1, false));
        ends.acknowledged("held", 0, 0);
        let held = &ends.all()["held"];
        assert_eq!((held.ends[&0], held.made_anew), (1, true));
    }
}
