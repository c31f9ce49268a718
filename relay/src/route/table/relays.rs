//! The beginnings and ends of relays' runs, and their effect on the relays' clients.

use crate::model::{Incarnation, RelayId};

use super::{Entry, Holder, Key, Table, Unwritten, Whereabouts};

impl Table {
    /// Everything that was written before this run has been read. Clients that were connected through a
    /// former run of this relay are away.
    pub(in crate::route) fn begin(&mut self, now: u64) {
        self.begun = true;
        let former =
            |table: &Self, entry: &Entry| entry.holder.0 == table.me.0 && entry.holder != table.me;
        for key in self.keys(former) {
            self.adopt(key, now);
        }
    }

    /// Takes over from a former run of this relay.
    fn adopt(&mut self, key: Key, now: u64) {
        let me = self.me;
        self.entries.get_mut(&key).expect("just seen").holder = me;
        self.leave(key, now, false);
    }

    /// A run of a relay and all earlier ones have ended, or are given up: their clients are away.
    pub(in crate::route) fn relay_gone(
        &mut self,
        relay: RelayId,
        incarnation: Incarnation,
        now: u64,
    ) {
        self.gone.insert(relay, incarnation);
        for key in self.keys(|table, entry| table.is_gone(entry.holder)) {
            self.leave(key, now, true);
        }
    }

    /// A run of a relay is alive, so earlier ones have ended. If it was paused and presumed gone, it keeps
    /// its clients, although it has not written their records again.
    pub(in crate::route) fn relay_runs(
        &mut self,
        relay: RelayId,
        incarnation: Incarnation,
        now: u64,
    ) {
        if self.gone.get(&relay) == Some(&incarnation) {
            self.gone.remove(&relay);
            let holder = (relay, incarnation);
            for key in self.keys(|_, entry| entry.holder == holder && entry.is_orphan()) {
                self.restore(&key);
            }
        }
        let former = Incarnation::new(incarnation.value().saturating_sub(1));
        if self.gone.get(&relay).is_none_or(|gone| gone.value() < former.value()) {
            self.relay_gone(relay, former, now);
        }
    }

    /// Undoes the presumption that the client's relay is gone. If the client's tombstone is already in the
    /// log, that relay writes its record again.
    fn restore(&mut self, key: &Key) {
        let entry = self.entries.get_mut(key).expect("just seen");
        let Whereabouts::Orphan { until, connected } = entry.presence else { return };
        entry.presence =
            if connected { Whereabouts::Connected } else { Whereabouts::Away { until } };
        if connected && !entry.counted {
            entry.counted = true;
            self.servers.add_client(entry.server, &self.policies);
        }
        self.unwritten.remove(key);
    }

    fn is_gone(&self, holder: Holder) -> bool {
        let gone = self.gone.get(&holder.0);
        holder.0 != self.me.0 && gone.is_some_and(|gone| holder.1.value() <= gone.value())
    }

    /// Sets whether this relay writes the tombstones of clients whose relay is gone.
    pub(in crate::route) fn set_coordinates(&mut self, coordinates: bool) {
        let begins = coordinates && !self.coordinates;
        self.coordinates = coordinates;
        if begins {
            for key in self.keys(|_, entry| entry.is_orphan() && !entry.counted) {
                let generation = self.entries[&key].generation;
                self.unwritten.insert(key, Unwritten::End(generation));
            }
        }
    }

    /// Marks the client as away if a late record names a former run of this relay, or a relay that is gone.
    /// Before [`begin`](Self::begin) this is not needed: that call handles all former runs of this relay.
    pub(super) fn disown(&mut self, key: &Key, now: u64) {
        let Some(holder) = self.entries.get(key).map(|entry| entry.holder) else { return };
        let (relay, run) = self.me;
        if self.is_gone(holder) {
            self.leave(key.clone(), now, true);
        } else if self.begun && holder.0 == relay && holder.1.value() < run.value() {
            self.adopt(key.clone(), now);
        }
    }
}
