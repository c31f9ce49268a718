//! The table of all sessions of a service.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use millrace_model::ConnectionKey;

use super::session::{Place, Shared};

/// A client's place in the table.
#[derive(Debug)]
struct Slot {
    session: Shared,
    /// None while it is connected.
    expires: Option<Instant>,
    /// The client's place in the order of all clients' arrivals.
    arrival: u64,
}

impl Slot {
    fn is_connected(&self) -> bool {
        self.expires.is_none()
    }
}

/// All sessions of a service.
#[derive(Debug)]
pub(super) struct Sessions {
    table: Mutex<Table>,
    most: usize,
    most_bytes: usize,
    /// What they take of memory.
    bytes: Arc<AtomicUsize>,
    /// Replies wait for clients that are away.
    replies_wait: bool,
    arrivals: AtomicU64,
}

#[derive(Debug, Default)]
struct Table {
    slots: HashMap<Arc<str>, Slot>,
    /// Those that are away, the first to expire first.
    away: BTreeSet<(Instant, Arc<str>)>,
}

/// Who wants a session.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrival<'a> {
    pub(super) client: &'a Arc<str>,
    /// It wants a new one.
    pub(super) clean: bool,
    pub(super) owner: ConnectionKey,
    /// How long it shall outlive the connection, in seconds.
    pub(super) keep_s: u32,
    /// See [`Sessions::arrive`].
    pub(super) number: u64,
}

/// Whether a client may have its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Readiness {
    Ready,
    /// Its former connection has not said its last.
    Not(ConnectionKey),
    /// It has connected once more meanwhile.
    Superseded,
}

/// What a client that connects gets.
#[derive(Debug)]
pub(super) struct Attached {
    pub(super) session: Shared,
    /// See [`Place::turn`].
    pub(super) turn: u32,
    /// It is a former one.
    pub(super) present: bool,
    /// The connection that had the client identifier until now, if it has not been told.
    pub(super) former: Option<ConnectionKey>,
}

impl Sessions {
    /// For so many clients, those included that are away, and so many bytes.
    pub(super) fn new(most: usize, most_bytes: usize, replies_wait: bool) -> Self {
        Self {
            table: Mutex::default(),
            most,
            most_bytes,
            bytes: Arc::default(),
            replies_wait,
            arrivals: AtomicU64::new(0),
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("no panic under this lock")
    }

    /// The number of one more client that comes.
    pub(super) fn arrive(&self) -> u64 {
        self.arrivals.fetch_add(1, Ordering::Relaxed)
    }

    /// How many there are, and the bytes that they take.
    pub(super) fn size(&self) -> (usize, usize) {
        (self.table().slots.len(), self.bytes.load(Ordering::Relaxed))
    }

    /// Whether a client may have its session now. Asking for a new one ends the former at once.
    pub(super) fn ready(&self, arrival: Arrival<'_>) -> Readiness {
        let table = self.table();
        let slot = table.slots.get(arrival.client).filter(|slot| slot.is_connected());
        match slot {
            Some(slot) if slot.arrival > arrival.number => Readiness::Superseded,
            Some(slot) if !slot.session.is_finished() => {
                let mut session = slot.session.lock();
                session.ended |= arrival.clean;
                Readiness::Not(session.owner)
            }
            _ => Readiness::Ready,
        }
    }

    /// Gives a connection its client's session, or a new one.
    pub(super) fn attach(&self, arrival: Arrival<'_>, now: Instant) -> Attached {
        let Arrival { client, clean, owner, keep_s, number } = arrival;
        let mut table = self.table();
        table.expire(now);
        let slot = table.remove(client);
        let mut former = None;
        let mut kept = None;
        if let Some(slot) = slot {
            let connected = slot.is_connected();
            let told = slot.session.is_finished();
            slot.session.next_turn();
            let mut session = slot.session.lock();
            former = (connected && !told).then_some(session.owner);
            if clean || session.ended || (connected && session.keep_s == 0) {
                // The former connection keeps its own, for what is left to it to do.
                session.ended = true;
            } else {
                session.owner = owner;
                session.part(self.replies_wait);
                drop(session);
                kept = Some(slot.session);
            }
        }
        let present = kept.is_some();
        table.make_room(self.most, self.most_bytes, &self.bytes);
        let session = kept.unwrap_or_else(|| Place::new(owner, client, &self.bytes));
        session.lock().keep_s = keep_s;
        let slot = Slot { session: Arc::clone(&session), expires: None, arrival: number };
        table.slots.insert(Arc::clone(client), slot);
        // Before the table is free for the next one.
        Attached { turn: session.turn(), session, present, former }
    }

    /// Sees to it that there is memory for so much more, as far as sessions of absent clients can give
    /// way. Not under a session's lock.
    pub(super) fn make_room(&self, bytes: usize) {
        if self.bytes.load(Ordering::Relaxed) + bytes > self.most_bytes {
            let most_bytes = self.most_bytes.saturating_sub(bytes);
            self.table().make_room(usize::MAX, most_bytes, &self.bytes);
        }
    }

    /// Bytes that all of them may take.
    pub(super) const fn most_bytes(&self) -> usize {
        self.most_bytes
    }

    /// A connection has ended; its session is kept for as long as that one wanted.
    pub(super) fn part(
        &self,
        client: &Arc<str>,
        session: &Shared,
        owner: ConnectionKey,
        now: Instant,
    ) {
        let mut table = self.table();
        let ours = table.slots.get(client).is_some_and(|slot| Arc::ptr_eq(&slot.session, session));
        let mut locked = session.lock();
        if !ours || locked.owner != owner {
            return;
        }
        if !locked.goes_on() {
            table.remove(client);
            return;
        }
        locked.part(self.replies_wait);
        let expires = now + Duration::from_secs(u64::from(locked.keep_s));
        drop(locked);
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
    fn make_room(&mut self, most: usize, most_bytes: usize, bytes: &AtomicUsize) {
        while (self.slots.len() >= most || bytes.load(Ordering::Relaxed) > most_bytes)
            && let Some((_, client)) = self.away.first()
        {
            let client = Arc::clone(client);
            self.remove(&client);
        }
    }
}
