//! What goes to brokers.

use std::sync::Arc;
use std::time::Instant;

use super::link::{Flight, Link, LinkId, Stage, What};
use super::partition::Idle;
use super::{LEAST_BACKOFF, MOST_BACKOFF, Order, REQUEST_BYTES, SLOW, Settings, Uplink};
use crate::batch::Batch;
use crate::message::{ProduceRequest, put_init_producer_request, put_metadata_request};

/// Batches for one request.
#[derive(Debug, Default)]
pub(super) struct Load {
    /// Partition, and place in its queue.
    batches: Vec<(u16, usize)>,
    bytes: usize,
    /// The batches themselves while the request is made; empty in between.
    sent: Vec<Arc<Batch>>,
    /// What stands between two of them.
    glue: Vec<u8>,
}

impl Uplink {
    /// Does what is due: asks, connects, gives connections up, makes requests of what waits. Returns when it
    /// has to be called again if nothing happens before.
    pub fn advance(&mut self, now: Instant) -> Option<Instant> {
        self.give_up(now);
        self.spare.trim(now);
        // What is to be sent may be what makes a question urgent.
        let sending = self.send(now);
        let asking = self.ask(now);
        let again = self.authenticate_again(now);
        let timeout = self.settings.request_timeout;
        let patience = self.peers.links.iter().filter_map(|link| link.deadline(timeout)).min();
        [asking, sending, again, patience].into_iter().flatten().min()
    }

    /// Gives up connections whose broker has not answered in time.
    fn give_up(&mut self, now: Instant) {
        let timeout = self.settings.request_timeout;
        let late = |link: &&Link| link.deadline(timeout).is_some_and(|then| then <= now);
        while let Some(link) = self.peers.links.iter().find(late) {
            let (id, silence) = (link.id, link.silence(now));
            if link.stage == Stage::Connecting {
                self.lose(id, &"it is not made in time", now);
            } else {
                self.lose(id, &format_args!("no answer for {} s", silence.as_secs()), now);
            }
        }
        // Who was asked first has told of the others.
        let is_ready = |link: &Link| matches!(link.stage, Stage::Ready(_));
        if self.peers.links.iter().any(|link| link.node.is_some() && is_ready(link)) {
            let is_over =
                |link: &&Link| link.node.is_none() && link.flights.is_empty() && is_ready(link);
            while let Some(link) = self.peers.links.iter().find(is_over).map(|link| link.id) {
                self.peers.links.retain(|of| of.id != link);
                self.orders.push_back(Order::Close { link });
            }
        }
    }

    /// Asks about the cluster, and for a producer's id. Returns when to look again.
    fn ask(&mut self, now: Instant) -> Option<Instant> {
        let wants_identity = self.identity.is_none() && self.identity_question.is_due(now);
        if wants_identity || self.metadata.is_due(now) {
            let Some(link) = self.somebody(now) else { return self.look_for_somebody(now) };
            if self.metadata.is_due(now) {
                self.metadata.asked(link);
                let topic = self.settings.topic.clone();
                self.question(link, What::Metadata, now, |out, correlation, client| {
                    put_metadata_request(out, correlation, client, &topic);
                });
            }
            if wants_identity {
                self.identity_question.asked(link);
                self.question(link, What::Identity, now, put_init_producer_request);
            }
        }
        let identity = self.identity_question.not_before.filter(|_| self.identity.is_none());
        let due = [(&self.metadata, self.metadata.not_before), (&self.identity_question, identity)];
        due.into_iter().filter(|(of, _)| of.asked.is_none()).filter_map(|(_, then)| then).min()
    }

    pub(super) fn question(
        &mut self,
        link: LinkId,
        what: What,
        now: Instant,
        put: impl FnOnce(&mut Vec<u8>, i32, &str),
    ) {
        let Some(link) = self.peers.get(link) else { return };
        let correlation = link.correlation();
        let mut request = link.output.blank();
        put(&mut request, correlation, &self.settings.client_id);
        link.output.push(request);
        link.flights.push_back(Flight { correlation, sent: now, what });
    }

    /// A broker that answers.
    fn somebody(&self, now: Instant) -> Option<LinkId> {
        let ready = self.peers.links.iter().filter(|link| matches!(link.stage, Stage::Ready(_)));
        let quickest = ready.min_by_key(|link| link.silence(now))?;
        let other = self.peers.links.iter().any(|link| !matches!(link.stage, Stage::Ready(_)));
        // Another one may be there soon; if not, it is better than none.
        (quickest.silence(now) < SLOW || !other && !self.can_connect(now)).then_some(quickest.id)
    }

    /// Addresses where there may be a broker, from the one whose turn it is on.
    fn candidates(&self) -> impl Iterator<Item = (Option<i32>, &str, u16)> {
        let known = self.brokers.iter().map(|of| (Some(of.node), &*of.host, of.port));
        let configured = self.settings.bootstrap.iter().map(|(host, port)| (None, &**host, *port));
        let all = known.chain(configured);
        let count = self.brokers.len() + self.settings.bootstrap.len();
        all.cycle().skip(self.peers.turn % count.max(1)).take(count)
    }

    fn can_connect(&self, now: Instant) -> bool {
        self.candidates().any(|(_, host, port)| {
            !self.peers.has(host, port) && self.peers.not_before(host, port, now).is_none()
        })
    }

    /// Begins a connection if none is being made. Returns when to look again.
    fn look_for_somebody(&mut self, now: Instant) -> Option<Instant> {
        if self.peers.links.iter().any(|link| !matches!(link.stage, Stage::Ready(_))) {
            return None;
        }
        let found = self.candidates().enumerate().find_map(|(place, (node, host, port))| {
            let is_free =
                !self.peers.has(host, port) && self.peers.not_before(host, port, now).is_none();
            is_free.then(|| (place, node, host.to_owned(), port))
        });
        if let Some((place, node, host, port)) = found {
            self.peers.turn = self.peers.turn.wrapping_add(place + 1);
            self.connect(node, (&host, port), now);
            return None;
        }
        let times =
            self.candidates().filter_map(|(_, host, port)| self.peers.not_before(host, port, now));
        times.min().or(Some(now + LEAST_BACKOFF))
    }

    fn connect(&mut self, node: Option<i32>, (host, port): (&str, u16), now: Instant) {
        let link = self.peers.connect(node, (host, port), now);
        self.orders.push_back(Order::Connect { link, host: host.to_owned(), port });
    }

    /// The place of the connection to a broker, if it takes records now; begins one if there is none.
    fn leader(&mut self, node: i32, now: Instant) -> Result<usize, Idle> {
        if let Some(place) = self.peers.to_node(node) {
            let link = &self.peers.links[place];
            return match link.quiet_until.filter(|then| *then > now) {
                Some(then) => Err(Idle::Time(then)),
                None => link.takes_records().then_some(place).ok_or(Idle::Link),
            };
        }
        let Some(broker) = self.brokers.iter().find(|broker| broker.node == node) else {
            self.metadata.ask_by(now + LEAST_BACKOFF);
            return Err(Idle::Link);
        };
        if let Some(then) = self.peers.not_before(&broker.host, broker.port, now) {
            return Err(Idle::Time(then));
        }
        let (host, port) = (broker.host.clone(), broker.port);
        self.connect(Some(node), (&host, port), now);
        Err(Idle::Link)
    }

    /// Makes requests of what waits. Returns when to look again.
    fn send(&mut self, now: Instant) -> Option<Instant> {
        let mut loads = std::mem::take(&mut self.loads);
        let next = loop {
            let next = self.load(&mut loads, now);
            let mut any = false;
            for (place, load) in loads.iter_mut().enumerate() {
                if !load.batches.is_empty() {
                    any = true;
                    self.request(place, load, now);
                    load.clear();
                }
            }
            if !any {
                break next;
            }
        };
        self.loads = loads;
        next
    }

    /// At most one batch of each partition that has one to send, by connection. Returns when to look again.
    fn load(&mut self, loads: &mut Vec<Load>, now: Instant) -> Option<Instant> {
        let mut next: Option<Instant> = None;
        for _ in 0..self.pending.len() {
            let Some(number) = self.pending.pop_front() else { break };
            let stays = match self.choose(number, loads, now) {
                Ok(()) | Err(Idle::Link) => true,
                Err(Idle::Empty | Idle::Answer) => false,
                Err(Idle::Time(then)) => {
                    next = Some(next.map_or(then, |next| next.min(then)));
                    true
                }
                Err(Idle::Identity(useless)) => {
                    if let Some(useless) = useless {
                        if self.identity.is_some_and(|identity| identity.id != useless.id) {
                            // There is another one already.
                            next = Some(now);
                        } else {
                            self.identity = None;
                            self.identity_question.ask_by(now);
                        }
                    }
                    true
                }
            };
            self.partitions[usize::from(number)].is_pending = stays;
            if stays {
                self.pending.push_back(number);
            }
        }
        next
    }

    /// Adds the next batch of a partition to what its leader gets.
    fn choose(&mut self, number: u16, loads: &mut Vec<Load>, now: Instant) -> Result<(), Idle> {
        let index = usize::from(number);
        if !self.partitions[index].has_unsent() {
            return Err(Idle::Empty);
        }
        let Some(leader) = self.partitions[index].leader.filter(|_| self.topic.is_known) else {
            self.metadata.ask_by(now + MOST_BACKOFF);
            return Err(Idle::Link);
        };
        let place = self.leader(leader, now)?;
        let partition = &mut self.partitions[index];
        let to_leader = self.peers.links[place].id;
        let mut is_elsewhere = false;
        for link in partition.flights().filter(|link| *link != to_leader) {
            // What the former leader has may be written or not.
            is_elsewhere = true;
            if let Some(link) = self.peers.get(link) {
                link.is_former(now);
            }
        }
        if is_elsewhere {
            return Err(Idle::Answer);
        }
        let batch = partition.next(now, self.settings.linger, self.identity, &mut self.spare)?;
        if loads.len() <= place {
            loads.resize_with(place + 1, Load::default);
        }
        let (load, bytes) = (&mut loads[place], partition.size(batch));
        if load.bytes > 0 && load.bytes + bytes > REQUEST_BYTES {
            return Err(Idle::Link);
        }
        load.batches.push((number, batch));
        load.bytes += bytes;
        Ok(())
    }

    fn request(&mut self, place: usize, load: &mut Load, now: Instant) {
        let link = &mut self.peers.links[place];
        let Stage::Ready(versions) = link.stage else { return };
        let correlation = link.correlation();
        let mut flown = self.spare_flown.pop().unwrap_or_default();
        for (number, batch) in load.batches.drain(..) {
            let partition = &mut self.partitions[usize::from(number)];
            if let Some((batch_number, batch)) = partition.send(batch, link.id, correlation) {
                flown.push((number, batch_number));
                load.sent.push(batch);
            }
        }
        let Settings { topic, client_id, request_timeout, .. } = &self.settings;
        // So that the broker answers that it took too long before the connection is given up.
        let patience = i32::try_from(request_timeout.as_millis() * 2 / 3).unwrap_or(i32::MAX);
        let mut request = ProduceRequest::new(
            link.output.blank(),
            versions.produce,
            (correlation, client_id),
            (topic, self.topic.id),
            patience,
            load.sent.len(),
        );
        let head = link.output.reserve();
        for ((number, _), batch) in flown.iter().zip(load.sent.drain(..)) {
            load.glue.clear();
            request.partition(&mut load.glue, (*number).into(), batch.size());
            link.output.push_short(&load.glue);
            link.output.push_batch(batch);
        }
        load.glue.clear();
        link.output.fill(head, request.end(&mut load.glue));
        link.output.push_short(&load.glue);
        let what = What::Produce(versions.produce, flown);
        link.flights.push_back(Flight { correlation, sent: now, what });
    }
}

impl Load {
    fn clear(&mut self) {
        self.batches.clear();
        self.bytes = 0;
    }
}
