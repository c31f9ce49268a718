//! The table of associations: the state of the log, and what this relay has done since.
//!
//! A pure state machine: records, connections and a clock go in, records come out. All relays fold the same
//! log. For each client, the record of the greatest generation counts, and within that generation the first;
//! later records of the same relay change its state. This relay's own changes take effect at once, and are
//! *settled* when their record comes back in the log. A foreign record of the same generation that arrives
//! before that was first.
//!
//! When the relay that has a client sees a record that does not count, it writes the client's record again.
//! So the record that counts is the key's last, and survives compaction.

mod expiries;
mod relays;
mod room;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::model::{Incarnation, Refusal, RelayId, ServerId, ServiceId};

use super::ServerState;
use super::allotment::{Fate, Server, Servers};
use super::policy::Policy;
use super::record::{Key, RecordRefusal, State, Value};

use expiries::Expiries;

/// A run of a relay.
pub(super) type Holder = (RelayId, Incarnation);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whereabouts {
    Connected,
    /// Away, and kept until then, in Unix milliseconds.
    Away {
        until: u64,
    },
    /// Away, because its relay is gone. True if the log has it as connected: then it is connected if that
    /// relay turns out to run.
    Orphan {
        until: u64,
        connected: bool,
    },
}

impl Whereabouts {
    /// Until when the association of a client that is away is kept.
    fn until(self) -> Option<u64> {
        match self {
            Self::Connected => None,
            Self::Away { until } | Self::Orphan { until, .. } => Some(until),
        }
    }
}

/// A connected client stays connected: its state before and after.
const CONNECTED: (Whereabouts, Whereabouts) = (Whereabouts::Connected, Whereabouts::Connected);

#[derive(Debug)]
struct Entry {
    generation: u64,
    presence: Whereabouts,
    /// The relay that has the client, or had it last.
    holder: Holder,
    /// This relay's connections, whichever relay is the holder.
    connections: u32,
    server: ServerId,
    /// The association is not over. Another relay's, if over, stays until its tombstone is read, because
    /// the log decides which records count, not the clock.
    counted: bool,
    /// Its record has been read from the log.
    settled: bool,
    /// A record of this client may be in the log.
    written: bool,
}

impl Entry {
    /// Its relay is gone.
    fn is_orphan(&self) -> bool {
        matches!(self.presence, Whereabouts::Orphan { .. })
    }
}

/// What to write for a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unwritten {
    /// Its entry.
    Entry,
    /// A tombstone of this generation.
    End(u64),
}

/// A record to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Outgoing {
    pub(super) key: Key,
    pub(super) content: Content,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    Entry { server: Arc<str>, generation: u64, until: Option<u64> },
    End { generation: u64 },
}

/// A record that was read.
pub(super) enum Incoming<'a> {
    Entry(Value<'a>),
    End { generation: u64 },
}

#[derive(Debug)]
pub(super) struct Table {
    me: Holder,
    /// The log has been read up to its end at the start of this run.
    begun: bool,
    /// This relay writes the tombstones of clients whose relay is gone.
    coordinates: bool,
    policies: Arc<[Policy]>,
    pub(super) servers: Servers,
    entries: HashMap<Key, Entry>,
    /// At most one for each client: only the latest state is written, however often it changes before
    /// that.
    unwritten: BTreeMap<Key, Unwritten>,
    /// Clients that are away, by the time when their association ends.
    expiries: Expiries,
    /// When unneeded servers were last looked for.
    looked_for_room: Option<u64>,
    /// Of each relay, the last run that has ended, unless a later one is known.
    gone: BTreeMap<RelayId, Incarnation>,
}

impl Table {
    pub(super) fn new(me: Holder, policies: Arc<[Policy]>) -> Self {
        Self {
            me,
            begun: false,
            coordinates: false,
            servers: Servers::new(policies.len()),
            policies,
            entries: HashMap::new(),
            unwritten: BTreeMap::new(),
            expiries: Expiries::default(),
            looked_for_room: None,
            gone: BTreeMap::new(),
        }
    }

    pub(super) fn relay(&self) -> RelayId {
        self.me.0
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn unwritten(&self) -> usize {
        self.unwritten.len()
    }

    /// Adds a connection: at the client's server, or else at the one with the fewest clients. Nothing changes
    /// if the server `may` not have it.
    pub(super) fn connect(
        &mut self,
        key: Key,
        now: u64,
        may: impl FnOnce(&Server) -> bool,
    ) -> Result<ServerId, Refusal> {
        let known = self.entries.get(&key).filter(|entry| entry.counted).map(|entry| entry.server);
        let server = self.server_for(&key, known, now)?;
        if !may(self.servers.get(server)) {
            return Err(Refusal::KafkaBehind);
        }
        self.claim(key, server, 1);
        *self.servers.connections(server) += 1;
        Ok(server)
    }

    fn server_for(
        &mut self,
        key: &Key,
        known: Option<ServerId>,
        now: u64,
    ) -> Result<ServerId, Refusal> {
        let fate = known.map_or(Fate::Move, |server| self.fate(server, now));
        match (known, fate) {
            (Some(server), Fate::Stay) => Ok(server),
            (_, Fate::Refused) => Err(Refusal::ServerAway),
            (known, _) => self
                .servers
                .choose(key.service, &self.policies)
                .or(known.filter(|known| self.servers.get(*known).state() != ServerState::Gone))
                .ok_or(Refusal::NoServer),
        }
    }

    pub(super) fn fate(&self, server: ServerId, now: u64) -> Fate {
        let service = self.servers.get(server).service;
        self.servers.fate(server, self.policies[service.index()].absence, now)
    }

    /// Moves a connection from `from` to another server, if a live one exists. Returns its server now.
    pub(super) fn reconnect(&mut self, key: &Key, from: ServerId, now: u64) -> ServerId {
        let followed = self.entries.get(key).map(|entry| entry.server);
        let server = match followed {
            Some(server) if server != from && self.fate(server, now) == Fate::Stay => server,
            _ if self.servers.get(from).state() == ServerState::Live => {
                self.servers.choose_instead(from, &self.policies).unwrap_or(from)
            }
            _ => self.servers.choose(key.service, &self.policies).unwrap_or(from),
        };
        if server != from {
            self.claim(key.clone(), server, 0);
            self.servers.count_moved(from, server);
        }
        server
    }

    /// Makes the client one of this relay and this server, unless it already is, or is connected to this
    /// server through another relay.
    fn claim(&mut self, key: Key, server: ServerId, connections: u32) {
        let me = self.me;
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.connections += connections;
            if entry.server == server && entry.presence == Whereabouts::Connected {
                return;
            }
            let former = entry.counted.then_some(entry.server);
            entry.server = server;
            entry.counted = true;
            entry.presence = Whereabouts::Connected;
            entry.holder = me;
            entry.generation += 1;
            entry.settled = false;
            if let Some(former) = former {
                self.servers.remove_client(former, &self.policies);
                if former != server && connections == 0 {
                    self.servers.count_rebalanced(former);
                }
            }
            self.servers.add_client(server, &self.policies);
        } else {
            let ended = match self.unwritten.get(&key) {
                Some(Unwritten::End(generation)) => Some(*generation),
                _ => None,
            };
            let entry = Entry {
                generation: ended.unwrap_or_default() + 1,
                presence: Whereabouts::Connected,
                holder: me,
                connections,
                server,
                counted: true,
                settled: false,
                written: ended.is_some(),
            };
            self.entries.insert(key.clone(), entry);
            self.servers.add_client(server, &self.policies);
        }
        self.unwritten.insert(key, Unwritten::Entry);
    }

    /// Removes a connection at `server`. The association ends with the client's last one, or some time after
    /// it.
    pub(super) fn disconnect(&mut self, key: &Key, server: ServerId, now: u64) {
        let Some(entry) = self.entries.get_mut(key).filter(|entry| entry.connections > 0) else {
            return;
        };
        entry.connections -= 1;
        let over = entry.connections == 0 && entry.holder == self.me;
        *self.servers.connections(server) -= 1;
        if over {
            self.leave(key.clone(), now, false);
        }
    }

    /// Marks the client as away from its holder.
    fn leave(&mut self, key: Key, now: u64, orphan: bool) {
        let entry = self.entries.get_mut(&key).expect("just seen");
        let until = entry.presence.until().unwrap_or_else(|| {
            // A client that comes back to a leaving server gets another one in any case.
            let leaves = self.servers.get(entry.server).is_leaving();
            if leaves { now } else { now + self.policies[key.service.index()].keep_ms }
        });
        entry.presence = match entry.presence {
            _ if !orphan => Whereabouts::Away { until },
            Whereabouts::Orphan { connected, .. } => Whereabouts::Orphan { until, connected },
            was => Whereabouts::Orphan { until, connected: was == Whereabouts::Connected },
        };
        if entry.connections > 0 {
            // Its other relay is gone, and it is still connected here.
            let server = entry.server;
            return self.claim(key, server, 0);
        }
        if until <= now {
            return self.end(key);
        }
        if entry.holder == self.me {
            self.unwritten.insert(key.clone(), Unwritten::Entry);
        }
        self.expiries.note(&key, until);
    }

    /// Ends the association of a client that is away. One relay writes that: the one that had the client, or
    /// the coordinator if that one is gone.
    fn end(&mut self, key: Key) {
        let Some(entry) = self.entries.get_mut(&key).filter(|entry| entry.counted) else { return };
        let (generation, written) = (entry.generation, entry.written);
        self.servers.remove_client(entry.server, &self.policies);
        if entry.holder != self.me {
            entry.counted = false;
            if entry.is_orphan() && self.coordinates {
                self.unwritten.insert(key, Unwritten::End(generation));
            }
            return;
        }
        self.entries.remove(&key);
        self.expiries.forget(&key);
        if written {
            self.unwritten.insert(key, Unwritten::End(generation));
        } else {
            self.unwritten.remove(&key);
        }
    }

    /// Ends the associations whose time is over.
    pub(super) fn expire(&mut self, now: u64) {
        while let Some(key) = self.expiries.take_due(now) {
            match self.entries.get(&key).and_then(|entry| entry.presence.until()) {
                Some(until) if until <= now => self.end(key),
                // It came back in the meantime, and has left again.
                Some(until) => self.expiries.note(&key, until),
                None => {}
            }
        }
    }

    /// Connected clients: their relays and their servers. Looks at all clients.
    pub(super) fn connected(&self) -> impl Iterator<Item = (RelayId, ServerId)> {
        let connected = |entry: &&Entry| entry.presence == Whereabouts::Connected && entry.counted;
        self.entries.values().filter(connected).map(|entry| (entry.holder.0, entry.server))
    }

    /// True if this is the client's only connection to this relay, so that it can move to another server
    /// without leaving one behind.
    pub(super) fn is_alone(&self, key: &Key, server: ServerId) -> bool {
        self.entries.get(key).is_some_and(|entry| {
            entry.holder == self.me && entry.connections == 1 && entry.server == server
        })
    }

    /// Handles a leaving server: no association with it is kept.
    pub(super) fn server_leaves(&mut self, server: ServerId) {
        let of_it = |table: &Self, entry: &Entry| {
            entry.server == server
                && entry.presence != Whereabouts::Connected
                && (entry.holder == table.me || entry.is_orphan())
        };
        for key in self.keys(of_it) {
            self.end(key);
        }
    }

    fn keys(&self, wanted: impl Fn(&Self, &Entry) -> bool) -> Vec<Key> {
        let wanted = self.entries.iter().filter(|(_, entry)| wanted(self, entry));
        wanted.map(|(key, _)| key.clone()).collect()
    }

    /// Applies a record of the log.
    pub(super) fn apply(
        &mut self,
        key: Key,
        record: Incoming<'_>,
        now: u64,
    ) -> Result<(), RecordRefusal> {
        let result = match record {
            Incoming::Entry(value) => self.apply_entry(&key, &value, now),
            Incoming::End { generation } => self.apply_end(&key, generation),
        };
        if result.is_err() {
            self.insist(key);
        }
        result
    }

    /// Handles a record that does not count. It is now the key's last; if the client is ours, our record must
    /// be.
    pub(super) fn insist(&mut self, key: Key) {
        let me = self.me;
        if self.entries.get(&key).is_some_and(|entry| entry.holder == me && entry.settled) {
            self.unwritten.entry(key).or_insert(Unwritten::Entry);
        }
    }

    fn apply_entry(&mut self, key: &Key, value: &Value<'_>, now: u64) -> Result<(), RecordRefusal> {
        let holder = (RelayId(value.relay), Incarnation::new(value.incarnation));
        if holder == self.me
            && let Some(entry) = self.entries.get_mut(key)
            && entry.holder == holder
        {
            // The table already has what this relay did, unless a foreign tombstone ended it after this
            // record was written. Then the client's generations start from 1 again, but not in the log.
            if value.generation <= entry.generation {
                entry.settled |= entry.generation == value.generation;
                return Ok(());
            }
            if entry.connections > 0 {
                entry.generation = value.generation + 1;
                entry.settled = false;
                self.unwritten.insert(key.clone(), Unwritten::Entry);
                return Ok(());
            }
        }
        if let Some(entry) = self.entries.get_mut(key) {
            entry.written = true;
            let same = entry.generation == value.generation;
            let first = match entry.holder {
                mine if mine == self.me => !entry.settled,
                // A later run of the relay continues where the former one ended.
                (relay, _) => relay == holder.0,
            };
            if value.generation < entry.generation || (same && !first) {
                return Err(RecordRefusal::Superseded);
            }
        } else if let Some(Unwritten::End(ended)) = self.unwritten.get(key)
            && value.generation <= *ended
        {
            return Err(RecordRefusal::Superseded);
        }
        let server = self
            .server_named(&value.server, key.service, now)
            .ok_or(RecordRefusal::TooManyServers)?;
        if self.servers.get(server).service != key.service {
            return Err(RecordRefusal::OtherService);
        }
        self.take(key, value, (holder, server), now);
        Ok(())
    }

    /// Handles a record that counts.
    fn take(&mut self, key: &Key, value: &Value<'_>, to: (Holder, ServerId), now: u64) {
        let (holder, server) = to;
        let presence = match (value.state, value.until_unix_ms) {
            (State::Away, Some(until)) => Whereabouts::Away { until },
            _ => Whereabouts::Connected,
        };
        let former = self.entries.get(key);
        let connections = former.map_or(0, |entry| entry.connections);
        if let Some(former) = former.filter(|former| former.counted) {
            self.servers.remove_client(former.server, &self.policies);
            if former.server != server && (former.presence, presence) == CONNECTED {
                self.servers.count_rebalanced(former.server);
            }
        }
        self.servers.add_client(server, &self.policies);
        self.unwritten.remove(key);
        self.entries.insert(
            key.clone(),
            Entry {
                generation: value.generation,
                presence,
                holder,
                connections,
                server,
                counted: true,
                settled: true,
                written: true,
            },
        );
        match presence {
            Whereabouts::Away { .. } if connections > 0 => self.claim(key.clone(), server, 0),
            Whereabouts::Away { until } | Whereabouts::Orphan { until, .. } => {
                self.expiries.note(key, until);
            }
            // The client was ours after all, and has left in the meantime.
            Whereabouts::Connected if holder == self.me && connections == 0 => {
                self.leave(key.clone(), now, false);
            }
            Whereabouts::Connected => {}
        }
        self.disown(key, now);
    }

    fn apply_end(&mut self, key: &Key, generation: u64) -> Result<(), RecordRefusal> {
        let Some(entry) = self.entries.get_mut(key) else { return Ok(()) };
        if generation < entry.generation {
            return Err(RecordRefusal::Superseded);
        }
        if entry.holder == self.me && !entry.settled {
            // Our record follows it in the log.
            return Ok(());
        }
        let server = entry.server;
        if entry.connections > 0 {
            entry.presence = Whereabouts::Away { until: 0 };
            self.claim(key.clone(), server, 0);
        } else {
            if entry.counted {
                self.servers.remove_client(server, &self.policies);
            }
            self.entries.remove(key);
            self.expiries.forget(key);
            self.unwritten.remove(key);
        }
        Ok(())
    }

    /// Server and generation of each client, which all relays agree on.
    #[cfg(test)]
    pub(super) fn facts(&self) -> BTreeMap<Key, (Arc<str>, u64)> {
        let fact = |entry: &Entry| (self.servers.get(entry.server).name.clone(), entry.generation);
        let counted = self.entries.iter().filter(|(_, entry)| entry.counted);
        counted.map(|(key, entry)| (key.clone(), fact(entry))).collect()
    }

    /// The next records to write, in the order of their keys.
    pub(super) fn take_unwritten(&mut self, most: usize) -> Vec<Outgoing> {
        let mut records = Vec::new();
        while records.len() < most
            && let Some((key, unwritten)) = self.unwritten.pop_first()
        {
            let content = match unwritten {
                Unwritten::End(generation) => Content::End { generation },
                Unwritten::Entry => {
                    let entry = self.entries.get_mut(&key).expect("unwritten entries are there");
                    entry.written = true;
                    let until = entry.presence.until();
                    let server = self.servers.get(entry.server).name.clone();
                    Content::Entry { server, generation: entry.generation, until }
                }
            };
            records.push(Outgoing { key, content });
        }
        records
    }

    /// Takes back a record that could not be written: the client's latest state must still be written.
    pub(super) fn put_back(&mut self, record: Outgoing) {
        let me = self.me;
        let entry = self.entries.get_mut(&record.key);
        let unwritten = match (record.content, entry) {
            (Content::Entry { .. }, Some(entry)) if entry.holder == me => Unwritten::Entry,
            (Content::End { generation }, None) => Unwritten::End(generation),
            (Content::End { generation }, Some(entry)) if entry.holder == me => {
                // The client came back before the tombstone was written, and its generations start from 1
                // again.
                entry.generation = entry.generation.max(generation + 1);
                Unwritten::Entry
            }
            (Content::End { .. }, Some(entry)) if entry.is_orphan() && !entry.counted => {
                Unwritten::End(entry.generation)
            }
            // Another relay's record has replaced it.
            _ => return,
        };
        self.unwritten.insert(record.key, unwritten);
    }
}
