//! Which clients are here whose replies wait for them when they are not.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use crate::config::Service;
use crate::model::{ClientIdentity, ConnectionKey, Identity, IdentityKind, ServiceId};

/// A client's connection began or ended.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) came: bool,
    pub(crate) key: ConnectionKey,
    /// `SERVICE/IDENTITY`.
    pub(crate) holder: String,
}

/// What the keeper has not seen yet: the last change of each connection, and none of one that has come and
/// gone meanwhile. So it is bounded by the connections that there are and those that the keeper knows,
/// however long it is kept.
#[derive(Debug, Default)]
struct Unseen {
    changes: HashMap<ConnectionKey, (u64, Change)>,
    /// Connections that the keeper was told of, and not yet of their end.
    told: HashSet<ConnectionKey>,
    /// Changes so far: their order.
    number: u64,
}

impl Unseen {
    fn change(&mut self, change: Change) {
        if !change.came && !self.told.contains(&change.key) {
            self.changes.remove(&change.key);
            return;
        }
        self.number += 1;
        self.changes.insert(change.key, (self.number, change));
    }

    /// In their order.
    fn take(&mut self) -> Vec<Change> {
        let mut changes: Vec<_> = std::mem::take(&mut self.changes).into_values().collect();
        changes.sort_unstable_by_key(|(number, _)| *number);
        for (_, change) in &changes {
            if change.came {
                self.told.insert(change.key);
            } else {
                self.told.remove(&change.key);
            }
        }
        changes.into_iter().map(|(_, change)| change).collect()
    }
}

/// From the workers to the keeper: two changes for a connection, none for a message, and none for
/// clients without an identity that outlives their connection.
#[derive(Clone, Debug)]
pub struct Presence {
    /// By [`ServiceId`].
    services: Arc<[(String, IdentityKind)]>,
    unseen: Arc<Mutex<Unseen>>,
}

impl Presence {
    /// For these services.
    pub fn new(services: &[Service]) -> Self {
        let services = services.iter().map(|service| (service.name.clone(), service.identity));
        Self { services: services.collect(), unseen: Arc::default() }
    }

    /// Under which name replies wait for a client; none if they do not.
    pub fn holder(&self, service: ServiceId, client: &ClientIdentity) -> Option<String> {
        let (name, _) = &self.services[service.index()];
        client.survives_connection().then(|| format!("{name}/{client}"))
    }

    /// The service of such a name, if it is one.
    pub(crate) fn service_of(&self, holder: &str) -> Option<ServiceId> {
        let (name, identity) = holder.rsplit_once('/')?;
        let (index, (_, kind)) =
            (0..).zip(&*self.services).find(|(_, (service, _))| service == name)?;
        kind.parse(identity)?.survives_connection().then_some(ServiceId(index))
    }

    /// A connection has begun, and takes what waited for its client.
    pub fn came(&self, identity: &Identity) {
        self.change(identity, true);
    }

    /// A connection takes no more replies.
    pub fn left(&self, identity: &Identity) {
        self.change(identity, false);
    }

    fn change(&self, identity: &Identity, came: bool) {
        if let Some(holder) = identity.holder() {
            let change = Change { came, key: identity.key, holder: holder.to_owned() };
            self.unseen.lock().unwrap_or_else(PoisonError::into_inner).change(change);
        }
    }

    pub(crate) fn take(&self) -> Vec<Change> {
        self.unseen.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Incarnation, RelayId};

    fn change(came: bool, generation: u32) -> Change {
        let (relay, incarnation) = (RelayId(0), Incarnation::new(1));
        let key = ConnectionKey { relay, incarnation, worker: 0, slot: 0, generation };
        Change { came, key, holder: "chat/a".to_owned() }
    }

    fn taken(unseen: &mut Unseen) -> Vec<(bool, u32)> {
        unseen.take().into_iter().map(|change| (change.came, change.key.generation)).collect()
    }

    #[test]
    fn connections_that_come_and_go_while_nobody_looks_leave_nothing() {
        let mut unseen = Unseen::default();
        unseen.change(change(true, 1));
        assert_eq!(taken(&mut unseen), [(true, 1)]);
        for generation in 2..100_000 {
            unseen.change(change(true, generation));
            // It asks again for what waits.
            unseen.change(change(true, generation));
            unseen.change(change(false, generation));
        }
        unseen.change(change(false, 1));
        unseen.change(change(true, 100_000));
        assert_eq!(unseen.changes.len(), 2);
        assert_eq!(taken(&mut unseen), [(false, 1), (true, 100_000)]);
        assert_eq!(taken(&mut unseen), []);
        assert_eq!(unseen.told.len(), 1);
    }

    #[test]
    fn the_end_of_a_connection_that_has_asked_again_is_told() {
        let mut unseen = Unseen::default();
        unseen.change(change(true, 1));
        assert_eq!(taken(&mut unseen), [(true, 1)]);
        unseen.change(change(true, 1));
        unseen.change(change(false, 1));
        assert_eq!(taken(&mut unseen), [(false, 1)]);
        unseen.change(change(false, 1));
        assert_eq!((taken(&mut unseen), unseen.told.len()), (Vec::new(), 0));
    }
}
