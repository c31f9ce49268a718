//! What comes from brokers.

use std::fmt::Display;
use std::time::{Duration, Instant};

use super::codes::{self, Verdict, verdict};
use super::link::{Flight, LinkId, Stage, What};
use super::partition::Partition;
use super::{
    LEAST_BACKOFF, METADATA_INTERVAL, MOST_BACKOFF, Order, PROPAGATION, Question, Refusal, Uplink,
};
use crate::message::{
    Metadata, ProduceResult, ProducerIdentity, Unusable, Versions, VersionsFormat,
    put_versions_request, read_header, read_init_producer_response, read_produce_response,
    read_sasl_authenticate_response, read_sasl_handshake_response,
};
use crate::primitive::Malformed;
use crate::sasl::SaslError;

/// Longest answer. That about a topic of 32,767 partitions on 1,000 brokers has 2 MB.
const MOST_ANSWER_BYTES: usize = 32 << 20;

/// Why a connection is given up after an answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Wrong {
    #[error("an answer cannot be read: {0}")]
    Malformed(#[from] Malformed),
    #[error("an answer to no question")]
    Unasked,
    #[error("an answer to question {answered}, and {asked} was the oldest")]
    Order { asked: i32, answered: i32 },
    #[error(transparent)]
    Unusable(#[from] Unusable),
    #[error("it does not take {mechanism}, but {taken}; see kafka.sasl")]
    Mechanism { mechanism: &'static str, taken: String },
    #[error("it refuses the login (error {code}): {reason}; see kafka.sasl")]
    Login { code: i16, reason: String },
    #[error(transparent)]
    Sasl(#[from] SaslError),
}

impl Uplink {
    /// A connection is made.
    pub fn connected(&mut self, link: LinkId, now: Instant) {
        let Some(link) = self.peers.get(link) else { return };
        if link.stage != Stage::Connecting {
            return;
        }
        (link.stage, link.since) = (Stage::Greeting, now);
        let id = link.id;
        self.greet(id, VersionsFormat::Usual, now);
    }

    fn greet(&mut self, id: LinkId, format: VersionsFormat, now: Instant) {
        self.question(id, What::Versions(format), now, |out, correlation, client| {
            put_versions_request(out, format, correlation, client);
        });
    }

    /// A connection could not be made, or has ended.
    pub fn failed(&mut self, link: LinkId, reason: &dyn Display, now: Instant) {
        self.drop_link(link, reason, now);
    }

    /// Gives a connection up.
    pub(super) fn lose(&mut self, link: LinkId, reason: &dyn Display, now: Instant) {
        if self.drop_link(link, reason, now) {
            self.orders.push_back(Order::Close { link });
        }
    }

    /// What was on its way waits again. False if there was no such connection.
    fn drop_link(&mut self, id: LinkId, reason: &dyn Display, now: Instant) -> bool {
        let Some((link, is_news)) = self.peers.lose(id, now) else { return false };
        let (host, port) = (&*link.host, link.port);
        if is_news && (link.stage == Stage::Connecting || !link.flights.is_empty()) {
            tracing::warn!("Kafka: no connection to {host}:{port}: {reason}");
        } else {
            tracing::debug!("Kafka: no connection to {host}:{port}: {reason}");
        }
        for flight in link.flights {
            match flight.what {
                What::Produce(_, mut batches) => {
                    for (partition, number) in batches.drain(..) {
                        let of_partition = &mut self.partitions[usize::from(partition)];
                        of_partition.lost(number, (id, flight.correlation));
                        self.touch(partition);
                    }
                    self.spare_flown.push(batches);
                }
                What::Metadata => self.metadata.asked = None,
                What::Identity => self.identity_question.asked = None,
                What::Versions(_) | What::Mechanism | What::Message => {}
            }
        }
        // Perhaps there is another leader by now.
        self.metadata.ask_by(now);
        true
    }

    /// Takes bytes that a broker has sent.
    pub fn received(&mut self, id: LinkId, bytes: &[u8], now: Instant) {
        let Some(link) = self.peers.get(id) else { return };
        // What the answers say is for all connections, so this one does not hold them meanwhile.
        let mut input = link.take_input();
        input.extend_from_slice(bytes);
        let mut used = 0;
        let taken = loop {
            match frame(&input[used..]) {
                Ok(Some(answer)) => {
                    used += 4 + answer.len();
                    if let Err(wrong) = self.take(id, answer, now) {
                        break Err(wrong);
                    }
                }
                Ok(None) => break Ok(()),
                Err(malformed) => break Err(Wrong::Malformed(malformed)),
            }
        };
        match taken {
            Err(wrong) => self.lose(id, &wrong, now),
            Ok(()) => {
                if let Some(link) = self.peers.get(id) {
                    link.put_input_back(input, used);
                }
            }
        }
    }

    /// Takes one answer. If it is wrong nothing of it counts, and its question is still open.
    fn take(&mut self, id: LinkId, answer: &[u8], now: Instant) -> Result<(), Wrong> {
        let Some(link) = self.peers.get(id) else { return Ok(()) };
        let flight = link.flights.front().ok_or(Wrong::Unasked)?;
        let (correlation, reader) = read_header(answer, flight.what.api())?;
        if correlation != flight.correlation {
            return Err(Wrong::Order { asked: flight.correlation, answered: correlation });
        }
        match &flight.what {
            What::Versions(format) => match Versions::read(reader, *format) {
                Ok(versions) => {
                    self.landed(id);
                    self.greeted(id, versions, now);
                }
                Err(Unusable::Format) => {
                    self.landed(id);
                    self.greet(id, VersionsFormat::Oldest, now);
                }
                Err(unusable) => return Err(unusable.into()),
            },
            What::Mechanism => {
                self.mechanism_answered(id, &read_sasl_handshake_response(reader)?)?;
            }
            What::Message => {
                self.message_answered(id, read_sasl_authenticate_response(reader)?, now)?;
            }
            What::Metadata => {
                let metadata = Metadata::read(reader, &self.settings.topic)?;
                self.landed(id);
                self.throttle(id, metadata.throttle_ms, now);
                self.informed(metadata, now);
            }
            What::Identity => {
                let (throttle_ms, identity) = read_init_producer_response(reader)?;
                self.landed(id);
                self.throttle(id, throttle_ms, now);
                self.identified(identity, now);
            }
            What::Produce(version, _) => {
                let mut results = std::mem::take(&mut self.results);
                results.clear();
                let throttle_ms =
                    read_produce_response(reader, *version, |result| results.push(result))?;
                // Unlike the stable one it sorts in place.
                results.sort_unstable_by_key(|result| result.partition);
                if let Some(flight) = self.landed(id) {
                    self.answered(id, flight, &results, now);
                }
                self.throttle(id, throttle_ms, now);
                self.results = results;
            }
        }
        Ok(())
    }

    /// The oldest question of a connection is answered.
    pub(super) fn landed(&mut self, id: LinkId) -> Option<Flight> {
        self.peers.get(id)?.landed()
    }

    fn throttle(&mut self, id: LinkId, throttle_ms: i32, now: Instant) {
        let Some(link) = self.peers.get(id) else { return };
        if let Some(pause) = u64::try_from(throttle_ms).ok().filter(|ms| *ms > 0) {
            link.quiet_until = Some(now + Duration::from_millis(pause));
            let broker = format!("{}:{}", link.host, link.port);
            self.throttled.push_back((broker, throttle_ms));
        }
    }

    fn identified(&mut self, identity: Result<ProducerIdentity, i16>, now: Instant) {
        match identity {
            Ok(identity) => {
                self.identity = Some(identity);
                self.identity_question = Question::default();
            }
            Err(code) => {
                if codes::is_for_good(code) {
                    self.fatal.get_or_insert(format!(
                        "the brokers give no producer id (error {code}): the relay's user is not \
                         authorized to write to the topic {}, nor has it IdempotentWrite on the cluster",
                        self.settings.topic
                    ));
                }
                self.identity_question.answered(now + MOST_BACKOFF);
            }
        }
    }

    /// Takes what a broker knows of the cluster and the topic.
    fn informed(&mut self, metadata: Metadata, now: Instant) {
        self.metadata.answered(now + METADATA_INTERVAL);
        // While a controller takes all brokers for gone they list none; those that are known may be there.
        if !metadata.brokers.is_empty() {
            self.brokers = metadata.brokers;
            let (brokers, bootstrap) = (&self.brokers, &self.settings.bootstrap);
            self.peers.keep_addresses(|host, port| {
                brokers.iter().any(|broker| broker.port == port && broker.host == host)
                    || bootstrap.iter().any(|(name, of)| *of == port && name == host)
            });
        }
        let (id, partitions) = match metadata.topic {
            Ok(topic) => topic,
            Err(code) => return self.topic_missing(code, now),
        };
        self.topic.missing_since = None;
        if !self.topic.is_known || self.topic.id != id {
            self.partitions.iter_mut().for_each(Partition::is_made_anew);
        }
        (self.topic.id, self.topic.is_known) = (id, true);
        let mut leaderless = false;
        let count =
            partitions.iter().map(|of| of.partition.saturating_add(1)).max().unwrap_or_default();
        for found in partitions {
            let index = usize::try_from(found.partition).unwrap_or(usize::MAX);
            let Some(partition) = self.partitions.get_mut(index) else { continue };
            leaderless |= found.leader.is_none() && !partition.is_empty();
            if partition.led_by(found.leader, found.leader_epoch) {
                let leader = found.leader;
                for link in partition.flights() {
                    if let Some(link) = self.peers.get(link).filter(|link| link.node != leader) {
                        link.is_former(now);
                    }
                }
            }
        }
        self.await_partitions(usize::try_from(count).unwrap_or_default(), now);
        if leaderless {
            self.metadata.ask_by(now + LEAST_BACKOFF);
        }
    }

    /// What is for partitions that the topic does not have waits as long as for a topic that is not there.
    fn await_partitions(&mut self, count: usize, now: Instant) {
        let waiting = (count..self.partitions.len()).any(|of| self.partitions[of].has_unsent());
        if !waiting {
            self.topic.short_since = None;
            return;
        }
        self.metadata.ask_by(now + MOST_BACKOFF);
        let since = *self.topic.short_since.get_or_insert(now);
        if now.saturating_duration_since(since) >= PROPAGATION {
            for partition in count..self.partitions.len() {
                self.refuse_waiting(partition, codes::UNKNOWN_TOPIC_OR_PARTITION);
            }
        }
    }

    fn topic_missing(&mut self, code: i16, now: Instant) {
        self.metadata.ask_by(now + MOST_BACKOFF);
        let since = *self.topic.missing_since.get_or_insert(now);
        let is_over = now.saturating_duration_since(since) >= PROPAGATION;
        let is_gone = is_over && code == codes::UNKNOWN_TOPIC_OR_PARTITION;
        if is_gone || codes::is_for_good(code) {
            for partition in 0..self.partitions.len() {
                self.refuse_waiting(partition, code);
            }
        }
    }

    fn refuse_waiting(&mut self, partition: usize, code: i16) {
        self.partitions[partition].refuse_waiting(Refusal::Broker(code), &mut self.spare);
        self.settle_oldest(partition);
    }

    /// Takes what became of batches; `results` are in the partitions' order.
    fn answered(&mut self, id: LinkId, flight: Flight, results: &[ProduceResult], now: Instant) {
        let What::Produce(_, mut batches) = flight.what else { return };
        let flown = (id, flight.correlation);
        for (partition, number) in batches.drain(..) {
            let index = usize::from(partition);
            let of_partition = &mut self.partitions[index];
            let place = results.partition_point(|of| of.partition < i32::from(partition));
            let is_of = |result: &&ProduceResult| result.partition == i32::from(partition);
            let Some(result) = results.get(place).filter(is_of) else {
                // Nothing is said of it.
                of_partition.again(number, flown, now);
                self.touch(partition);
                continue;
            };
            let code = result.error;
            match verdict(code) {
                Verdict::Written => of_partition.written(number, flown, result.base_offset, now),
                Verdict::Again { refresh } => {
                    tracing::debug!(partition, code, "a batch is sent again");
                    of_partition.again(number, flown, now);
                    if refresh {
                        self.metadata.ask_by(now);
                    }
                }
                Verdict::OutOfOrder => {
                    if of_partition.out_of_order(number, flown, now) {
                        tracing::warn!(
                            "Kafka: partition {partition} has lost what was written before: its \
                             leader knows of no record that comes before the next one (error \
                             {code}). It goes on with a new epoch"
                        );
                    }
                }
                Verdict::Fenced => {
                    tracing::warn!(
                        "Kafka: partition {partition} does not take this producer's id any more \
                         (error {code}). It goes on with a new one"
                    );
                    of_partition.fenced(number, flown, now);
                }
                Verdict::Refused => {
                    of_partition.refused(number, flown, Refusal::Broker(code));
                }
            }
            self.settle_oldest(index);
            self.touch(partition);
        }
        self.spare_flown.push(batches);
    }

    fn settle_oldest(&mut self, partition: usize) {
        while let Some((batch, result)) = self.partitions[partition].pop_settled() {
            self.settle(partition, batch, result);
        }
    }

    /// Looks at a partition in the next round of sending, if there is something to send.
    pub(super) fn touch(&mut self, partition: u16) {
        let of_partition = &mut self.partitions[usize::from(partition)];
        if !of_partition.is_pending && of_partition.has_unsent() {
            of_partition.is_pending = true;
            self.pending.push_back(partition);
        }
    }
}

/// The answer that the bytes begin with, without its length; none if it is not whole.
fn frame(bytes: &[u8]) -> Result<Option<&[u8]>, Malformed> {
    let Some((length, rest)) = bytes.split_first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_be_bytes(*length) as usize;
    if length > MOST_ANSWER_BYTES {
        return Err(Malformed::Length);
    }
    Ok(rest.get(..length))
}
