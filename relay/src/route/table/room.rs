//! Room for servers: the numbers of those that are gone are given to others.

use super::{ServerId, ServiceId, Table};

/// A look for servers that nobody needs goes through the whole table, so it is not made more often.
const LOOK_MS: u64 = 1000;

impl Table {
    /// The server of this name, as yet unknown perhaps; none if there are too many.
    pub(in crate::route) fn server_named(
        &mut self,
        name: &str,
        service: ServiceId,
        now: u64,
    ) -> Option<ServerId> {
        if let Some(id) = self.servers.named(name, service, now) {
            return Some(id);
        }
        if self.looked_for_room.is_some_and(|at| at.abs_diff(now) < LOOK_MS) {
            return None;
        }
        self.looked_for_room = Some(now);
        // What is over for all others still names its server until its tombstone is read.
        let needed = self.entries.values().map(|entry| entry.server).collect();
        self.servers.make_room(&needed, now);
        self.servers.named(name, service, now)
    }
}
