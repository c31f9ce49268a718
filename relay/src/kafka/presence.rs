//! Which clients are here whose replies wait for them when they are not.

use std::sync::{Arc, Mutex, PoisonError};

use crate::config::Service;
use crate::route::{ClientIdentity, IdentityKind, ServiceId};

use super::record::{ConnectionKey, Identity};

/// A client's connection began or ended.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) came: bool,
    pub(super) key: ConnectionKey,
    /// `SERVICE/IDENTITY`.
    pub(super) holder: String,
}

/// From the workers to the keeper: two changes for a connection, none for a message, and none for
/// clients without an identity that outlives their connection.
#[derive(Clone, Debug)]
pub struct Presence {
    /// By [`ServiceId`].
    services: Arc<[(String, IdentityKind)]>,
    changes: Arc<Mutex<Vec<Change>>>,
}

impl Presence {
    /// For these services.
    pub fn new(services: &[Service]) -> Self {
        let services = services.iter().map(|service| (service.name.clone(), service.identity));
        Self { services: services.collect(), changes: Arc::default() }
    }

    /// Under which name replies wait for a client; none if they do not.
    pub fn holder(&self, service: ServiceId, client: &ClientIdentity) -> Option<String> {
        let (name, _) = &self.services[service.index()];
        client.survives_connection().then(|| format!("{name}/{client}"))
    }

    /// The service of such a name, if it is one.
    pub(super) fn service_of(&self, holder: &str) -> Option<ServiceId> {
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
            self.changes.lock().unwrap_or_else(PoisonError::into_inner).push(change);
        }
    }

    pub(super) fn take(&self) -> Vec<Change> {
        std::mem::take(&mut *self.changes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
