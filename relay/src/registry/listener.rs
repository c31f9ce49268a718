//! The recipient of the registry's changes.

use std::sync::Arc;

use crate::model::{Incarnation, RelayId};
use crate::registry::record::RelayState;
use crate::route::{Associations, Balance, ServerLink};

/// The recipient of the registry's changes.
pub trait Listener: Send + 'static {
    /// A server is new, or has changed.
    fn server(&mut self, link: ServerLink);
    /// A relay runs or is gone, according to itself or to the coordinator.
    fn relay(&mut self, relay: RelayId, incarnation: Incarnation, state: RelayState);
    /// This relay begins or ceases to coordinate.
    fn coordinates(&mut self, coordinates: bool);
    /// A service is to be rebalanced at this rate in clients per second. None: no longer.
    fn rebalance(&mut self, service: &str, per_second: Option<u32>);
    /// Clients of a server.
    fn clients(&self, id: &str) -> u32;
    /// How evenly the clients of a service are spread.
    fn balance(&self, service: &str) -> Option<Balance>;
}

impl Listener for Arc<Associations> {
    fn server(&mut self, link: ServerLink) {
        self.set_server(link);
    }
    fn relay(&mut self, relay: RelayId, incarnation: Incarnation, state: RelayState) {
        tracing::debug!(
            relay = relay.0,
            incarnation = incarnation.value(),
            ?state,
            "the state of a relay"
        );
        match state {
            RelayState::Live => self.relay_runs(relay, incarnation),
            RelayState::Gone => self.relay_gone(relay, incarnation),
        }
    }
    fn coordinates(&mut self, coordinates: bool) {
        self.set_coordinator(coordinates);
    }
    fn rebalance(&mut self, service: &str, per_second: Option<u32>) {
        self.set_rebalance(service, per_second);
    }
    fn clients(&self, id: &str) -> u32 {
        self.clients_of(id)
    }
    fn balance(&self, service: &str) -> Option<Balance> {
        Associations::balance(self, service)
    }
}
