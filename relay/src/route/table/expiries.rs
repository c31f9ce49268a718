//! When the associations of clients that are away end.

use std::collections::{BTreeSet, HashMap};

use super::Key;

/// At most one time for each client, however often it comes and goes, so that there are no more entries than
/// clients in the table.
#[derive(Debug, Default)]
pub(super) struct Expiries {
    /// Unix milliseconds.
    order: BTreeSet<(u64, Key)>,
    times: HashMap<Key, u64>,
}

impl Expiries {
    /// Notes that the client is to be checked at this time, unless an earlier check is noted. The check
    /// sees the client's state at that time.
    pub(super) fn note(&mut self, key: &Key, until: u64) {
        if let Some(known) = self.times.get_mut(key) {
            if *known <= until {
                return;
            }
            self.order.remove(&(*known, key.clone()));
            *known = until;
        } else {
            self.times.insert(key.clone(), until);
        }
        self.order.insert((until, key.clone()));
    }

    /// The client is no longer in the table.
    pub(super) fn forget(&mut self, key: &Key) {
        if let Some(until) = self.times.remove(key) {
            self.order.remove(&(until, key.clone()));
        }
    }

    /// The next client whose time has come.
    pub(super) fn take_due(&mut self, now: u64) -> Option<Key> {
        let (until, _) = self.order.first()?;
        if *until > now {
            return None;
        }
        let (_, key) = self.order.pop_first()?;
        self.times.remove(&key);
        Some(key)
    }
}

#[cfg(test)]
impl super::Table {
    pub(in crate::route) fn expiries(&self) -> usize {
        assert_eq!(self.expiries.order.len(), self.expiries.times.len());
        self.expiries.order.len()
    }
}
