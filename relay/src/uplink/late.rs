//! Messages that came too late: acknowledged by Kafka when their partition was another server's already,
//! which ignores them.
//!
//! No clock can keep them away. A relay that was cut off has records in its client of Kafka, and they are
//! written when the brokers are there again; one whose virtual machine was paused, and its clocks with
//! it, does not know that it was. So it is found out afterwards, by the order of the logs alone: a record
//! that was acknowledged before this relay wrote a word to the registry stands in its partition before
//! that word stands there. If the lease is in force where the relay reads its word back, whoever is to
//! lease the partition anew looks at it later still, and finds the record. If it is not, what this relay
//! has written behind the beginning of the next lease is read again, and becomes a dead letter.
//!
//! [`Lateness`] is the bookkeeping, without I/O; [`Rescue`] reads and writes.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, SendError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::message::{BorrowedMessage, Message as _};

use crate::config::Config;
use crate::kafka::inspect::{header_text, record_origin};
use crate::model::{Incarnation, Partition, RelayId};
use crate::undelivered::Undertaker;
use crate::uplink::leases::Leases;

/// How long the rescue may go on when the relay stops.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// Between two tries, and two looks whether the relay stops.
const PAUSE: Duration = Duration::from_millis(200);
/// Most offsets that are read for one answer.
const CHUNK: i64 = 10_000;

/// Offsets in a partition, first and last.
type Span = Option<(i64, i64)>;

fn join(span: Span, other: Span) -> Span {
    match (span, other) {
        (Some((low, high)), Some((other_low, other_high))) => {
            Some((low.min(other_low), high.max(other_high)))
        }
        (span, other) => span.or(other),
    }
}

/// What the relay has written to a partition.
#[derive(Clone, Debug, Default)]
struct Written {
    /// Records given to Kafka's client.
    produced: u64,
    /// Of those, such as have their report.
    reported: u64,
    /// The last change of holders that was taken into account, by its epoch.
    seen: u64,
    /// Until then reports may be of records for a former holder.
    late_until: u64,
    /// Where the first lease begins that is not theirs.
    late_from: i64,
    /// Those that were reported before the last cut.
    reported_at_cut: u64,
    /// Acknowledged since the last cut.
    fresh: Span,
    /// Acknowledged before it.
    cut: Span,
}

/// Where this relay's records are that may have come too late. Constant work for a report.
#[derive(Debug)]
pub(crate) struct Lateness {
    partitions: Box<[Written]>,
    /// Those with a span.
    touched: Vec<Partition>,
    /// The word that tells about what was cut.
    word: u64,
}

impl Lateness {
    pub(crate) fn new(partitions: usize) -> Self {
        let partitions = vec![Written::default(); partitions].into_boxed_slice();
        Self { touched: Vec::with_capacity(partitions.len()), partitions, word: 0 }
    }

    /// A record was given to Kafka's client.
    pub(crate) fn produced(&mut self, partition: Partition) {
        self.partitions[partition.index()].produced += 1;
    }

    /// So many have their report; with an offset, which is the first one's, they were acknowledged.
    pub(crate) fn reported(&mut self, partition: Partition, records: u32, offset: Option<i64>) {
        let Some(written) = self.partitions.get_mut(partition.index()) else { return };
        written.reported += u64::from(records);
        if let Some(offset) = offset {
            if written.fresh.is_none() && written.cut.is_none() {
                self.touched.push(partition);
            }
            let last = offset + i64::from(records.max(1)) - 1;
            written.fresh = join(written.fresh, Some((offset, last)));
        }
    }

    /// Judges what was acknowledged before the last word that this relay has read back. `late` gets what
    /// is to be looked through.
    pub(crate) fn judge(
        &mut self,
        leases: &Leases,
        mut late: impl FnMut(Partition, RangeInclusive<i64>),
    ) {
        if leases.words_known() < self.word {
            return;
        }
        let partitions = &mut self.partitions;
        self.touched.retain(|partition| {
            let written = &mut partitions[partition.index()];
            if let Some((low, high)) = written.judge(*partition, leases) {
                late(*partition, low..=high);
            }
            written.cut = join(written.cut.take(), written.fresh.take());
            written.reported_at_cut = written.reported;
            written.cut.is_some()
        });
        self.word = leases.words_begun() + 1;
    }

    /// Judges the rest by what is known: no word more will be read back.
    pub(crate) fn finish(
        &mut self,
        leases: &Leases,
        mut late: impl FnMut(Partition, RangeInclusive<i64>),
    ) {
        for partition in self.touched.drain(..) {
            let written = &mut self.partitions[partition.index()];
            written.cut = join(written.cut.take(), written.fresh.take());
            if let Some((low, high)) = written.judge(partition, leases) {
                late(partition, low..=high);
            }
        }
    }
}

impl Written {
    /// What of it is to be looked through; it stays as it is while nobody has the partition.
    fn judge(&mut self, partition: Partition, leases: &Leases) -> Span {
        if !leases.is_in_force(partition) {
            return None;
        }
        if let Some(from) = leases.change_after(partition, self.seen) {
            // What is on its way may be for a former holder too, and for one before it.
            let is_late = self.late_until > self.reported_at_cut;
            self.late_from = if is_late { self.late_from.min(from) } else { from };
            self.late_until = self.produced;
            self.seen = leases.last_change(partition);
        }
        let (low, high) = self.cut.take()?;
        let is_late = self.late_until > 0 && high >= self.late_from;
        if self.late_until <= self.reported_at_cut {
            self.late_until = 0;
        }
        is_late.then(|| (low.max(self.late_from), high))
    }
}

/// What is to be looked through.
type Task = (Partition, RangeInclusive<i64>);

/// Calls the rescue's body on its thread; that it returns before the relay stops is a fault.
pub(crate) type RescueWatch = Arc<dyn Fn(&mut dyn FnMut()) + Send + Sync>;

/// Writes to the dead letters what came too late; on a thread of its own, which begins when there is
/// something to look through.
pub(crate) struct Rescue {
    config: Config,
    letter_batch_bytes: Option<u32>,
    leases: Arc<Leases>,
    work: Option<(Sender<Task>, JoinHandle<()>)>,
    stop: Arc<AtomicBool>,
    watch: RescueWatch,
}

impl Rescue {
    /// `letter_batch_bytes`: the longest batch that the topic of dead letters takes, if that is known.
    pub(crate) fn new(
        config: &Config,
        letter_batch_bytes: Option<u32>,
        leases: Arc<Leases>,
        watch: RescueWatch,
    ) -> Self {
        let (config, stop) = (config.clone(), Arc::default());
        Self { config, letter_batch_bytes, leases, work: None, stop, watch }
    }

    /// Looks through what this run of the relay has written there.
    pub(crate) fn look_through(
        &mut self,
        incarnation: Incarnation,
        partition: Partition,
        offsets: RangeInclusive<i64>,
    ) {
        if self.work.is_none() {
            let (sender, work) = mpsc::channel();
            let searcher = Searcher {
                config: self.config.clone(),
                undertaker: Undertaker::new(&self.config, incarnation, self.letter_batch_bytes),
                leases: Arc::clone(&self.leases),
                incarnation,
                stop: Arc::clone(&self.stop),
            };
            let watch = Arc::clone(&self.watch);
            let body = move || watch(&mut || searcher.run(&work));
            match std::thread::Builder::new().name("late".to_owned()).spawn(body) {
                Ok(thread) => self.work = Some((sender, thread)),
                Err(error) => return tell_left((partition, offsets), &error.to_string()),
            }
        }
        if let Some((sender, _)) = &self.work
            && let Err(SendError(task)) = sender.send((partition, offsets))
        {
            tell_left(task, "its thread has ended");
        }
    }
}

/// Says what nobody looks through.
fn tell_left((partition, offsets): Task, why: &str) {
    let (first, last) = offsets.into_inner();
    tracing::error!(
        partition = partition.0,
        first,
        last,
        "not looked through for messages that came after their server's lease: {why}"
    );
}

/// Lets what is under way come to its end, for a while.
impl Drop for Rescue {
    fn drop(&mut self) {
        let Some((sender, thread)) = self.work.take() else { return };
        drop(sender);
        let wait = |patience| {
            let deadline = Instant::now() + patience;
            while !thread.is_finished() && Instant::now() < deadline {
                std::thread::sleep(PAUSE / 10);
            }
        };
        wait(STOP_PATIENCE);
        self.stop.store(true, Ordering::SeqCst);
        // So that it says what it leaves. One that hangs at the cluster is left to the process's end.
        wait(5 * PAUSE);
    }
}

struct Searcher {
    config: Config,
    undertaker: Undertaker,
    leases: Arc<Leases>,
    incarnation: Incarnation,
    stop: Arc<AtomicBool>,
}

impl Searcher {
    fn run(&self, work: &Receiver<Task>) {
        for (partition, offsets) in work {
            if let Some(left) = self.look_through(partition, &offsets) {
                // And what has not been begun.
                for task in std::iter::once((partition, left)).chain(work) {
                    tell_left(task, "the relay stops");
                }
                return;
            }
        }
    }

    /// What is left of it, if the relay stops before it is done.
    fn look_through(
        &self,
        partition: Partition,
        offsets: &RangeInclusive<i64>,
    ) -> Option<RangeInclusive<i64>> {
        let (mut next, end) = (*offsets.start(), *offsets.end() + 1);
        while next < end {
            let chunk = next..end.min(next + CHUNK);
            match self.search(partition, chunk.clone()) {
                Ok(letters) => {
                    next = chunk.end;
                    if letters > 0 {
                        tracing::warn!(
                            partition = partition.0,
                            letters,
                            "messages came after their server's lease had ended; they are now \
                             dead letters"
                        );
                    }
                }
                Err(_) if self.stop.load(Ordering::SeqCst) => return Some(next..=end - 1),
                Err(error) => {
                    tracing::warn!(
                        %error, partition = partition.0, "the search failed; the relay will retry"
                    );
                    std::thread::sleep(PAUSE);
                }
            }
        }
        None
    }

    fn search(
        &self,
        partition: Partition,
        offsets: std::ops::Range<i64>,
    ) -> Result<u64, crate::kafka::fetch::FetchError> {
        let topic = self.config.kafka.uplink_topic();
        let place = (&*topic, i32::from(partition.0));
        let me = RelayId(self.config.relay.id);
        let is_late = |message: &BorrowedMessage<'_>| {
            let is_ours = record_origin(message)
                .is_some_and(|of| (of.relay, of.incarnation) == (me.0, self.incarnation.value()));
            let epoch = header_text(message, "epoch").and_then(|epoch| epoch.parse().ok());
            let from = epoch
                .filter(|epoch| *epoch > 0)
                .and_then(|epoch| self.leases.change_after(partition, epoch));
            is_ours && from.is_some_and(|from| message.offset() >= from)
        };
        self.undertaker.write_letters(place, offsets, is_late, &self.stop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uplink::leases::tests::leases;

    const PARTITION: Partition = Partition(1);

    struct Relay {
        lateness: Lateness,
        leases: Leases,
        found: Vec<RangeInclusive<i64>>,
    }

    impl Relay {
        fn new() -> Self {
            let (lateness, found) = (Lateness::new(2), Vec::new());
            let relay = Self { lateness, leases: leases(), found };
            relay.leases.set(PARTITION, "a", 1, 0, true);
            relay
        }

        /// Its word is written and read back, with all that stands before it.
        fn speak(&mut self, before: impl FnOnce(&Leases)) -> &mut Self {
            self.leases.begin_word();
            before(&self.leases);
            self.leases.known(Instant::now());
            let found = &mut self.found;
            self.lateness.judge(&self.leases, |_, offsets| found.push(offsets));
            self
        }

        fn write(&mut self, offsets: RangeInclusive<i64>) {
            for offset in offsets {
                self.lateness.produced(PARTITION);
                self.lateness.reported(PARTITION, 1, Some(offset));
            }
        }
    }

    fn nothing(_: &Leases) {}

    #[test]
    fn its_thread_is_watched_and_what_comes_after_its_end_harms_nobody() {
        let text = include_str!("../../../docs/millrace.toml");
        let config: Config = toml::from_str(text).expect("valid");
        let (ended, told) = mpsc::channel();
        let ended = std::sync::Mutex::new(ended);
        // One that ends before its time: it takes no work.
        let watch: RescueWatch = Arc::new(move |_| {
            let name = std::thread::current().name().map(ToOwned::to_owned);
            ended.lock().unwrap().send(name).unwrap();
        });
        let mut rescue = Rescue::new(&config, None, Arc::new(leases()), watch);
        rescue.look_through(Incarnation::new(1), PARTITION, 1..=2);
        let name = told.recv_timeout(Duration::from_secs(30)).expect("it is watched");
        assert_eq!(name.as_deref(), Some("late"));
        while !rescue.work.as_ref().is_some_and(|(_, thread)| thread.is_finished()) {
            std::thread::sleep(Duration::from_millis(1));
        }
        rescue.look_through(Incarnation::new(1), PARTITION, 3..=4);
    }

    #[test]
    fn what_is_acknowledged_under_a_lease_in_force_is_nobody_s_concern() {
        let mut relay = Relay::new();
        relay.speak(nothing);
        relay.write(10..=19);
        relay.speak(nothing).speak(nothing);
        // The server restarts, is gone, and is back.
        relay.write(20..=29);
        relay.speak(|leases| leases.set(PARTITION, "a", 2, 0, true)).speak(nothing);
        relay.write(30..=39);
        relay.speak(|leases| leases.set(PARTITION, "a", 2, 0, false)).speak(nothing);
        relay.speak(|leases| leases.set(PARTITION, "a", 3, 0, true)).speak(nothing);
        // Another one has the partition, from where it is read.
        relay.speak(|leases| leases.set(PARTITION, "a", 3, 0, false));
        relay.speak(|leases| leases.set(PARTITION, "b", 4, 40, true)).speak(nothing);
        assert!(relay.found.is_empty(), "{:?}", relay.found);
        assert!(relay.lateness.touched.is_empty());
    }

    #[test]
    fn what_comes_behind_the_next_lease_is_found_however_late_it_comes() {
        let mut relay = Relay::new();
        relay.speak(nothing);
        // Given to Kafka's client, and then the relay is cut off.
        for _ in 0..3 {
            relay.lateness.produced(PARTITION);
        }
        relay.lateness.reported(PARTITION, 1, Some(5));
        relay.speak(nothing).speak(nothing);
        relay.speak(|leases| {
            leases.set(PARTITION, "a", 1, 0, false);
            leases.set(PARTITION, "b", 2, 6, true);
        });
        assert!(relay.found.is_empty());
        relay.lateness.reported(PARTITION, 1, Some(8));
        relay.speak(nothing).speak(nothing);
        assert_eq!(relay.found, [8..=8]);
        relay.write(9..=9);
        relay.lateness.reported(PARTITION, 1, Some(10));
        relay.speak(nothing).speak(nothing);
        assert_eq!(relay.found, [8..=8, 9..=10]);
        relay.write(11..=20);
        relay.speak(nothing).speak(nothing).speak(nothing);
        assert_eq!(relay.found.len(), 2, "nothing is on its way for the former holder any more");
    }

    #[test]
    fn a_relay_that_stood_still_and_does_not_know_it_finds_what_it_wrote_in_vain() {
        let mut relay = Relay::new();
        relay.speak(nothing).speak(nothing);
        // It wakes, believes in the lease, and writes; the next lease began at 70.
        relay.write(60..=79);
        relay.speak(|leases| {
            leases.set(PARTITION, "a", 1, 0, false);
            leases.set(PARTITION, "b", 2, 70, true);
        });
        relay.speak(nothing);
        assert_eq!(relay.found, [70..=79]);
        // And if it stops before the next word.
        relay.write(80..=80);
        relay.leases.set(PARTITION, "c", 3, 81, true);
        relay.write(81..=81);
        let Relay { mut lateness, leases, mut found } = relay;
        lateness.finish(&leases, |_, offsets| found.push(offsets));
        assert_eq!(found[1..], [81..=81]);
    }

    #[test]
    fn what_is_written_while_nobody_has_the_partition_waits_for_the_next_lease() {
        let mut relay = Relay::new();
        relay.speak(nothing);
        relay.speak(|leases| leases.set(PARTITION, "a", 1, 0, false));
        relay.write(5..=6);
        relay.speak(nothing).speak(nothing);
        relay.write(9..=9);
        relay.speak(nothing).speak(nothing);
        assert!(relay.found.is_empty());
        // The coordinator had buried what was there up to 8.
        relay.speak(|leases| leases.set(PARTITION, "b", 2, 8, true)).speak(nothing);
        assert_eq!(relay.found, [8..=9]);
    }
}
