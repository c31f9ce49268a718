//! Connections to brokers.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{
    CONNECT_TIMEOUT, FORMER_LEADER_TIMEOUT, MOST_OF_LINK, QUESTION_TIMEOUT, partition::backoff,
};
use crate::batch::Batch;
use crate::message::{Api, Versions, VersionsFormat};
use crate::sasl::Exchange;

/// A connection's name. None is used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkId(pub u64);

/// Memory that a connection keeps for answers.
const INPUT_BYTES: usize = 64 << 10;
/// Of a request, without the batches in it.
const USUAL_REQUEST_BYTES: usize = 128;
/// Requests whose memory a connection keeps: so many with records, and a question or two.
const SPARE_REQUESTS: usize = MOST_OF_LINK + 2;
/// Most slices of one writev(2): a full batch has some dozens.
const MOST_SLICES: usize = 128;

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// It is being made.
    Connecting,
    /// The broker was asked for its versions.
    Greeting,
    /// It is to be told who we are; for the first time, or again because that holds for so long only.
    Authenticating(Versions),
    /// It takes requests.
    Ready(Versions),
}

/// A request that is not answered yet.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) correlation: i32,
    pub(super) sent: Instant,
    pub(super) what: What,
}

/// What was asked.
#[derive(Debug)]
pub(super) enum What {
    Versions(VersionsFormat),
    /// A mechanism to say who we are.
    Mechanism,
    /// A message of it.
    Message,
    Metadata,
    Identity,
    /// The version, and batches: partition, and number in it.
    Produce(i16, Vec<(u16, u64)>),
}

impl What {
    pub(super) const fn api(&self) -> Api {
        match self {
            Self::Versions(_) => Api::ApiVersions,
            Self::Mechanism => Api::SaslHandshake,
            Self::Message => Api::SaslAuthenticate,
            Self::Metadata => Api::Metadata,
            Self::Identity => Api::InitProducerId,
            Self::Produce(..) => Api::Produce,
        }
    }
}

/// A connection.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) id: LinkId,
    /// The broker's `node.id`; none of one that was only found in the configuration.
    pub(super) node: Option<i32>,
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) stage: Stage,
    /// Since when it is in that stage.
    pub(super) since: Instant,
    input: Vec<u8>,
    pub(super) output: Output,
    pub(super) flights: VecDeque<Flight>,
    next_correlation: i32,
    /// The broker wants no request until then.
    pub(super) quiet_until: Option<Instant>,
    /// It leads no more what was sent to it up to the request of this number, and has so long to answer.
    former_until: Option<(i32, Instant)>,
    /// What was said of who we are, while that goes on.
    pub(super) exchange: Option<Exchange>,
    /// When it has to be said again.
    pub(super) again_at: Option<Instant>,
}

impl Link {
    /// The number of the next request.
    pub(super) fn correlation(&mut self) -> i32 {
        let correlation = self.next_correlation;
        self.next_correlation = correlation.wrapping_add(1) & i32::MAX;
        correlation
    }

    /// True if records are on their way.
    pub(super) fn carries_records(&self) -> bool {
        self.flights.iter().any(|flight| matches!(flight.what, What::Produce(..)))
    }

    /// True if it takes a further request with records.
    pub(super) fn takes_records(&self) -> bool {
        let carried = self.flights.iter().filter(|flight| matches!(flight.what, What::Produce(..)));
        matches!(self.stage, Stage::Ready(_)) && carried.count() < MOST_OF_LINK
    }

    /// How long the broker has answered nothing.
    pub(super) fn silence(&self, now: Instant) -> Duration {
        let oldest = self.flights.front();
        oldest.map_or(Duration::ZERO, |flight| now.saturating_duration_since(flight.sent))
    }

    /// When it is given up if nothing happens.
    pub(super) fn deadline(&self, request_timeout: Duration) -> Option<Instant> {
        let patience = match self.stage {
            Stage::Connecting => Some(self.since + CONNECT_TIMEOUT),
            Stage::Greeting | Stage::Authenticating(_) | Stage::Ready(_) => {
                self.flights.front().map(|flight| {
                    let records = matches!(flight.what, What::Produce(..));
                    flight.sent + if records { request_timeout } else { QUESTION_TIMEOUT }
                })
            }
        };
        patience.into_iter().chain(self.former_until.map(|(_, then)| then)).min()
    }

    /// Has so long to answer as a former leader has.
    pub(super) fn is_former(&mut self, now: Instant) {
        if let Some(last) = self.flights.back() {
            self.former_until.get_or_insert((last.correlation, now + FORMER_LEADER_TIMEOUT));
        }
    }

    /// The oldest request is answered.
    pub(super) fn landed(&mut self) -> Option<Flight> {
        let flight = self.flights.pop_front()?;
        self.former_until = self.former_until.filter(|(last, _)| *last != flight.correlation);
        Some(flight)
    }

    /// What has come of an answer that is not whole yet.
    pub(super) fn take_input(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.input)
    }

    /// So many bytes of it are dealt with.
    pub(super) fn put_input_back(&mut self, mut input: Vec<u8>, used: usize) {
        input.drain(..used);
        input.shrink_to(INPUT_BYTES);
        self.input = input;
    }
}

/// What is to be sent over a connection.
#[derive(Debug, Default)]
pub(super) struct Output {
    pieces: VecDeque<Piece>,
    /// Of the first piece.
    sent: usize,
    is_blocked: bool,
    /// Memory of what was sent.
    spare: Vec<Vec<u8>>,
}

/// Longest of the short pieces, which stand before and after a batch; with it a piece takes no more room
/// than with the others.
const MOST_SHORT_BYTES: usize = 22;

#[derive(Debug)]
enum Piece {
    Bytes(Vec<u8>),
    /// So many of these bytes.
    Short(u8, [u8; MOST_SHORT_BYTES]),
    Batch(Arc<Batch>),
}

impl Piece {
    fn length(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Short(length, _) => usize::from(*length),
            Self::Batch(batch) => batch.size(),
        }
    }

    /// Its bytes, in parts.
    fn parts(&self) -> impl Iterator<Item = &[u8]> {
        let (bytes, batch) = match self {
            Self::Bytes(bytes) => (Some(&**bytes), None),
            Self::Short(length, bytes) => (Some(&bytes[..usize::from(*length)]), None),
            Self::Batch(batch) => (None, Some(batch.pieces())),
        };
        bytes.into_iter().chain(batch.into_iter().flatten())
    }
}

impl Output {
    /// Memory for what is to be pushed.
    pub(super) fn blank(&mut self) -> Vec<u8> {
        self.spare.pop().unwrap_or_else(|| Vec::with_capacity(USUAL_REQUEST_BYTES))
    }

    pub(super) fn push(&mut self, bytes: Vec<u8>) {
        self.pieces.push_back(Piece::Bytes(bytes));
    }

    /// A place for what is not known yet, but is to be sent before what is pushed next.
    pub(super) fn reserve(&mut self) -> usize {
        self.push(Vec::new());
        self.pieces.len() - 1
    }

    /// What stands in a place that was reserved, before anything more is sent.
    pub(super) fn fill(&mut self, place: usize, bytes: Vec<u8>) {
        self.pieces[place] = Piece::Bytes(bytes);
    }

    /// A copy of something that is short as a rule.
    pub(super) fn push_short(&mut self, bytes: &[u8]) {
        let mut short = [0; MOST_SHORT_BYTES];
        let piece = match (short.get_mut(..bytes.len()), u8::try_from(bytes.len())) {
            (Some(place), Ok(length)) => {
                place.copy_from_slice(bytes);
                Piece::Short(length, short)
            }
            _ => Piece::Bytes(bytes.to_vec()),
        };
        self.pieces.push_back(piece);
    }

    pub(super) fn push_batch(&mut self, batch: Arc<Batch>) {
        self.pieces.push_back(Piece::Batch(batch));
    }

    pub(super) fn unblock(&mut self) {
        self.is_blocked = false;
    }

    /// Sends as much as is taken.
    pub(super) fn flush(
        &mut self,
        mut send: impl FnMut(&[IoSlice<'_>]) -> io::Result<usize>,
    ) -> io::Result<()> {
        while !self.is_blocked && !self.pieces.is_empty() {
            let mut slices = [IoSlice::new(&[]); MOST_SLICES];
            let mut skip = self.sent;
            let mut count = 0;
            for part in self.pieces.iter().flat_map(Piece::parts) {
                if let Some(rest) = part.get(skip..).filter(|rest| !rest.is_empty()) {
                    slices[count] = IoSlice::new(rest);
                    count += 1;
                    if count == MOST_SLICES {
                        break;
                    }
                }
                skip = skip.saturating_sub(part.len());
            }
            match send(&slices[..count]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(bytes) => self.advance(bytes),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.is_blocked = true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn advance(&mut self, bytes: usize) {
        self.sent += bytes;
        while let Some(piece) = self.pieces.front() {
            let length = piece.length();
            if self.sent < length {
                break;
            }
            self.sent -= length;
            if let Some(Piece::Bytes(mut bytes)) = self.pieces.pop_front()
                && self.spare.len() < SPARE_REQUESTS
            {
                bytes.clear();
                self.spare.push(bytes);
            }
        }
    }
}

/// A place where there may be a broker.
#[derive(Debug)]
struct Address {
    host: String,
    port: u16,
    failures: u32,
    not_before: Option<Instant>,
}

/// All connections, and which addresses have failed lately.
#[derive(Debug, Default)]
pub(super) struct Peers {
    pub(super) links: Vec<Link>,
    addresses: Vec<Address>,
    made: u64,
    /// Where to look next for somebody to ask.
    pub(super) turn: usize,
}

impl Peers {
    pub(super) fn get(&mut self, id: LinkId) -> Option<&mut Link> {
        self.links.iter_mut().find(|link| link.id == id)
    }

    /// The connection to a broker, by its place.
    pub(super) fn to_node(&self, node: i32) -> Option<usize> {
        self.links.iter().position(|link| link.node == Some(node))
    }

    /// True if there is a connection to that address.
    pub(super) fn has(&self, host: &str, port: u16) -> bool {
        self.links.iter().any(|link| link.port == port && link.host == host)
    }

    fn address(&mut self, host: &str, port: u16) -> &mut Address {
        let is_it = |address: &Address| address.port == port && address.host == host;
        let place = self.addresses.iter().position(is_it).unwrap_or_else(|| {
            let host = host.to_owned();
            self.addresses.push(Address { host, port, failures: 0, not_before: None });
            self.addresses.len() - 1
        });
        &mut self.addresses[place]
    }

    /// When that address may be tried again; none if it may be now.
    pub(super) fn not_before(&self, host: &str, port: u16, now: Instant) -> Option<Instant> {
        let is_it = |address: &&Address| address.port == port && address.host == host;
        self.addresses.iter().find(is_it)?.not_before.filter(|then| *then > now)
    }

    /// Begins a connection.
    pub(super) fn connect(
        &mut self,
        node: Option<i32>,
        (host, port): (&str, u16),
        now: Instant,
    ) -> LinkId {
        self.made += 1;
        let id = LinkId(self.made);
        self.links.push(Link {
            id,
            node,
            host: host.to_owned(),
            port,
            stage: Stage::Connecting,
            since: now,
            input: Vec::new(),
            output: Output::default(),
            flights: VecDeque::new(),
            next_correlation: 0,
            quiet_until: None,
            former_until: None,
            exchange: None,
            again_at: None,
        });
        id
    }

    /// Takes a connection out that has failed. True if that is the address's first failure since it worked
    /// last.
    pub(super) fn lose(&mut self, id: LinkId, now: Instant) -> Option<(Link, bool)> {
        let place = self.links.iter().position(|link| link.id == id)?;
        let link = self.links.remove(place);
        let address = self.address(&link.host, link.port);
        let is_news = address.failures == 0;
        address.not_before = Some(now + backoff(address.failures));
        address.failures = address.failures.saturating_add(1);
        Some((link, is_news))
    }

    /// A broker has answered. True if its address had failed before.
    pub(super) fn works(&mut self, id: LinkId) -> bool {
        let Some(link) = self.links.iter().find(|link| link.id == id) else { return false };
        let is_it = |of: &&mut Address| of.port == link.port && of.host == link.host;
        let Some(address) = self.addresses.iter_mut().find(is_it) else { return false };
        address.not_before = None;
        std::mem::take(&mut address.failures) > 0
    }

    /// Forgets addresses that are none of these.
    pub(super) fn keep_addresses(&mut self, is_kept: impl Fn(&str, u16) -> bool) {
        self.addresses.retain(|address| is_kept(&address.host, address.port));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_former_leader_that_has_answered_is_not_given_up() {
        let (mut peers, now) = (Peers::default(), Instant::now());
        let id = peers.connect(Some(1), ("b1", 9092), now);
        let link = peers.get(id).expect("it is there");
        link.stage = Stage::Greeting;
        let send = |link: &mut Link| {
            let (correlation, what) = (link.correlation(), What::Produce(9, Vec::new()));
            link.flights.push_back(Flight { correlation, sent: now, what });
        };
        let timeout = Duration::from_secs(30);
        (0..2).for_each(|_| send(link));
        link.is_former(now);
        send(link);
        assert_eq!(link.deadline(timeout), Some(now + FORMER_LEADER_TIMEOUT));
        link.landed();
        assert_eq!(link.deadline(timeout), Some(now + FORMER_LEADER_TIMEOUT));
        link.landed();
        assert_eq!(link.deadline(timeout), Some(now + timeout), "it leads what was sent since");
    }
}
