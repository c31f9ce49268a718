//! Servers in the order in which they get clients.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use crate::config::{Absence, Then};
use crate::model::{ServerId, ServiceId};

use super::policy::Policy;

use super::{ServerLink, ServerState};

/// How long a server must have been gone before another one gets its number. By then no order to its
/// connections is under way.
const REST_MS: u64 = 60_000;

/// Place of a server in the order of allotment. First comes the server whose load, in proportion to its
/// capacity, would be least with one more client; among equals the one that has waited longest, so that ties
/// are broken evenly.
type Rank = (u64, u64, ServerId);

/// Clients for each unit of capacity; 32 bits before the point and 32 after.
pub(super) fn load(clients: u32, capacity: u32) -> u64 {
    (u64::from(clients) << 32) / u64::from(capacity.max(1))
}

/// The same with one more client.
pub(super) fn load_with_one_more(clients: u32, capacity: u32) -> u64 {
    load(clients.saturating_add(1), capacity)
}

/// A server, or only its name if nothing but associations has named it so far.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) name: Arc<str>,
    pub(super) service: ServiceId,
    pub(super) link: Option<ServerLink>,
    /// Clients of all relays, including those that are away.
    pub(super) clients: u32,
    /// Connections of this relay.
    pub(super) connections: u32,
    /// Connections of this relay that have moved to another server.
    pub(super) moved: u64,
    /// Clients of all relays that have moved to another server since a rebalancing began.
    pub(super) rebalanced: u64,
    /// Since when it is away, in Unix milliseconds.
    pub(super) away_since: Option<u64>,
    /// Since when it is gone, or known by name only, in Unix milliseconds.
    gone_since: Option<u64>,
    /// Number of the last allotment to it.
    turn: u64,
}

impl Server {
    pub(super) fn capacity(&self) -> u32 {
        self.link.as_ref().map_or(1, |link| link.capacity)
    }

    fn rank(&self, id: ServerId) -> Rank {
        (load_with_one_more(self.clients, self.capacity()), self.turn, id)
    }

    pub(super) fn has_labels(&self, wanted: &BTreeMap<String, String>) -> bool {
        let labels = self.link.as_ref().map(|link| &link.labels);
        wanted.iter().all(|(name, value)| labels.is_some_and(|has| has.get(name) == Some(value)))
    }

    /// True if its clients should move elsewhere.
    pub(super) fn is_leaving(&self) -> bool {
        let leaves = |state| matches!(state, ServerState::Draining | ServerState::Gone);
        self.link.as_ref().is_some_and(|link| leaves(link.state))
    }

    pub(super) fn state(&self) -> ServerState {
        self.link.as_ref().map_or(ServerState::Gone, |link| link.state)
    }
}

/// What the clients of a server can expect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// They are served, now or once the server is back.
    Stay,
    /// They move elsewhere, if there is a live server.
    Move,
    /// Nobody serves them.
    Refused,
}

/// A service's live servers.
#[derive(Debug, Default)]
struct Ranking {
    /// Those with all labels that the service prefers.
    preferred: BTreeSet<Rank>,
    others: BTreeSet<Rank>,
    /// While they are rebalanced: most clients per second.
    rate: Option<u32>,
}

/// All servers of all services.
#[derive(Debug)]
pub(super) struct Servers {
    all: Vec<Server>,
    by_name: HashMap<Arc<str>, ServerId>,
    /// Numbers of former servers, to be given to others.
    vacant: Vec<ServerId>,
    /// By service.
    order: Vec<Ranking>,
    allotments: u64,
}

impl Servers {
    pub(super) fn new(services: usize) -> Self {
        Self {
            all: Vec::new(),
            by_name: HashMap::new(),
            vacant: Vec::new(),
            order: (0..services).map(|_| Ranking::default()).collect(),
            allotments: 0,
        }
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (ServerId, &Server)> {
        (0..).map(ServerId).zip(&self.all)
    }

    pub(super) fn known(&self, name: &str) -> Option<&Server> {
        self.by_name.get(name).map(|id| self.get(*id))
    }

    pub(super) fn get(&self, id: ServerId) -> &Server {
        &self.all[id.index()]
    }

    /// The server of this name, which may be new. None if there are too many servers.
    pub(super) fn named(&mut self, name: &str, service: ServiceId, now: u64) -> Option<ServerId> {
        if let Some(id) = self.by_name.get(name) {
            return Some(*id);
        }
        let name: Arc<str> = name.into();
        let server = Server {
            name: name.clone(),
            service,
            link: None,
            clients: 0,
            connections: 0,
            moved: 0,
            rebalanced: 0,
            away_since: None,
            gone_since: Some(now),
            turn: 0,
        };
        let id = if let Some(id) = self.vacant.pop() {
            self.all[id.index()] = server;
            id
        } else {
            let id = ServerId(u16::try_from(self.all.len()).ok()?);
            self.all.push(server);
            id
        };
        self.by_name.insert(name, id);
        Some(id)
    }

    /// Frees the numbers of servers that have been gone for a while, have no connection here, and are not
    /// `needed`.
    pub(super) fn make_room(&mut self, needed: &HashSet<ServerId>, now: u64) {
        for (id, server) in (0..).map(ServerId).zip(&self.all) {
            let is_gone = server.gone_since.is_some_and(|at| at.abs_diff(now) >= REST_MS);
            let is_idle = server.clients == 0 && server.connections == 0 && !needed.contains(&id);
            // A vacant number keeps its former server's name, which may belong to another number by now.
            if is_gone && is_idle && self.by_name.get(&server.name) == Some(&id) {
                self.by_name.remove(&server.name);
                self.vacant.push(id);
            }
        }
    }

    /// Adds a server, or applies a change to it. It keeps its clients.
    pub(super) fn set(&mut self, id: ServerId, link: ServerLink, policies: &[Policy], now: u64) {
        self.change(id, policies, |server| {
            server.service = link.service;
            server.away_since = match link.state {
                ServerState::Away => server.away_since.or(Some(now)),
                _ => None,
            };
            server.gone_since = match link.state {
                ServerState::Gone => server.gone_since.or(Some(now)),
                _ => None,
            };
            server.link = Some(link);
        });
    }

    /// The live server that should get the next client. Logarithmic in the number of servers.
    pub(super) fn choose(&mut self, service: ServiceId, policies: &[Policy]) -> Option<ServerId> {
        let order = &self.order[service.index()];
        let (_, _, id) = *order.preferred.first().or_else(|| order.others.first())?;
        self.allotments += 1;
        let turn = self.allotments;
        self.change(id, policies, |server| server.turn = turn);
        Some(id)
    }

    /// The same for a client of a live server, if it should move: the other server would be loaded less with
    /// this client than its own server is now, or only the other has the preferred labels.
    pub(super) fn choose_instead(&mut self, of: ServerId, policies: &[Policy]) -> Option<ServerId> {
        let server = self.get(of);
        let (service, order) = (server.service, &self.order[server.service.index()]);
        let outside = !order.preferred.is_empty() && !order.preferred.contains(&server.rank(of));
        let (wanted, ..) = *order.preferred.first().or_else(|| order.others.first())?;
        let gains = outside || wanted < load(server.clients, server.capacity());
        gains.then(|| self.choose(service, policies)).flatten()
    }

    /// Most clients of the service that may be moved per second to balance it. None if no order is in
    /// force.
    pub(super) fn rate(&self, service: ServiceId) -> Option<u32> {
        self.order[service.index()].rate
    }

    /// Applies such an order, or its end.
    pub(super) fn set_rate(&mut self, service: ServiceId, rate: Option<u32>) {
        let former = std::mem::replace(&mut self.order[service.index()].rate, rate);
        if former.is_none() && rate.is_some() {
            let of_it = self.all.iter_mut().filter(|server| server.service == service);
            of_it.for_each(|server| server.rebalanced = 0);
        }
    }

    /// Counts a connected client of any relay that has moved to another server.
    pub(super) fn count_rebalanced(&mut self, from: ServerId) {
        let server = &mut self.all[from.index()];
        let ordered = self.order[server.service.index()].rate.is_some();
        server.rebalanced += u64::from(ordered && server.state() == ServerState::Live);
    }

    /// True if the service has a live server.
    pub(super) fn has_live(&self, service: ServiceId) -> bool {
        let order = &self.order[service.index()];
        !order.preferred.is_empty() || !order.others.is_empty()
    }

    /// What clients of this server can expect now.
    pub(super) fn fate(&self, id: ServerId, absence: Absence, now: u64) -> Fate {
        let server = self.get(id);
        match server.state() {
            ServerState::Live => Fate::Stay,
            ServerState::Draining | ServerState::Gone => Fate::Move,
            ServerState::Away => {
                let since = server.away_since.unwrap_or(now);
                match absence.then {
                    _ if now < since.saturating_add(u64::from(absence.after_ms)) => Fate::Stay,
                    Then::Keep => Fate::Stay,
                    Then::Reassign => Fate::Move,
                    Then::Refuse => Fate::Refused,
                }
            }
        }
    }

    /// Counts one more client.
    pub(super) fn add_client(&mut self, id: ServerId, policies: &[Policy]) {
        self.change(id, policies, |server| server.clients += 1);
    }

    /// Counts one client less.
    pub(super) fn remove_client(&mut self, id: ServerId, policies: &[Policy]) {
        self.change(id, policies, |server| server.clients -= 1);
    }

    /// This relay's connections. They do not affect the order of allotment.
    pub(super) fn connections(&mut self, id: ServerId) -> &mut u32 {
        &mut self.all[id.index()].connections
    }

    /// Counts a connection that has moved to another server.
    pub(super) fn count_moved(&mut self, from: ServerId, to: ServerId) {
        self.all[from.index()].connections -= 1;
        self.all[from.index()].moved += 1;
        self.all[to.index()].connections += 1;
    }

    /// Changes a server, and updates its place in the order.
    fn change(&mut self, id: ServerId, policies: &[Policy], change: impl FnOnce(&mut Server)) {
        let server = &mut self.all[id.index()];
        let rank = server.rank(id);
        let order = &mut self.order[server.service.index()];
        if !order.preferred.remove(&rank) {
            order.others.remove(&rank);
        }
        change(server);
        if server.state() == ServerState::Live {
            let order = &mut self.order[server.service.index()];
            let preferred = server.has_labels(&policies[server.service.index()].prefer);
            let group = if preferred { &mut order.preferred } else { &mut order.others };
            group.insert(server.rank(id));
        }
    }
}
