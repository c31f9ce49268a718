//! For whom the keeper keeps.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::codec::Protocol;
use crate::model::Incarnation;

use super::presence::Presence;

/// What the keeper has to know of the clients that it keeps for.
#[derive(Clone, Debug)]
pub struct Clientele {
    /// This run of the relay.
    pub incarnation: Incarnation,
    /// What the clients of each service speak, by [`ServiceId`](crate::model::ServiceId).
    pub protocols: Arc<[Protocol]>,
    /// Which clients are here.
    pub presence: Presence,
    /// Set when the relay should stop.
    pub stop: Arc<AtomicBool>,
}
