//! Sessions: what the standard wants remembered of a client while it is away.
//!
//! They are in the memory of one relay. What is lost with it, or crowded out, is told to the client
//! by *session present 0*, which is what the standard asks for.
//!
//! A session has a lock of its own, which its connection takes for what changes or asks it; two
//! connections meet there only while one takes over from the other. It stays where it is rather than
//! moving into its connection, because three may need it at a time, on as many workers: the connection
//! that has it, one that takes over, and one that has ended and hears what Kafka has of its messages.
//!
//! A connection that takes over waits until its predecessor has said its last, the will included, and
//! Kafka has all of that; then what the client says next comes behind it.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use millrace_model::{ConnectionKey, ReplyOrigin};

use super::ids::PacketIds;
use super::packet::{Qos, Wanted};
use super::reason::Reason;
use super::topic;
use super::wire::Parsed;

/// What a session is counted as beside what it is seen to take: its places in tables.
const CLIENT_BYTES: usize = 192;
/// All filters of one session in bytes.
const MAX_FILTER_BYTES: usize = 64 << 10;
/// Replies of QoS 1 and 2 of which the end is not known. Beyond it the oldest that is not under way on
/// the present connection is forgotten: its reply has become a dead letter.
const MAX_SENT: usize = 1024;

/// A session, shared by its table and its connection.
pub(super) type Shared = Arc<Place>;

/// Where a session is.
#[derive(Debug)]
pub(super) struct Place {
    session: Mutex<Session>,
    /// Counts the client's connections: whose turn it is can be seen without the lock.
    turn: AtomicU32,
    /// Behind the last turn of whose connection Kafka has everything.
    finished: AtomicU32,
}

impl Place {
    pub(super) fn new(owner: ConnectionKey, client: &str, bytes: &Arc<AtomicUsize>) -> Shared {
        let fixed = size_of::<Self>() + CLIENT_BYTES + 2 * client.len();
        let books = Books::new(fixed, bytes.clone());
        Arc::new(Self {
            session: Mutex::new(Session::new(owner, books)),
            turn: AtomicU32::new(0),
            finished: AtomicU32::new(0),
        })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Session> {
        self.session.lock().expect("no panic under this lock")
    }

    /// Locks it for its connection; refused if another one has taken over.
    pub(super) fn lock_as(&self, owner: ConnectionKey) -> Parsed<MutexGuard<'_, Session>> {
        let session = self.lock();
        if session.owner == owner { Ok(session) } else { Err(Reason::SESSION_TAKEN_OVER) }
    }

    /// Whose turn it is now.
    pub(super) fn turn(&self) -> u32 {
        self.turn.load(Ordering::Acquire)
    }

    /// It is the next connection's.
    pub(super) fn next_turn(&self) {
        self.turn.fetch_add(1, Ordering::Release);
    }

    /// The connection that had this turn has said its last, and Kafka has it.
    pub(super) fn finish(&self, turn: u32) {
        self.finished.fetch_max(turn + 1, Ordering::AcqRel);
    }

    pub(super) fn is_finished(&self) -> bool {
        self.finished.load(Ordering::Acquire) > self.turn()
    }
}

/// What a session takes of the memory for all of them.
#[derive(Debug)]
struct Books {
    fixed: usize,
    booked: usize,
    total: Arc<AtomicUsize>,
}

impl Books {
    fn new(fixed: usize, total: Arc<AtomicUsize>) -> Self {
        total.fetch_add(fixed, Ordering::Relaxed);
        Self { fixed, booked: fixed, total }
    }

    /// Books what changes.
    fn set(&mut self, bytes: usize) {
        let (before, now) = (self.booked, self.fixed + bytes);
        self.booked = now;
        if now >= before {
            self.total.fetch_add(now - before, Ordering::Relaxed);
        } else {
            self.total.fetch_sub(before - now, Ordering::Relaxed);
        }
    }
}

impl Drop for Books {
    fn drop(&mut self) {
        self.total.fetch_sub(self.booked, Ordering::Relaxed);
    }
}

/// A subscription.
#[derive(Debug)]
struct Subscription {
    filter: Box<str>,
    qos: Qos,
    no_local: bool,
    identifier: Option<u32>,
}

/// Where a message of QoS 2 is whose PUBREL has not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// On its way to Kafka, from this connection.
    Pending(ConnectionKey),
    /// Kafka has it: PUBREC may be sent.
    Safe,
}

/// How far a reply of QoS 1 or 2 is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Sent, and not confirmed.
    Published,
    /// QoS 2: the client has it (PUBREC); PUBREL was sent.
    Released,
    /// The client is done with it; the reply itself has not come again yet since the client was away.
    Completed,
}

/// A reply of QoS 1 or 2.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    pub(super) origin: ReplyOrigin,
    pub(super) id: u16,
    pub(super) qos: Qos,
    pub(super) progress: Progress,
    /// The reply is with the present connection, which settles it.
    pub(super) here: bool,
}

/// What a client's connections have in common.
#[derive(Debug)]
pub(super) struct Session {
    /// The connection that may change it.
    pub(super) owner: ConnectionKey,
    /// How long it outlives its connection, in seconds.
    pub(super) keep_s: u32,
    /// A clean start has ended it: it goes on for nobody.
    pub(super) ended: bool,
    subscriptions: Vec<Subscription>,
    filter_bytes: usize,
    /// Messages of QoS 2 without PUBREL that Kafka does not have yet, and whose connections sent them.
    pending: HashMap<u16, ConnectionKey>,
    /// Those that it has. A packet identifier is all that is kept of one: a client that keeps no window of
    /// its own is not cut off while there is room (see [`Session::may_begin`]).
    safe: PacketIds,
    pub(super) sent: VecDeque<Sent>,
    next_id: u16,
    books: Books,
}

/// What the subscriptions of a client make of a topic.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Matched {
    /// Greatest of the subscriptions that cover it.
    pub(super) qos: Qos,
    /// Their identifiers.
    pub(super) identifiers: Vec<u32>,
}

impl Session {
    fn new(owner: ConnectionKey, books: Books) -> Self {
        Self {
            owner,
            keep_s: 0,
            ended: false,
            subscriptions: Vec::new(),
            filter_bytes: 0,
            pending: HashMap::new(),
            safe: PacketIds::default(),
            sent: VecDeque::new(),
            next_id: 1,
            books,
        }
    }

    /// What so many subscriptions take at most, without their filters.
    pub(super) const fn bytes_of_subscriptions(count: usize) -> usize {
        2 * count * size_of::<Subscription>()
    }

    /// Books the memory that it takes.
    fn book(&mut self) {
        let bytes = self.filter_bytes
            + self.subscriptions.capacity() * size_of::<Subscription>()
            + self.pending.capacity() * size_of::<(u16, ConnectionKey)>()
            + self.safe.bytes()
            + self.sent.capacity() * size_of::<Sent>();
        self.books.set(bytes);
    }

    /// Whether another connection of the client goes on with it: "The Session Present flag" and all that
    /// it stands for (MQTT-3.1.2-4, MQTT-3.2.2-3). One that is not to outlive its connection ends with
    /// that, a take-over included: its state "MUST NOT be reused in any subsequent Session"
    /// (MQTT-3.1.2-6 of 3.1.1; section 3.1.2.11.2 of 5.0).
    pub(super) const fn goes_on(&self) -> bool {
        !self.ended && self.keep_s > 0
    }

    /// Adds a subscription, or replaces that of the same filter; false if there are too many, or the
    /// memory for all sessions is used up.
    pub(super) fn subscribe(
        &mut self,
        filter: &str,
        wanted: Wanted,
        most: usize,
        most_bytes: usize,
    ) -> bool {
        let Wanted { qos, no_local, identifier } = wanted;
        let same = |subscription: &&mut Subscription| &*subscription.filter == filter;
        if let Some(former) = self.subscriptions.iter_mut().find(same) {
            (former.qos, former.no_local, former.identifier) = (qos, no_local, identifier);
            return true;
        }
        let bytes = self.filter_bytes + filter.len();
        let total = self.books.total.load(Ordering::Relaxed) + filter.len();
        if self.subscriptions.len() >= most || bytes > MAX_FILTER_BYTES || total > most_bytes {
            return false;
        }
        self.filter_bytes = bytes;
        self.subscriptions.push(Subscription { filter: filter.into(), qos, no_local, identifier });
        self.book();
        true
    }

    /// Takes a subscription away; false if there was none.
    pub(super) fn unsubscribe(&mut self, filter: &str) -> bool {
        let place = self.subscriptions.iter().position(|other| &*other.filter == filter);
        if let Some(place) = place {
            self.subscriptions.remove(place);
            self.filter_bytes -= filter.len();
            self.book();
        }
        place.is_some()
    }

    /// Whether the client wants what is published under a name, by itself or by somebody else.
    pub(super) fn matching(&self, name: &str, own: bool) -> Option<Matched> {
        // "Application Messages MUST NOT be forwarded to a connection with a ClientID equal to the
        // ClientID of the publishing connection" (MQTT-3.8.3-3).
        let wanted = self.subscriptions.iter().filter(|other| !(own && other.no_local));
        let covering = wanted.filter(|other| topic::matches(&other.filter, name));
        covering.fold(None, |matched: Option<Matched>, subscription| {
            let mut matched =
                matched.unwrap_or(Matched { qos: Qos::Zero, identifiers: Vec::new() });
            matched.qos = matched.qos.max(subscription.qos);
            matched.identifiers.extend(subscription.identifier);
            Some(matched)
        })
    }

    /// Where a message of QoS 2 is, if its PUBREL has not come.
    pub(super) fn received(&self, id: u16) -> Option<Received> {
        let pending = self.pending.get(&id).map(|key| Received::Pending(*key));
        pending.or_else(|| self.safe.contains(id).then_some(Received::Safe))
    }

    /// Whether the client may begin one more message of QoS 2: up to the number that it was granted, and
    /// beyond that while half of the memory for all sessions is free. So it is never this that crowds out
    /// an absent client.
    pub(super) fn may_begin(&self, granted: u16, most_bytes: usize) -> bool {
        self.pending.len() + self.safe.len() < usize::from(granted)
            || self.books.total.load(Ordering::Relaxed) <= most_bytes / 2
    }

    /// Notes a message of QoS 2 on its way to Kafka.
    pub(super) fn receive(&mut self, id: u16) {
        let capacity = self.pending.capacity();
        self.pending.insert(id, self.owner);
        if self.pending.capacity() != capacity {
            self.book();
        }
    }

    /// Kafka has one that this connection sent.
    pub(super) fn note_safe(&mut self, id: u16, sender: ConnectionKey) {
        if self.pending.get(&id) == Some(&sender) {
            self.pending.remove(&id);
            let bytes = self.safe.bytes();
            self.safe.insert(id);
            if self.safe.bytes() != bytes {
                self.book();
            }
        }
    }

    /// PUBREL has come for one that Kafka has; false if there is none.
    pub(super) fn release(&mut self, id: u16) -> bool {
        let bytes = self.safe.bytes();
        let was_there = self.safe.remove(id);
        if self.safe.bytes() != bytes {
            self.book();
        }
        was_there
    }

    /// What of this connection Kafka does not have has to come again.
    pub(super) fn forget_pending(&mut self, sender: ConnectionKey) {
        self.pending.retain(|_, key| *key != sender);
    }

    /// The place of a reply that was sent.
    pub(super) fn sent_by_origin(&self, origin: ReplyOrigin) -> Option<usize> {
        self.sent.iter().position(|sent| sent.origin == origin)
    }

    /// The place of the reply under a packet identifier.
    pub(super) fn sent_by_id(&self, id: u16) -> Option<usize> {
        let under_way = |sent: &Sent| sent.id == id && sent.progress != Progress::Completed;
        self.sent.iter().position(under_way)
    }

    /// A packet identifier for a reply that is sent for the first time.
    pub(super) fn send(&mut self, origin: ReplyOrigin, qos: Qos) -> u16 {
        while self.sent.len() >= MAX_SENT
            && let Some(oldest) = self.sent.iter().position(|sent| !sent.here)
        {
            self.sent.remove(oldest);
        }
        let id = loop {
            let id = self.next_id;
            self.next_id = self.next_id.checked_add(1).unwrap_or(1);
            if self.sent_by_id(id).is_none() {
                break id;
            }
        };
        let capacity = self.sent.capacity();
        self.sent.push_back(Sent { origin, id, qos, progress: Progress::Published, here: true });
        if self.sent.capacity() != capacity {
            self.book();
        }
        id
    }

    /// The connection of the replies under way is no more. Those that do not wait for their client
    /// elsewhere never come again.
    pub(super) fn part(&mut self, replies_wait: bool) {
        self.sent.iter_mut().for_each(|sent| sent.here = false);
        if !replies_wait {
            self.sent.retain(|sent| sent.progress == Progress::Released);
        }
        self.subscriptions.shrink_to_fit();
        self.pending.shrink_to_fit();
        self.safe.shrink_to_fit();
        self.sent.shrink_to_fit();
        self.book();
    }
}
