//! Connections that are cut, slow, dead in one direction or in both.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::time::Duration;

use bytes::Bytes;
use millrace_wire::uplink::LinkId;

use crate::broker::{Request, Says};
use crate::cluster::Cluster;
use crate::dice::Dice;

/// Most requests with records that may be on their way over a connection.
const MOST_OF_LINK: usize = 5;

/// What the client is told.
#[derive(Debug)]
pub(crate) enum Event {
    Connected(LinkId),
    Failed(LinkId),
    Received(LinkId, Bytes),
    Writable(LinkId),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Until then; it fails if the flag is not set.
    Making(Duration, bool),
    /// Nothing is heard of it.
    Lost,
    Open,
    /// It has ended, which the client is told then.
    Broken(Duration),
    /// The client knows nothing of it any more, but the broker may have requests of it.
    Left,
}

#[derive(Debug)]
struct Answer {
    then: Duration,
    bytes: Bytes,
    /// To a request with records.
    is_of_records: bool,
}

#[derive(Debug)]
struct Connection {
    link: LinkId,
    node: usize,
    stage: Stage,
    /// A request that is not whole yet.
    partial: Vec<u8>,
    /// What was said last of who asks, and until when that holds.
    said: Says,
    known_until: Duration,
    requests: VecDeque<Request>,
    /// When the broker is free for the next one.
    free: Duration,
    answers: VecDeque<Answer>,
    /// Partitions of requests that are not answered yet, as the client sees it.
    flying: VecDeque<Vec<usize>>,
    blocked_until: Option<Duration>,
    /// The broker's answers do not come.
    is_mute: bool,
    /// Nor do requests.
    is_deaf: bool,
}

/// All connections.
#[derive(Debug)]
pub(crate) struct Network {
    connections: Vec<Connection>,
    dice: Dice,
    /// Until when a broker does nothing.
    pub(crate) stuck: Vec<Duration>,
    /// Until when a broker is not there.
    pub(crate) down: Vec<Duration>,
    /// Connections are made, and bytes taken, without trouble.
    pub(crate) is_well: bool,
    /// A broker may carry out what it was sent over a connection long after the client has left it.
    has_late_requests: bool,
    /// Most batches of a partition that were on their way at a time.
    pub(crate) most_flying: usize,
}

impl Network {
    pub(crate) fn new(dice: Dice, nodes: usize, has_late_requests: bool) -> Self {
        Self {
            connections: Vec::new(),
            dice,
            stuck: vec![Duration::ZERO; nodes],
            down: vec![Duration::ZERO; nodes],
            is_well: false,
            has_late_requests,
            most_flying: 0,
        }
    }

    /// A broker `n` is at `bn` and its port; somebody is always at `sn`.
    pub(crate) fn connect(
        &mut self,
        link: LinkId,
        (host, port): (&str, u16),
        cluster: &Cluster,
        now: Duration,
    ) {
        let number: usize = host[1..].parse().expect("a broker's name");
        let node = (number - 1) % self.down.len();
        let is_there = host.starts_with('s') || port == cluster.ports[node];
        let then = now + self.dice.millis(20);
        let stage = if now < self.down[node] || !is_there {
            Stage::Making(then, false)
        } else if !self.is_well && self.dice.one_in(20) {
            self.dice.of(&[Stage::Lost, Stage::Making(then, false)])
        } else {
            Stage::Making(then, true)
        };
        self.connections.push(Connection {
            link,
            node,
            stage,
            partial: Vec::new(),
            said: Says::Nothing,
            known_until: Duration::ZERO,
            requests: VecDeque::new(),
            free: now,
            answers: VecDeque::new(),
            flying: VecDeque::new(),
            blocked_until: None,
            is_mute: false,
            is_deaf: false,
        });
    }

    /// The client closes a connection.
    pub(crate) fn close(&mut self, link: LinkId, cluster: &mut Cluster, now: Duration) {
        if let Some(place) = self.connections.iter().position(|of| of.link == link) {
            self.part(place, cluster, now);
            self.connections[place].stage = Stage::Left;
            self.connections[place].flying.clear();
        }
    }

    /// What comes of the requests that a broker has of a connection that ends.
    fn part(&mut self, place: usize, cluster: &mut Cluster, now: Duration) {
        let Self { connections, dice, .. } = self;
        let connection = &mut connections[place];
        connection.partial.clear();
        match dice.below(3) {
            0 => connection.requests.clear(),
            1 if self.has_late_requests => {
                connection.is_deaf = false;
                connection.free = connection.free.max(now + dice.millis(6000));
            }
            _ => {
                for request in std::mem::take(&mut connection.requests) {
                    request.answer(cluster, connection.node, dice, now);
                }
            }
        }
    }

    /// Breaks a connection in the middle of whatever goes over it.
    fn break_one(&mut self, place: usize, cluster: &mut Cluster, now: Duration) {
        if self.connections[place].stage != Stage::Open {
            return;
        }
        self.part(place, cluster, now);
        let connection = &mut self.connections[place];
        let kept = self.dice.below(connection.answers.len() + 1);
        connection.answers.truncate(kept);
        if let Some(last) = connection.answers.back_mut() {
            last.bytes.truncate(self.dice.below(last.bytes.len()));
        }
        let then = connection.answers.back().map_or(now, |last| last.then);
        connection.stage = Stage::Broken(then.max(now + self.dice.millis(30)));
    }

    fn some(&mut self) -> Option<usize> {
        let count = self.connections.len();
        (count > 0).then(|| self.dice.below(count))
    }

    pub(crate) fn break_some(&mut self, cluster: &mut Cluster, now: Duration) {
        if let Some(place) = self.some() {
            self.break_one(place, cluster, now);
        }
    }

    pub(crate) fn mute_some(&mut self) {
        if let Some(place) = self.some() {
            self.connections[place].is_mute = true;
            self.connections[place].is_deaf |= self.dice.one_in(2);
        }
    }

    /// A broker goes down, with all its connections.
    pub(crate) fn take_down(&mut self, node: usize, cluster: &mut Cluster, now: Duration) {
        self.down[node] = now + self.dice.millis(4000);
        for place in 0..self.connections.len() {
            if self.connections[place].node == node {
                self.break_one(place, cluster, now);
            }
        }
    }

    /// What the client's writev(2) does.
    pub(crate) fn send(
        &mut self,
        link: LinkId,
        slices: &[IoSlice<'_>],
        now: Duration,
    ) -> io::Result<usize> {
        let Self { connections, dice, .. } = self;
        let connection = connections.iter_mut().find(|of| of.link == link);
        let connection = connection.expect("a connection that was made and not closed");
        assert_eq!(connection.blocked_until, None, "sent to a socket that is full");
        let all: usize = slices.iter().map(|slice| slice.len()).sum();
        assert!(all > 0, "nothing is sent");
        match connection.stage {
            Stage::Open => {}
            Stage::Broken(_) if dice.one_in(2) => return Ok(all),
            Stage::Broken(_) => return Err(io::ErrorKind::ConnectionReset.into()),
            other => panic!("sent over a connection that is {other:?}"),
        }
        let taken = match dice.below(if self.is_well { 30 } else { 6 }) {
            0 => {
                connection.blocked_until = Some(now + dice.millis(200));
                return Err(io::ErrorKind::WouldBlock.into());
            }
            1 => return Err(io::ErrorKind::Interrupted.into()),
            2 | 3 => 1 + dice.below(all),
            _ => all,
        };
        let mut rest = taken;
        for slice in slices {
            let count = rest.min(slice.len());
            connection.partial.extend_from_slice(&slice[..count]);
            rest -= count;
        }
        connection.take_requests(now + dice.millis(3));
        self.count_flying();
        Ok(taken)
    }

    fn count_flying(&mut self) {
        let mut partitions: Vec<usize> = Vec::new();
        for connection in &self.connections {
            assert!(connection.flying.len() <= MOST_OF_LINK, "requests on a connection");
            partitions.extend(connection.flying.iter().flatten());
        }
        partitions.sort_unstable();
        let most = partitions.chunk_by(|one, other| one == other).map(<[usize]>::len).max();
        self.most_flying = self.most_flying.max(most.unwrap_or_default());
    }

    /// The brokers carry out what is due, one request of a connection after another. True if something was.
    pub(crate) fn serve(&mut self, cluster: &mut Cluster, now: Duration) -> bool {
        let Self { connections, dice, .. } = self;
        let (mut any, mut over) = (false, None);
        let first = dice.below(connections.len());
        for place in 0..connections.len() {
            let place = (first + place) % connections.len();
            let connection = &mut connections[place];
            if connection.due(&self.stuck).is_none_or(|then| now < then) {
                continue;
            }
            any = true;
            let request = connection.requests.pop_front().expect("it is due");
            if !connection.admits(&request, cluster, now) {
                // As brokers do whose time for a login is over.
                over = Some(place);
                break;
            }
            let bytes = request.answer(cluster, connection.node, dice, now);
            let delay = if !self.is_well && dice.one_in(30) { 2500 } else { 4 };
            connection.free = now + dice.millis(delay);
            if !connection.is_mute && connection.stage == Stage::Open {
                let then = now + dice.millis(delay);
                let then = connection.answers.back().map_or(then, |last| last.then.max(then));
                let is_of_records = request.partitions().is_some();
                let is_wrong = !self.is_well && dice.one_in(500);
                let bytes = if is_wrong { spoil(&bytes, dice) } else { bytes };
                connection.answers.push_back(Answer { then, bytes, is_of_records });
            }
        }
        if let Some(place) = over {
            self.break_one(place, cluster, now);
        }
        self.connections.retain(|of| of.stage != Stage::Left || !of.requests.is_empty());
        any
    }

    /// What the client is told now, if anything.
    pub(crate) fn event(&mut self, now: Duration) -> Option<Event> {
        let Self { connections, dice, .. } = self;
        let due: Vec<usize> = (0..connections.len())
            .filter(|place| connections[*place].told().is_some_and(|then| then <= now))
            .collect();
        let place = *due.get(dice.below(due.len()))?;
        let connection = &mut connections[place];
        let link = connection.link;
        if connection.blocked_until.is_some_and(|then| then <= now) {
            connection.blocked_until = None;
            return Some(Event::Writable(link));
        }
        if let Some(answer) = connection.answers.front_mut().filter(|answer| answer.then <= now) {
            let count =
                if dice.one_in(4) { dice.below(answer.bytes.len() + 1) } else { usize::MAX };
            let bytes = answer.bytes.split_to(count.min(answer.bytes.len()));
            let is_broken = connection.stage != Stage::Open;
            if answer.bytes.is_empty() {
                let answer = connection.answers.pop_front().expect("there is one");
                // The last one of a broken connection is not whole.
                let is_whole = !is_broken || !connection.answers.is_empty();
                if answer.is_of_records && is_whole {
                    connection.flying.pop_front();
                }
            }
            return Some(Event::Received(link, bytes));
        }
        if let Stage::Making(_, true) = connection.stage {
            connection.stage = Stage::Open;
            return Some(Event::Connected(link));
        }
        connection.stage = Stage::Left;
        connection.flying.clear();
        Some(Event::Failed(link))
    }

    /// When something happens next.
    pub(crate) fn next(&self) -> Option<Duration> {
        let due = self.connections.iter().filter_map(|of| of.due(&self.stuck));
        due.chain(self.connections.iter().filter_map(Connection::told)).min()
    }

    /// How many connections the client has.
    pub(crate) fn count(&self) -> usize {
        self.connections.iter().filter(|of| of.stage != Stage::Left).count()
    }
}

/// Makes an answer wrong, so that nobody can take it for another one.
fn spoil(answer: &Bytes, dice: &mut Dice) -> Bytes {
    let mut body = answer[4..].to_vec();
    match dice.below(4) {
        0 => body[1] ^= 1 << dice.below(8),
        1 => body.truncate(dice.below(body.len())),
        2 => body.push(0),
        _ => return Bytes::from_static(&[0xff; 4]),
    }
    let length = u32::try_from(body.len()).expect("short");
    [&length.to_be_bytes()[..], &body].concat().into()
}

impl Connection {
    /// Takes whole requests out of what has come.
    fn take_requests(&mut self, then: Duration) {
        while let Some((length, rest)) = self.partial.split_first_chunk::<4>() {
            let length = u32::from_be_bytes(*length) as usize;
            let Some(frame) = rest.get(..length) else { break };
            let request = Request::read(Bytes::copy_from_slice(frame));
            self.flying.extend(request.partitions());
            self.requests.push_back(request);
            self.partial.drain(..4 + length);
            self.free = self.free.max(then);
        }
    }

    /// Whether the broker carries out a request of whoever this is.
    fn admits(&mut self, request: &Request, cluster: &Cluster, now: Duration) -> bool {
        let Some(holds) = cluster.login else { return true };
        match request.says() {
            Says::Nothing => assert_eq!(self.said, Says::Nothing, "versions are asked for first"),
            Says::Mechanism => {
                assert_ne!(self.said, Says::Mechanism, "a mechanism twice");
                self.said = Says::Mechanism;
            }
            Says::Login => {
                assert_eq!(self.said, Says::Mechanism, "no mechanism");
                self.said = Says::Login;
                self.known_until = if holds.is_zero() { Duration::MAX } else { now + holds };
            }
            Says::Known => {
                assert_eq!(self.said, Says::Login, "asked before it was said who asks");
                return now <= self.known_until;
            }
        }
        true
    }

    /// When the broker carries out the next request.
    fn due(&self, stuck: &[Duration]) -> Option<Duration> {
        let waits = !self.is_deaf && !self.requests.is_empty();
        waits.then(|| self.free.max(stuck[self.node]))
    }

    /// When the client is told something.
    fn told(&self) -> Option<Duration> {
        let ends = match self.stage {
            Stage::Making(then, _) | Stage::Broken(then) => Some(then),
            Stage::Lost | Stage::Open => None,
            Stage::Left => return None,
        };
        let answer = self.answers.front().map(|answer| answer.then);
        // What has come is told before the end.
        answer.or(ends).into_iter().chain(self.blocked_until).min()
    }
}
