//! Room for servers: the numbers of servers that are gone are reused.

use super::{ServerId, ServiceId, Table};

/// Least time between two searches for unneeded servers, because each goes through the whole table.
const LOOK_MS: u64 = 1000;

impl Table {
    /// The server of this name, which may be new. None if there are too many servers.
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
        // An association that is over still names its server until its tombstone is read.
        let needed = self.entries.values().map(|entry| entry.server).collect();
        self.servers.make_room(&needed, now);
        self.servers.named(name, service, now)
    }
}
