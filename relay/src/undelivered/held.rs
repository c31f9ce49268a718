//! Replies that wait for clients who are away: the fold of the topic `held`, without I/O. Payloads
//! stay in Kafka.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use crate::model::RelayId;
use crate::undelivered::deadletter::{Reason, Sender};
use crate::undelivered::limits::HoldLimits;

/// What an entry is counted as beside its value: its place here, and its record's key and headers.
const ENTRY_BYTES: u64 = 128;

/// Names of the headers that a record of the topic has beside the reply's own.
pub(crate) mod held_header {
    use std::ffi::CStr;

    /// `reply`, or `delivered`: a mark whose value lists offsets of this partition, in decimal, with
    /// commas between.
    pub(crate) const KIND: &CStr = c"millrace.kind";
    /// The relay that held it: its number and its start in Unix milliseconds.
    pub(crate) const RELAY: &CStr = c"millrace.relay";
    /// The offset that it had in that relay's downlink.
    pub(crate) const OFFSET: &CStr = c"millrace.offset";
    /// How long it had waited at that relay before, in milliseconds.
    pub(crate) const WAITED: &CStr = c"millrace.waited_ms";
}

crate::model::reasons! {
    /// Why a record of the topic counts for nothing.
    HeldRefusal {
        /// The key is not `SERVICE/IDENTITY` of a service that holds replies here.
        MalformedKey = "malformed_key",
        /// Neither a reply nor a mark.
        UnknownKind = "unknown_kind",
        /// A mark whose value is no list of offsets.
        MalformedMark = "malformed_mark",
        /// A reply that does not say which relay has held it.
        MalformedRelay = "malformed_relay",
        /// It cannot be read: its batch is compressed in a way that the relay does not know, or damaged.
        Unreadable = "unreadable",
    }
}

/// A reply that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) bytes: u64,
    unix_ms: i64,
    writer: RelayId,
    /// On its way to the dead letters.
    leaving: bool,
}

#[derive(Debug, Default)]
struct Client {
    /// In the log's order.
    entries: VecDeque<Entry>,
    /// Replies that this relay has written and not read back yet.
    coming: usize,
}

/// A record of the topic.
pub(crate) struct Record<'a> {
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) unix_ms: i64,
    pub(crate) kind: Option<&'a [u8]>,
    pub(crate) relay: Option<&'a [u8]>,
    pub(crate) value: &'a [u8],
}

/// All replies that wait, by the client's `SERVICE/IDENTITY`.
#[derive(Debug)]
pub(crate) struct HeldIndex {
    limits: HoldLimits,
    own: Sender,
    own_id: RelayId,
    clients: HashMap<String, Client>,
    /// Of all clients.
    replies: u64,
    bytes: u64,
}

impl Entry {
    /// How long it has waited, in milliseconds of the broker's clock.
    pub(crate) fn age_ms(&self, now_unix_ms: i64) -> u64 {
        u64::try_from(now_unix_ms.saturating_sub(self.unix_ms)).unwrap_or_default()
    }
}

impl HeldIndex {
    pub(crate) fn new(limits: HoldLimits, own_id: RelayId, own: Sender) -> Self {
        Self { limits, own, own_id, clients: HashMap::new(), replies: 0, bytes: 0 }
    }

    /// Takes a record of the log; the holder has been checked.
    pub(crate) fn apply(&mut self, holder: &str, record: &Record<'_>) -> Result<(), HeldRefusal> {
        match record.kind {
            Some(b"reply") => self.apply_reply(holder, record),
            Some(b"delivered") => {
                let offsets = parse_offsets(record.value).ok_or(HeldRefusal::MalformedMark)?;
                self.remove(holder, record.partition, &offsets);
                Ok(())
            }
            _ => Err(HeldRefusal::UnknownKind),
        }
    }

    fn apply_reply(&mut self, holder: &str, record: &Record<'_>) -> Result<(), HeldRefusal> {
        let relay = record.relay.and_then(|relay| std::str::from_utf8(relay).ok());
        let relay = relay.ok_or(HeldRefusal::MalformedRelay)?;
        let writer = relay.split_once('-').and_then(|(id, _)| id.parse().ok()).map(RelayId);
        let writer = writer.ok_or(HeldRefusal::MalformedRelay)?;
        let bytes = record.value.len() as u64;
        let client = self.clients.entry(holder.to_owned()).or_default();
        if relay == self.own.as_str() {
            client.coming = client.coming.saturating_sub(1);
        } else {
            self.bytes += bytes + ENTRY_BYTES;
        }
        self.replies += 1;
        client.entries.push_back(Entry {
            partition: record.partition,
            offset: record.offset,
            bytes,
            unix_ms: record.unix_ms,
            writer,
            leaving: false,
        });
        Ok(())
    }

    /// The limits, which may change at any time.
    pub(crate) fn limits(&self) -> HoldLimits {
        self.limits.clone()
    }

    /// How long a reply may wait.
    pub(crate) fn max_age(&self) -> Duration {
        self.limits.age_ms.milliseconds()
    }

    /// Whether one more reply of so many bytes may be held; if so, it is counted.
    pub(crate) fn admit(&mut self, holder: &str, bytes: usize) -> Result<(), Reason> {
        let (bytes, limits) = (bytes as u64 + ENTRY_BYTES, &self.limits);
        let held =
            self.clients.get(holder).map_or(0, |client| client.entries.len() + client.coming);
        if held as u64 >= limits.per_client.get() || self.bytes + bytes > limits.bytes.get() {
            return Err(Reason::HoldLimit);
        }
        self.bytes += bytes;
        self.clients.entry(holder.to_owned()).or_default().coming += 1;
        Ok(())
    }

    /// What was admitted is not in the log after all.
    pub(crate) fn withdraw(&mut self, holder: &str, bytes: usize) {
        self.bytes = self.bytes.saturating_sub(bytes as u64 + ENTRY_BYTES);
        if let Some(client) = self.clients.get_mut(holder) {
            client.coming = client.coming.saturating_sub(1);
        }
        self.forget_if_empty(holder);
    }

    /// Where the first reply of a client is.
    pub(crate) fn partition(&self, holder: &str) -> Option<i32> {
        let first = self.clients.get(holder)?.entries.iter().find(|entry| !entry.leaving)?;
        Some(first.partition)
    }

    /// The first replies of a client, all of one partition, of at most so many bytes; one may be
    /// larger.
    pub(crate) fn first(&self, holder: &str, most: usize, most_bytes: u64) -> Vec<Entry> {
        let Some(client) = self.clients.get(holder) else { return Vec::new() };
        let mut bytes = 0;
        let mut here = client.entries.iter().filter(|entry| !entry.leaving).copied().peekable();
        let partition = here.peek().map(|entry| entry.partition);
        here.take(most)
            .take_while(|entry| {
                let first = bytes == 0;
                bytes += entry.bytes + 1;
                Some(entry.partition) == partition && (first || bytes <= most_bytes)
            })
            .collect()
    }

    /// Takes replies out that were delivered, or are elsewhere now. Others are left alone.
    pub(crate) fn remove(&mut self, holder: &str, partition: i32, offsets: &[i64]) {
        let Some(client) = self.clients.get_mut(holder) else { return };
        let (mut freed, before) = (0, client.entries.len());
        client.entries.retain(|entry| {
            // Marks list offsets in order, as this does.
            let gone = entry.partition == partition && offsets.binary_search(&entry.offset).is_ok();
            freed += if gone { entry.bytes + ENTRY_BYTES } else { 0 };
            !gone
        });
        self.replies -= (before - client.entries.len()) as u64;
        self.bytes = self.bytes.saturating_sub(freed);
        self.forget_if_empty(holder);
    }

    fn forget_if_empty(&mut self, holder: &str) {
        if self.clients.get(holder).is_some_and(|it| it.entries.is_empty() && it.coming == 0) {
            self.clients.remove(holder);
        }
    }

    /// A reply goes to the dead letters, and to no client any more.
    pub(crate) fn leave(&mut self, holder: &str, leaving: &Entry) {
        let client = self.clients.get_mut(holder);
        let same = |entry: &&mut Entry| {
            (entry.partition, entry.offset) == (leaving.partition, leaving.offset)
        };
        if let Some(entry) = client.and_then(|client| client.entries.iter_mut().find(same)) {
            entry.leaving = true;
        }
    }

    /// Replies that have waited for too long, marked as leaving. Their own relay sees to them; if it
    /// has not by twice the time, any other does.
    pub(crate) fn take_expired(
        &mut self,
        now_unix_ms: i64,
        most: usize,
        is_busy: impl Fn(&str) -> bool,
    ) -> Vec<(String, Entry)> {
        let own = self.own_id;
        let age = i64::try_from(self.limits.age_ms.get()).unwrap_or(i64::MAX);
        let expired = |entry: &&mut Entry| {
            let waited = now_unix_ms.saturating_sub(entry.unix_ms);
            let patience = if entry.writer == own { age } else { age.saturating_mul(2) };
            !entry.leaving && waited > patience
        };
        let mut taken = Vec::new();
        for (holder, client) in self.clients.iter_mut().filter(|(holder, _)| !is_busy(holder)) {
            if taken.len() >= most {
                break;
            }
            for entry in client.entries.iter_mut().filter(expired).take(most - taken.len()) {
                entry.leaving = true;
                taken.push((holder.clone(), *entry));
            }
        }
        taken
    }

    /// Bytes of the replies that wait, as they are counted against the limit.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Replies that wait, and of how many clients.
    pub(crate) fn size(&self) -> (u64, u64) {
        (self.replies, self.clients.len() as u64)
    }
}

/// The value of a mark.
pub(crate) fn print_offsets(offsets: &[i64]) -> String {
    let texts: Vec<String> = offsets.iter().map(i64::to_string).collect();
    texts.join(",")
}

/// The inverse, for any order.
fn parse_offsets(value: &[u8]) -> Option<Vec<i64>> {
    let text = std::str::from_utf8(value).ok()?;
    let mut offsets: Vec<i64> = text.split(',').map(str::parse).collect::<Result<_, _>>().ok()?;
    offsets.sort_unstable();
    Some(offsets)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::HoldSection;
    use crate::model::Incarnation;

    fn index(max_per_client: u32, max_bytes: u64) -> HeldIndex {
        let limits = HoldSection { max_per_client, max_bytes, max_age_ms: 1000 };
        HeldIndex::new((&limits).into(), RelayId(3), Sender::new(RelayId(3), Incarnation::new(9)))
    }

    #[test]
    fn limits_may_change_at_any_time() {
        let mut index = index(1, 1 << 20);
        assert_eq!(index.admit("a", 1), Ok(()));
        assert_eq!(index.admit("a", 1), Err(Reason::HoldLimit));
        let more = HoldSection { max_age_ms: 5000, max_per_client: 2, max_bytes: 1 << 20 };
        index.limits().set(&more);
        assert_eq!(index.admit("a", 1), Ok(()));
        assert_eq!(index.max_age(), Duration::from_secs(5));
        index.limits().set(&HoldSection { max_bytes: 0, ..more });
        assert_eq!(index.admit("b", 1), Err(Reason::HoldLimit));
    }

    fn record<'a>(offset: i64, kind: &'a [u8], relay: &'a [u8], value: &'a [u8]) -> Record<'a> {
        let (kind, relay) = (Some(kind), Some(relay));
        Record { partition: 1, offset, unix_ms: offset, kind, relay, value }
    }

    fn offsets(index: &HeldIndex) -> Vec<i64> {
        index.first("chat/a", 100, 1 << 20).iter().map(|entry| entry.offset).collect()
    }

    #[test]
    fn replies_wait_in_order_until_they_are_marked() {
        let mut index = index(10, 1 << 20);
        for offset in [2, 5, 7] {
            index.apply("chat/a", &record(offset, b"reply", b"4-1", b"value")).unwrap();
        }
        assert_eq!(offsets(&index), [2, 5, 7]);
        assert_eq!(index.first("chat/a", 2, 1 << 20).len(), 2);
        assert_eq!(index.first("chat/a", 9, 1).len(), 1, "one at least");
        index.apply("chat/a", &record(8, b"delivered", b"", b"7,2,99")).unwrap();
        assert_eq!(offsets(&index), [5]);
        index.apply("chat/a", &record(9, b"delivered", b"", b"5")).unwrap();
        assert_eq!((index.size(), index.bytes), ((0, 0), 0));
    }

    /// What is told of the size is kept, not counted anew at each look.
    #[test]
    fn the_size_is_that_of_what_waits() {
        let mut index = index(100, 1 << 20);
        let counted = |index: &HeldIndex| {
            let replies = index.clients.values().map(|client| client.entries.len() as u64).sum();
            (replies, index.clients.len() as u64)
        };
        for offset in 0..100 {
            let holder = format!("chat/{}", offset % 7);
            index.apply(&holder, &record(offset, b"reply", b"4-1", b"value")).unwrap();
            if offset % 3 == 0 {
                let mark = format!("{},{}", offset, offset - 7);
                index.apply(&holder, &record(offset, b"delivered", b"", mark.as_bytes())).unwrap();
                index.remove(&holder, 1, &[offset]);
            }
            assert_eq!(index.size(), counted(&index));
        }
        assert_ne!(index.size(), (0, 0));
    }

    #[test]
    fn no_more_expire_at_a_look_than_may() {
        let mut index = index(100, 1 << 20);
        for offset in 0..20 {
            let holder = format!("chat/{offset}");
            index.apply(&holder, &record(offset, b"reply", b"3-1", b"value")).unwrap();
        }
        let mut taken = Vec::new();
        while taken.len() < 20 {
            let more = index.take_expired(100_000, 3, |_| false);
            assert!((1..=3).contains(&more.len()));
            taken.extend(more);
        }
        assert!(index.take_expired(100_000, 3, |_| false).is_empty());
    }

    #[test]
    fn what_is_being_written_counts_and_what_was_not_written_does_not() {
        let mut index = index(2, 1 << 20);
        index.admit("chat/a", 5).unwrap();
        index.admit("chat/a", 5).unwrap();
        assert_eq!(index.admit("chat/a", 5), Err(Reason::HoldLimit));
        index.withdraw("chat/a", 5);
        index.apply("chat/a", &record(1, b"reply", b"3-9", b"value")).unwrap();
        index.admit("chat/a", 5).unwrap();
        assert_eq!(index.admit("chat/a", 5), Err(Reason::HoldLimit));
        index.admit("chat/b", 5).unwrap();
    }

    #[test]
    fn all_clients_together_have_a_bound() {
        let mut index = index(100, 3 * (ENTRY_BYTES + 5));
        for holder in ["chat/a", "chat/b", "chat/c"] {
            index.admit(holder, 5).unwrap();
        }
        assert_eq!(index.admit("chat/d", 5), Err(Reason::HoldLimit));
        index.apply("chat/a", &record(1, b"reply", b"3-9", b"value")).unwrap();
        assert_eq!(index.admit("chat/d", 5), Err(Reason::HoldLimit));
        index.remove("chat/a", 1, &[1]);
        index.admit("chat/d", 5).unwrap();
    }

    #[test]
    fn the_relay_that_held_a_reply_sees_to_its_age_first() {
        let mut index = index(10, 1 << 20);
        index.apply("chat/a", &record(1, b"reply", b"3-1", b"own")).unwrap();
        index.apply("chat/a", &record(2, b"reply", b"4-1", b"other's")).unwrap();
        assert!(index.take_expired(1001, 10, |_| false).is_empty());
        let taken = |index: &mut HeldIndex, now| {
            let taken = index.take_expired(now, 10, |_| false);
            taken.iter().map(|(_, entry)| entry.offset).collect::<Vec<_>>()
        };
        assert_eq!(taken(&mut index, 1500), [1]);
        assert_eq!(offsets(&index), [2], "what leaves is not delivered");
        assert_eq!(taken(&mut index, 2003), [2]);
    }

    proptest! {
        #[test]
        fn nonsense_is_refused(
            kind in prop_oneof![Just(b"reply".to_vec()), Just(b"delivered".to_vec()), any::<Vec<u8>>()],
            relay: Vec<u8>,
            value: Vec<u8>,
        ) {
            let mut index = index(10, 1 << 20);
            let before = index.size();
            if index.apply("chat/a", &record(1, &kind, &relay, &value)).is_err() {
                prop_assert_eq!(index.size(), before);
            }
        }
    }
}
