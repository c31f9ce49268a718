//! The producer's thread: batches from the workers' rings to Kafka, and reports back.

mod parked;
mod silence;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::measure::{Groups, Histogram};
use crate::model::{ConnectionKey, DeliveryFailure, Incarnation, Partition, RelayId};
use crate::ring::{
    Command, Credit, DownlinkSender, MESSAGE_OVERHEAD_BYTES, UplinkBatch, UplinkReceiver, Wake,
};
use crate::stop::{StopPart, StopTime};
use crate::uplink::producer::{ProduceError, Producer, Report};
use crate::uplink::pump::parked::{Lot, Record};
use crate::uplink::pump::silence::{Silence, Word};
use crate::uplink::token::{Token, token};

/// How often an idle pump looks whether the producer has failed for good.
const IDLE_TICK: Duration = Duration::from_millis(200);
/// How often it looks whether a worker that had its hands full can be told something, and while the relay
/// stops.
const BUSY_TICK: Duration = Duration::from_millis(1);

/// What the pump counts. Written by its thread only.
#[derive(Debug, Default)]
pub struct PumpStats {
    /// Messages given to the producer.
    pub produced: AtomicU64,
    /// Messages acknowledged by Kafka.
    pub acknowledged: AtomicU64,
    /// Messages that Kafka will never have, by [`DeliveryFailure`].
    pub refused: [AtomicU64; DeliveryFailure::ALL.len()],
    /// `open` and `close` records acknowledged.
    pub control_acknowledged: AtomicU64,
    /// `open` and `close` records that Kafka will never have.
    pub control_refused: AtomicU64,
    /// Batches taken from the rings.
    pub batches: AtomicU64,
    /// Records that have no report yet.
    pub waiting: AtomicU64,
    /// For how many milliseconds some wait while Kafka acknowledges none.
    pub silent_ms: AtomicU64,
    /// From the receipt of a message to Kafka's acknowledgement.
    pub acknowledge_times: Histogram,
}

/// A batch that the producer has not taken whole.
struct Unfinished {
    batch: Box<UplinkBatch>,
    worker: usize,
    next: usize,
}

/// What a [`Pump`] is made from.
pub struct PumpParts<P> {
    /// Where the records go.
    pub producer: P,
    /// This relay.
    pub relay: RelayId,
    /// This run of the relay.
    pub incarnation: Incarnation,
    /// The rings from the workers, in the workers' order.
    pub uplinks: Vec<UplinkReceiver>,
    /// The rings to the workers, in the same order.
    pub downlinks: Vec<DownlinkSender>,
    /// Accounts for all partitions that the workers write to.
    pub credit: Arc<Credit>,
    /// What the pump counts.
    pub stats: Arc<PumpStats>,
    /// Wakes the pump.
    pub wake: Wake,
    /// How long a stop may take.
    pub stop_time: StopTime,
}

/// Moves batches and reports between the workers and a producer.
pub struct Pump<P> {
    producer: P,
    relay: RelayId,
    incarnation: Incarnation,
    uplinks: Vec<UplinkReceiver>,
    downlinks: Vec<DownlinkSender>,
    credit: Arc<Credit>,
    stats: Arc<PumpStats>,
    wake: Wake,
    unfinished: Option<Unfinished>,
    lot: Lot,
    silence: Silence,
    tally: Tally,
    stop_time: StopTime,
}

/// What reports bring, until it is passed on once for many of them.
struct Tally {
    /// Bytes to release, by partition.
    released: Vec<usize>,
    /// Of those, such as Kafka has acknowledged.
    written: Vec<usize>,
    /// And of `open` and `close` records.
    control: Vec<usize>,
    touched: Vec<Partition>,
    /// By worker, in order: connections whose message was refused, and those that want to know how many
    /// messages more are acknowledged.
    news: Vec<Vec<(Token, Command)>>,
    /// By partition: when messages came that have no report yet, and how many at a time.
    under_way: Vec<VecDeque<(Instant, u32)>>,
    /// Those of them that the producer has just taken, one after another.
    run: Option<(Partition, Instant, u32)>,
    /// Messages that were acknowledged since that was told last, by the time when they came.
    acknowledged: Groups,
    /// Records that have no report yet.
    outstanding: u64,
    /// Kafka has said something about one since the last look.
    heard: bool,
    /// Messages that the producer has taken since that was counted last.
    produced: u64,
}

impl<P: Producer> Pump<P> {
    /// A pump over all workers' rings.
    pub fn new(parts: PumpParts<P>) -> Self {
        let PumpParts {
            producer,
            relay,
            incarnation,
            uplinks,
            downlinks,
            credit,
            stats,
            wake,
            stop_time,
        } = parts;
        let partitions = credit.partitions();
        let tally = Tally {
            released: vec![0; partitions],
            written: vec![0; partitions],
            control: vec![0; partitions],
            touched: Vec::with_capacity(partitions),
            news: vec![Vec::new(); downlinks.len()],
            under_way: vec![VecDeque::new(); partitions],
            run: None,
            acknowledged: Groups::default(),
            outstanding: 0,
            heard: false,
            produced: 0,
        };
        Self {
            producer,
            relay,
            incarnation,
            uplinks,
            downlinks,
            credit,
            stats,
            wake,
            unfinished: None,
            lot: Lot::default(),
            silence: Silence::default(),
            tally,
            stop_time,
        }
    }

    /// Runs until all workers have ended and every record has its report. When the stop's time for
    /// messages is over, whatever keeps them, the rest is given up and counted. `failed` is told the
    /// producer's fatal error, once: whoever runs the pump must stop the relay then. Until the workers
    /// have ended the pump goes on taking what they have: nothing of it is delivered, but nobody waits
    /// for the pump in vain, and all is counted.
    pub fn run(mut self, mut failed: impl FnMut(String)) {
        let mut has_failed = false;
        loop {
            if !has_failed && let Some(error) = self.producer.fatal() {
                has_failed = true;
                failed(error);
            }
            if self.step() {
                continue;
            }
            if self.is_settled() {
                if self.uplinks.iter().all(UplinkReceiver::is_ended) {
                    break;
                }
            } else if has_failed || self.stop_time.is_over(StopPart::Messages) {
                self.producer.purge();
            }
            if self.stop_time.is_over(StopPart::Rest) {
                break;
            }
            self.sleep();
        }
        if self.stop_time.is_over(StopPart::Messages) {
            // Closing it would wait for a cluster that does not answer. The process ends now.
            std::mem::forget(self.producer);
        }
    }

    /// Takes what the workers have handed over and what the producer reports; false if there was
    /// nothing. For tests that own the loop.
    pub fn step(&mut self) -> bool {
        let busy = self.take_batches() | self.take_reports();
        self.listen(Instant::now());
        busy
    }

    /// Says that Kafka says nothing. All else goes on as if it were only slow.
    fn listen(&mut self, now: Instant) {
        self.tally.acknowledged.end(now, &self.stats.acknowledge_times);
        let records = self.tally.outstanding;
        let heard = std::mem::take(&mut self.tally.heard);
        match self.silence.look(records > 0, heard, now) {
            Some(Word::Nothing(lasted)) => tracing::warn!(
                "Kafka has acknowledged nothing for {} s ({records} records wait, and their \
                 clients with them). A broker that can be reached but does not answer may have a \
                 full disk, or hang: its own log says why",
                lasted.as_secs()
            ),
            Some(Word::Again(lasted)) => {
                tracing::warn!("Kafka acknowledges records again, after {} s", lasted.as_secs());
            }
            None => {}
        }
        let silent = u64::try_from(self.silence.duration(now).as_millis()).unwrap_or(u64::MAX);
        self.stats.waiting.store(records, Ordering::Relaxed);
        self.stats.silent_ms.store(silent, Ordering::Relaxed);
    }

    /// True if every record that was taken from the rings has its report.
    pub fn is_settled(&self) -> bool {
        self.unfinished.is_none() && self.lot.is_empty() && self.tally.outstanding == 0
    }

    /// The producer, for tests that own the loop.
    pub fn producer(&mut self) -> &mut P {
        &mut self.producer
    }

    fn sleep(&self) {
        self.wake.announce_sleep();
        // What the producer could not take comes before what follows it.
        let blocked = self.unfinished.is_some();
        if blocked || !self.uplinks.iter().any(UplinkReceiver::has_batch) {
            let owes = blocked
                || !self.lot.is_empty()
                || self.tally.news.iter().any(|of_worker| !of_worker.is_empty());
            let is_busy = owes || self.stop_time.has_begun();
            let tick = if is_busy { BUSY_TICK } else { IDLE_TICK };
            let patience = self.producer.patience().map_or(tick, |patience| patience.min(tick));
            self.wake.wait_for(patience, self.producer.readiness());
        }
        self.wake.awake();
    }

    /// One batch of each worker in turn, so that none waits long; true if there was one.
    fn take_batches(&mut self) -> bool {
        if let Some(unfinished) = self.unfinished.take()
            && !self.produce(unfinished)
        {
            return false;
        }
        let Some(mut any) = self.take_parked() else { return false };
        for worker in 0..self.uplinks.len() {
            if let Some(batch) = self.uplinks[worker].pop() {
                any = true;
                self.stats.batches.fetch_add(1, Ordering::Relaxed);
                if !self.produce(Unfinished { batch, worker, next: 0 }) {
                    return false;
                }
            }
        }
        any
    }

    /// Gives a batch to the producer; false if it could not take all of it now. What may not be written yet
    /// is put aside.
    fn produce(&mut self, mut unfinished: Unfinished) -> bool {
        let mut full = false;
        self.producer.look();
        for record in unfinished.batch.records().skip(unfinished.next) {
            if self.lot.is_before(record.0) {
                self.lot.park(record);
            } else {
                match give(&mut self.producer, &mut self.tally, &self.stats, record) {
                    Given::Taken => {}
                    Given::Later => self.lot.park(record),
                    Given::Full => {
                        full = true;
                        break;
                    }
                }
            }
            unfinished.next += 1;
        }
        self.count_produced();
        if full {
            self.unfinished = Some(unfinished);
        } else {
            self.uplinks[unfinished.worker].recycle(unfinished.batch);
        }
        !full
    }

    /// Gives what was put aside to the producer, as far as it may be written by now; true if there was
    /// some. None if the producer is full.
    fn take_parked(&mut self) -> Option<bool> {
        if self.lot.is_empty() {
            return Some(false);
        }
        self.producer.look();
        let mut any = false;
        let mut full = false;
        while let Some(parked) = self.lot.pop() {
            let given = give(&mut self.producer, &mut self.tally, &self.stats, parked.record());
            if given != Given::Taken {
                full = given == Given::Full;
                self.lot.put_back(parked);
                break;
            }
            any = true;
        }
        self.count_produced();
        (!full).then_some(any)
    }

    fn count_produced(&mut self) {
        self.tally.end_run();
        let produced = std::mem::take(&mut self.tally.produced);
        self.stats.produced.fetch_add(produced, Ordering::Relaxed);
    }

    fn take_reports(&mut self) -> bool {
        let (tally, stats) = (&mut self.tally, &*self.stats);
        let mut acknowledged = 0;
        let any = self.producer.poll(&mut |report| {
            if report.result.is_ok() && !report.token.control {
                acknowledged += u64::from(report.records);
            }
            // What is given up at a stop says nothing of Kafka.
            tally.heard |= report.result != Err(DeliveryFailure::Purged);
            tally.time(&report);
            tally.report(stats, report);
        });
        self.stats.acknowledged.fetch_add(acknowledged, Ordering::Relaxed);
        self.settle();
        any
    }

    /// Passes on what reports brought: credit to the workers that wait for it, refusals to the
    /// connections concerned.
    fn settle(&mut self) {
        let mut tell = false;
        for partition in self.tally.touched.drain(..) {
            let bytes = std::mem::take(&mut self.tally.released[partition.index()]);
            let written = std::mem::take(&mut self.tally.written[partition.index()]);
            let control = std::mem::take(&mut self.tally.control[partition.index()]);
            self.credit.release_control(partition, control);
            if bytes == 0 {
                continue;
            }
            self.credit.acknowledge(partition, written);
            tell |= self.credit.release(partition, bytes);
        }
        if tell {
            self.uplinks.iter().for_each(UplinkReceiver::wake_worker);
        }
        self.pass_on_news();
    }

    /// In the order of the reports: what is acknowledged behind a refused message does not count for its
    /// connection, and what was acknowledged before it does.
    fn pass_on_news(&mut self) {
        for worker in 0..self.downlinks.len() {
            while !self.tally.news[worker].is_empty() {
                // None: the worker has its hands full; the next round tries again.
                let Some(mut batch) = self.downlinks[worker].take_empty() else { break };
                let mut taken = 0;
                for (token, news) in &self.tally.news[worker] {
                    if batch.is_full() {
                        break;
                    }
                    batch.push_order(self.key(*token), *news);
                    taken += 1;
                }
                self.downlinks[worker].hand_over(batch);
                self.tally.news[worker].drain(..taken);
            }
        }
    }

    fn key(&self, token: Token) -> ConnectionKey {
        ConnectionKey {
            relay: self.relay,
            incarnation: self.incarnation,
            worker: token.worker,
            slot: token.slot,
            generation: token.generation,
        }
    }
}

/// What became of a record that was given to the producer.
#[derive(PartialEq, Eq)]
enum Given {
    /// It has it, or has refused it.
    Taken,
    /// It may not be written yet; others may.
    Later,
    /// No other one is taken now either.
    Full,
}

#[expect(
    clippy::inline_always,
    reason = "a record that goes through memory here costs a tenth more time"
)]
#[inline(always)]
fn give(
    producer: &mut impl Producer,
    tally: &mut Tally,
    stats: &PumpStats,
    (identity, kind, headers, payload, came): Record<'_>,
) -> Given {
    match producer.produce(identity, kind, headers, payload, came.unix_ms) {
        Ok(()) => {
            tally.outstanding += 1;
            if kind.is_message() {
                tally.produced += 1;
                tally.is_under_way(identity.partition, came.at);
            }
        }
        Err(ProduceError::Later) => return Given::Later,
        Err(ProduceError::Full) => return Given::Full,
        Err(ProduceError::Refused(failure)) => {
            tally.outstanding += 1;
            let report = Report {
                partition: identity.partition,
                records: 1,
                booked_bytes: payload.len() + headers.weight(),
                token: token(identity, kind, headers),
                message: kind.message_number(),
                result: Err(failure),
            };
            tally.report(stats, report);
        }
    }
    Given::Taken
}

impl Tally {
    /// The producer has a message that came then.
    fn is_under_way(&mut self, partition: Partition, came: Instant) {
        match &mut self.run {
            Some((of, then, count)) if (*of, *then) == (partition, came) => *count += 1,
            _ => {
                self.end_run();
                self.run = Some((partition, came, 1));
            }
        }
    }

    fn end_run(&mut self) {
        let Some((partition, came, count)) = self.run.take() else { return };
        let queue = &mut self.under_way[partition.index()];
        match queue.back_mut() {
            Some((other, before)) if *other == came => *before += count,
            _ => queue.push_back((came, count)),
        }
    }

    /// Messages that the producer had have their report. Those of a partition come in order, but for refusals,
    /// which make a few times inexact and no count wrong.
    fn time(&mut self, report: &Report) {
        if report.token.control {
            return;
        }
        let queue = &mut self.under_way[report.partition.index()];
        let mut rest = report.records;
        while rest > 0 {
            let Some((came, count)) = queue.front_mut() else { return };
            let taken = rest.min(*count);
            if report.result.is_ok() {
                self.acknowledged.add(*came, taken.into());
            }
            rest -= taken;
            *count -= taken;
            if *count == 0 {
                queue.pop_front();
            }
        }
    }

    fn report(&mut self, stats: &PumpStats, report: Report) {
        let records = report.records;
        self.outstanding -= u64::from(records);
        let place = report.partition.index();
        let bytes = report.booked_bytes + records as usize * MESSAGE_OVERHEAD_BYTES;
        if self.released[place] == 0 && self.control[place] == 0 {
            self.touched.push(report.partition);
        }
        if report.token.control {
            self.control[place] += bytes;
            let counter = match report.result {
                Ok(()) => &stats.control_acknowledged,
                Err(_) => &stats.control_refused,
            };
            counter.fetch_add(records.into(), Ordering::Relaxed);
            return;
        }
        self.released[place] += bytes;
        if report.result.is_ok() {
            self.written[place] += bytes;
        }
        let of_worker = &mut self.news[usize::from(report.token.worker)];
        match report.result {
            Ok(()) if report.token.acknowledge => match of_worker.last_mut() {
                Some((token, Command::Acknowledged(count))) if *token == report.token => {
                    *count += records;
                }
                _ => of_worker.push((report.token, Command::Acknowledged(records))),
            },
            Ok(()) => {}
            Err(failure) => {
                stats.refused[failure as usize].fetch_add(1, Ordering::Relaxed);
                // One order closes the connection; its further messages need none.
                let told = |(token, news): &(Token, Command)| {
                    *token == report.token && matches!(news, Command::Refused { .. })
                };
                if failure != DeliveryFailure::Purged && !of_worker.last().is_some_and(told) {
                    let message = report.message;
                    of_worker.push((report.token, Command::Refused { failure, message }));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
