//! Sessions: what the standard wants remembered of a client while it is away.
//!
//! They are in the memory of one relay. What is lost with it, or crowded out, is told to the client
//! by *session present 0*, which is what the standard asks for.
//!
//! A session has a lock of its own, which its connection takes for what changes or asks it; two
//! connections meet there only while one takes over from the other. It stays where it is rather than
//! moving into its connection, because three may need it at a time, on as many workers: the connection
//! that has it, one that takes over, and one that has ended and hears what Kafka has of its messages.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::codec::ReplyOrigin;
use crate::kafka::ConnectionKey;

use super::packet::Qos;
use super::reason::Reason;
use super::topic;
use super::wire::Parsed;

/// All filters of one session in bytes.
const MAX_FILTER_BYTES: usize = 64 << 10;
/// Packet identifiers of QoS 2 that one client may have between PUBLISH and PUBREL. A client of MQTT
/// 5.0 is told a smaller number.
pub(super) const MAX_RECEIVED: usize = 1024;
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
}

impl Place {
    fn new(owner: ConnectionKey) -> Shared {
        Arc::new(Self { session: Mutex::new(Session::new(owner)), turn: AtomicU32::new(0) })
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
}

/// A subscription.
#[derive(Debug)]
struct Subscription {
    filter: Box<str>,
    qos: Qos,
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
    subscriptions: Vec<Subscription>,
    filter_bytes: usize,
    pub(super) received: HashMap<u16, Received>,
    pub(super) sent: VecDeque<Sent>,
    next_id: u16,
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
    fn new(owner: ConnectionKey) -> Self {
        Self {
            owner,
            subscriptions: Vec::new(),
            filter_bytes: 0,
            received: HashMap::new(),
            sent: VecDeque::new(),
            next_id: 1,
        }
    }

    /// Adds a subscription, or replaces that of the same filter; false if there are too many.
    pub(super) fn subscribe(
        &mut self,
        filter: &str,
        qos: Qos,
        identifier: Option<u32>,
        most: usize,
    ) -> bool {
        let same = |subscription: &&mut Subscription| &*subscription.filter == filter;
        if let Some(subscription) = self.subscriptions.iter_mut().find(same) {
            (subscription.qos, subscription.identifier) = (qos, identifier);
            return true;
        }
        let bytes = self.filter_bytes + filter.len();
        if self.subscriptions.len() >= most || bytes > MAX_FILTER_BYTES {
            return false;
        }
        self.filter_bytes = bytes;
        self.subscriptions.push(Subscription { filter: filter.into(), qos, identifier });
        true
    }

    /// Takes a subscription away; false if there was none.
    pub(super) fn unsubscribe(&mut self, filter: &str) -> bool {
        let place = self.subscriptions.iter().position(|other| &*other.filter == filter);
        if let Some(place) = place {
            self.subscriptions.remove(place);
            self.filter_bytes -= filter.len();
        }
        place.is_some()
    }

    /// Whether the client wants what is published under a name.
    pub(super) fn matching(&self, name: &str) -> Option<Matched> {
        let covering =
            self.subscriptions.iter().filter(|other| topic::matches(&other.filter, name));
        covering.fold(None, |matched: Option<Matched>, subscription| {
            let mut matched =
                matched.unwrap_or(Matched { qos: Qos::Zero, identifiers: Vec::new() });
            matched.qos = matched.qos.max(subscription.qos);
            matched.identifiers.extend(subscription.identifier);
            Some(matched)
        })
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
        self.sent.push_back(Sent { origin, id, qos, progress: Progress::Published, here: true });
        id
    }

    /// The connection of the replies under way is no more. Those that do not wait for their client
    /// elsewhere never come again.
    fn part(&mut self, replies_wait: bool) {
        self.sent.iter_mut().for_each(|sent| sent.here = false);
        if !replies_wait {
            self.sent.retain(|sent| sent.progress == Progress::Released);
        }
    }
}

/// A client's place in the table.
#[derive(Debug)]
struct Slot {
    session: Shared,
    /// None while it is connected.
    expires: Option<Instant>,
}

/// All sessions of a service.
#[derive(Debug)]
pub(super) struct Sessions {
    table: Mutex<Table>,
    most: usize,
    /// Replies wait for clients that are away.
    replies_wait: bool,
}

#[derive(Debug, Default)]
struct Table {
    slots: HashMap<Arc<str>, Slot>,
    /// Those that are away, the first to expire first.
    away: BTreeSet<(Instant, Arc<str>)>,
}

/// What a client that connects gets.
#[derive(Debug)]
pub(super) struct Attached {
    pub(super) session: Shared,
    /// See [`Place::turn`].
    pub(super) turn: u32,
    /// It is a former one.
    pub(super) present: bool,
    /// The connection that had the client identifier until now.
    pub(super) former: Option<ConnectionKey>,
}

impl Sessions {
    /// For so many clients, those included that are away.
    pub(super) fn new(most: usize, replies_wait: bool) -> Self {
        Self { table: Mutex::default(), most, replies_wait }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("no panic under this lock")
    }

    /// Gives a connection its client's session, or a new one.
    pub(super) fn attach(
        &self,
        client: &Arc<str>,
        clean: bool,
        owner: ConnectionKey,
        now: Instant,
    ) -> Attached {
        let mut table = self.table();
        table.expire(now);
        let former = table.remove(client);
        let connected = former.as_ref().is_some_and(|slot| slot.expires.is_none());
        let present = former.is_some() && !clean;
        let (session, former) = match former {
            Some(slot) => {
                slot.session.turn.fetch_add(1, Ordering::Release);
                let mut session = slot.session.lock();
                let former = connected.then_some(session.owner);
                if clean {
                    drop(session);
                    // The former connection keeps its own, for what is left to it to do.
                    (Place::new(owner), former)
                } else {
                    session.owner = owner;
                    session.part(self.replies_wait);
                    drop(session);
                    (slot.session, former)
                }
            }
            None => (Place::new(owner), None),
        };
        table.make_room(self.most);
        let slot = Slot { session: Arc::clone(&session), expires: None };
        table.slots.insert(Arc::clone(client), slot);
        // Before the table is free for the next one.
        Attached { turn: session.turn(), session, present, former }
    }

    /// A connection has ended; its session is kept for so long.
    pub(super) fn part(
        &self,
        client: &Arc<str>,
        session: &Shared,
        owner: ConnectionKey,
        keep: Duration,
        now: Instant,
    ) {
        let mut table = self.table();
        let ours = table.slots.get(client).is_some_and(|slot| Arc::ptr_eq(&slot.session, session));
        let mut locked = session.lock();
        if !ours || locked.owner != owner {
            return;
        }
        if keep.is_zero() {
            table.remove(client);
            return;
        }
        locked.part(self.replies_wait);
        drop(locked);
        let expires = now + keep;
        if let Some(slot) = table.slots.get_mut(client) {
            slot.expires = Some(expires);
        }
        table.away.insert((expires, Arc::clone(client)));
    }
}

impl Table {
    fn remove(&mut self, client: &Arc<str>) -> Option<Slot> {
        let slot = self.slots.remove(client)?;
        if let Some(expires) = slot.expires {
            self.away.remove(&(expires, Arc::clone(client)));
        }
        Some(slot)
    }

    fn expire(&mut self, now: Instant) {
        while let Some((expires, client)) = self.away.first()
            && *expires <= now
        {
            let client = Arc::clone(client);
            self.remove(&client);
        }
    }

    /// Sessions of clients that are away give way to those of clients that are there; the first to
    /// expire first. Clients that are there are bounded by the workers' connections.
    fn make_room(&mut self, most: usize) {
        while self.slots.len() >= most
            && let Some((_, client)) = self.away.first()
        {
            let client = Arc::clone(client);
            self.remove(&client);
        }
    }
}
