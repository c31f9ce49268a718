//! A partition's log, and what its brokers remember of producers, with the checks of Kafka's
//! `ProducerStateEntry` and `ProducerAppendInfo`.

use std::collections::{HashMap, HashSet, VecDeque};

use bytes::Bytes;

const OUT_OF_ORDER_SEQUENCE_NUMBER: i16 = 45;
const INVALID_PRODUCER_EPOCH: i16 = 47;
/// Batches of a producer that a broker remembers.
const REMEMBERED: usize = 5;

/// A batch that a client wants to have written.
#[derive(Clone, Debug)]
pub(crate) struct Incoming {
    pub(crate) producer: i64,
    pub(crate) epoch: i16,
    pub(crate) first: i32,
    pub(crate) values: Vec<Bytes>,
}

impl Incoming {
    fn last(&self) -> i32 {
        let others = i64::try_from(self.values.len()).expect("few") - 1;
        i32::try_from((i64::from(self.first) + others) % (1 << 31)).expect("31 bits")
    }
}

#[derive(Clone, Debug)]
struct Written {
    producer: i64,
    epoch: i16,
    first: i32,
    last: i32,
    offset: usize,
}

/// What is remembered of a producer.
#[derive(Debug)]
struct Entry {
    epoch: i16,
    last: i32,
    batches: VecDeque<Written>,
}

/// A partition's log; it survives changes of leaders.
#[derive(Debug, Default)]
pub(crate) struct Log {
    pub(crate) values: Vec<Bytes>,
    batches: Vec<Written>,
    producers: HashMap<i64, Entry>,
    /// Producers that may write no more.
    fenced: HashSet<i64>,
}

impl Log {
    /// The batch's offset, if it is there now or was before; or the error's code.
    pub(crate) fn append(&mut self, batch: &Incoming) -> Result<i64, i16> {
        if let Some(entry) = self.producers.get(&batch.producer) {
            let is_same = |of: &&Written| {
                of.epoch == batch.epoch && of.first == batch.first && of.last == batch.last()
            };
            if let Some(before) = entry.batches.iter().find(is_same) {
                return Ok(i64::try_from(before.offset).expect("small"));
            }
            if self.fenced.contains(&batch.producer) {
                return Err(INVALID_PRODUCER_EPOCH);
            }
            if batch.epoch < entry.epoch {
                return Err(INVALID_PRODUCER_EPOCH);
            }
            let follows = if batch.epoch > entry.epoch {
                batch.first == 0
            } else {
                batch.first == if entry.last == i32::MAX { 0 } else { entry.last + 1 }
            };
            if !follows {
                return Err(OUT_OF_ORDER_SEQUENCE_NUMBER);
            }
        }
        let offset = self.values.len();
        let Incoming { producer, epoch, first, .. } = *batch;
        let written = Written { producer, epoch, first, last: batch.last(), offset };
        self.values.extend(batch.values.iter().cloned());
        self.remember(written.clone());
        self.batches.push(written);
        Ok(i64::try_from(offset).expect("small"))
    }

    fn remember(&mut self, written: Written) {
        let entry = self.producers.entry(written.producer).or_insert_with(|| Entry {
            epoch: written.epoch,
            last: -1,
            batches: VecDeque::new(),
        });
        if entry.epoch != written.epoch {
            entry.batches.clear();
        }
        (entry.epoch, entry.last) = (written.epoch, written.last);
        entry.batches.push_back(written);
        if entry.batches.len() > REMEMBERED {
            entry.batches.pop_front();
        }
    }

    /// The last producer may write no more.
    pub(crate) fn fence(&mut self) {
        self.fenced.extend(self.batches.last().map(|last| last.producer));
    }

    /// An unclean election: the last batches are gone, and what is remembered is what the rest says. The
    /// last producer is not forgotten altogether: then brokers take anything, in any order.
    pub(crate) fn lose_tail(&mut self, batches: usize) {
        for _ in 0..batches {
            let [.., before, last] = &self.batches[..] else { break };
            if before.producer != last.producer {
                break;
            }
            self.values.truncate(last.offset);
            self.batches.pop();
        }
        self.producers.clear();
        for written in self.batches.clone() {
            self.remember(written);
        }
    }
}
