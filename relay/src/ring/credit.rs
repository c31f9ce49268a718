//! How much of each partition may be under way between a client's socket and Kafka's
//! acknowledgement.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crossbeam_utils::CachePadded;

use crate::model::Partition;

/// What a message costs beside its payload, as counted here: its record's key and headers, and
/// librdkafka's own structures (about 0.5 KiB at 5 headers, measured with its mock broker). With the relay's own
/// producer a record takes about 166 bytes beside its payload (142 of them in the batch). It counts as much all the
/// same: with 256, short messages have a longer window and are delivered no faster, but the relay's user time grows by
/// a fifth, because records are out of the processor's cache when they are sent.
pub const MESSAGE_OVERHEAD_BYTES: usize = 512;

#[derive(Debug, Default)]
struct Account {
    used: AtomicUsize,
    /// All bytes ever that Kafka has acknowledged, modulo the largest number.
    acknowledged: AtomicUsize,
    waited_for: AtomicBool,
    /// Of `open` and `close` records.
    control: AtomicUsize,
}

/// A place in what is booked for a partition.
#[derive(Clone, Copy, Debug)]
pub struct Mark(usize);

/// Accounts of bytes per partition, so that a partition that does not drain stops its own clients
/// and nobody else's.
#[derive(Debug)]
pub struct Credit {
    accounts: Box<[CachePadded<Account>]>,
    limit: AtomicUsize,
}

impl Credit {
    /// Accounts for the partitions 0 to `partitions - 1`, each with the same limit in bytes.
    pub fn new(partitions: usize, limit: usize) -> Self {
        let accounts = (0..partitions).map(|_| CachePadded::default()).collect();
        Self { accounts, limit: AtomicUsize::new(limit) }
    }

    /// Sets another limit. What waits goes on when something is released next.
    pub fn set_limit(&self, limit: usize) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    fn limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }

    /// The number of partitions that have an account.
    pub(crate) fn partitions(&self) -> usize {
        self.accounts.len()
    }

    fn account(&self, partition: Partition) -> &Account {
        &self.accounts[partition.index()]
    }

    /// Books `bytes`, which have been read already; they may overdraw the account once. False if
    /// nothing more should be read for this partition.
    pub fn book(&self, partition: Partition, bytes: usize) -> bool {
        let account = self.account(partition);
        account.used.fetch_add(bytes, Ordering::Relaxed) + bytes < self.limit()
    }

    /// True when reading for this partition may go on: half of the limit is free again. False asks
    /// for [`release`](Self::release) to tell.
    pub fn may_resume(&self, partition: Partition) -> bool {
        let account = self.account(partition);
        let free = |account: &Account| account.used.load(Ordering::SeqCst) <= self.limit() / 2;
        if free(account) {
            return true;
        }
        account.waited_for.store(true, Ordering::SeqCst);
        free(account)
    }

    /// Returns `bytes`. True if somebody waits for this partition and should look again.
    pub fn release(&self, partition: Partition, bytes: usize) -> bool {
        let account = self.account(partition);
        let before = account.used.fetch_sub(bytes, Ordering::SeqCst);
        debug_assert!(before >= bytes, "more released than booked");
        before - bytes <= self.limit() / 2
            && account.waited_for.load(Ordering::SeqCst)
            && account.waited_for.swap(false, Ordering::SeqCst)
    }

    /// Says that of what is about to be released, so much was acknowledged.
    pub fn acknowledge(&self, partition: Partition, bytes: usize) {
        self.account(partition).acknowledged.fetch_add(bytes, Ordering::SeqCst);
    }

    /// What was booked until now.
    pub fn mark(&self, partition: Partition) -> Mark {
        let account = self.account(partition);
        // In this order, the other way round than they are written: what is acknowledged in between
        // counts twice, so that the mark is too far and not too near.
        let used = account.used.load(Ordering::SeqCst);
        Mark(account.acknowledged.load(Ordering::SeqCst).wrapping_add(used))
    }

    /// Whether Kafka has acknowledged all that was booked at the mark, or refused it for good. Reports
    /// come in the partition's order but for refusals, which do not count here: so it may be told
    /// late, when there is traffic, and never early.
    pub fn is_past(&self, partition: Partition, mark: Mark) -> bool {
        let account = self.account(partition);
        let ahead = account.acknowledged.load(Ordering::SeqCst).wrapping_sub(mark.0);
        ahead <= usize::MAX / 2 || account.used.load(Ordering::SeqCst) == 0
    }

    /// Books an `open` or `close` record. They have an account of their own beside that of messages, with
    /// the same limit: a partition that is busy takes new connections, one that hangs does so until the
    /// limit. A `close` is never refused, so that the account is overdrawn by no more than the
    /// connections that are open then.
    pub fn book_control(&self, partition: Partition, bytes: usize) {
        self.account(partition).control.fetch_add(bytes, Ordering::Relaxed);
    }

    /// True if a connection may begin.
    pub fn may_open(&self, partition: Partition) -> bool {
        self.account(partition).control.load(Ordering::Relaxed) < self.limit()
    }

    /// Returns what `open` and `close` records had.
    pub fn release_control(&self, partition: Partition, bytes: usize) {
        let before = self.account(partition).control.fetch_sub(bytes, Ordering::Relaxed);
        debug_assert!(before >= bytes, "more released than booked");
    }

    /// Bytes of `open` and `close` records under way for all partitions.
    pub fn control_used(&self) -> usize {
        self.accounts.iter().map(|account| account.control.load(Ordering::SeqCst)).sum()
    }

    /// Bytes under way for all partitions, each message with [`MESSAGE_OVERHEAD_BYTES`].
    pub fn used(&self) -> usize {
        self.accounts.iter().map(|account| account.used.load(Ordering::SeqCst)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_passed_by_what_was_booked_before_it_whatever_comes_after() {
        let (credit, partition) = (Credit::new(1, 1000), Partition(0));
        credit.book(partition, 30);
        let mark = credit.mark(partition);
        credit.book(partition, 500);
        let report = |bytes: usize, acknowledged: usize| {
            credit.acknowledge(partition, acknowledged);
            credit.release(partition, bytes);
        };
        report(20, 20);
        assert!(!credit.is_past(partition, mark));
        report(100, 0);
        assert!(!credit.is_past(partition, mark), "a refusal may be reported before its turn");
        report(10, 10);
        assert!(credit.is_past(partition, mark));
        let mark = credit.mark(partition);
        report(400, 0);
        assert!(credit.is_past(partition, mark), "nothing is under way");
    }

    #[test]
    fn connections_begin_until_as_many_records_of_them_wait_as_may() {
        let (credit, partition) = (Credit::new(2, 1000), Partition(0));
        credit.book(partition, 5000);
        assert!(credit.may_open(partition), "messages do not count");
        credit.book_control(partition, 1000);
        assert!(!credit.may_open(partition) && credit.may_open(Partition(1)));
        credit.book_control(partition, 500);
        credit.release_control(partition, 1000);
        assert!(credit.may_open(partition));
        assert_eq!((credit.control_used(), credit.used()), (500, 5000));
    }

    #[test]
    fn a_full_partition_waits_and_is_told() {
        let credit = Credit::new(2, 1000);
        let (full, other) = (Partition(0), Partition(1));
        assert!(credit.book(full, 999));
        assert!(!credit.book(full, 1));
        assert!(!credit.may_resume(full));
        assert!(credit.may_resume(other), "the other partition is not concerned");
        assert!(!credit.release(full, 499), "not yet half free");
        assert!(credit.release(full, 1), "half free: the waiting worker is told");
        assert!(!credit.release(full, 1), "once");
        assert!(credit.may_resume(full));
    }
}
