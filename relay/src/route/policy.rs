//! A service's settings for its clients.

use std::collections::BTreeMap;

use crate::config::{Absence, Service};
use crate::model::IdentityKind;

/// The settings of a service that associations depend on.
#[derive(Clone, Debug)]
pub(super) struct Policy {
    pub(super) name: String,
    pub(super) identity: IdentityKind,
    pub(super) keep_ms: u64,
    pub(super) prefer: BTreeMap<String, String>,
    pub(super) absence: Absence,
}

impl From<&Service> for Policy {
    fn from(service: &Service) -> Self {
        Self {
            name: service.name.clone(),
            identity: service.identity,
            keep_ms: u64::from(service.association_keep_ms),
            prefer: service.prefer.clone(),
            absence: service.absence,
        }
    }
}
