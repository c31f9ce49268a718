//! The office of the coordinator: this relay takes it when its group has chosen it, and leaves it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::registry::Write;
use crate::registry::candidate::Standing;
use crate::registry::facts::World;
use crate::registry::record::{Coordination, Key, Term, VERSION};

use super::{Participant, lock};

/// Least time between decisions while records are refused: the coordinator's own may be among them, and
/// would be written again.
const HOLD_BACK: Duration = Duration::from_millis(200);

/// This relay's progress in taking office.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Office {
    /// It may be tried from this time on.
    From(Instant),
    /// The record is written and not yet read back.
    Asked,
    Held,
}

impl Participant {
    fn leave_office(&mut self, until: Instant) {
        lock(&self.core).coordinator.end();
        self.backlogs.leave_office();
        self.listener.coordinates(false);
        self.office = Office::From(until);
    }

    /// A record was not written, so a decision was not carried out. Everything is examined again in a new
    /// term, after a pause that grows each time.
    pub(super) fn put_off_office(&mut self) {
        let now = Instant::now();
        let pause = self.retry.refused_again(now);
        if !matches!(self.office, Office::From(_)) {
            let pause_ms = pause.as_millis();
            tracing::warn!(
                pause_ms,
                "this relay no longer coordinates: a record of the registry was not written; it will retry \
                 after a pause"
            );
        }
        self.needs_term = true;
        self.leave_office(now + pause);
    }

    /// Takes office if the group has chosen this relay, and answers while it has it.
    pub(super) fn coordinate(&mut self, standing: Standing) {
        let now = Instant::now();
        if standing != Standing::Chosen {
            if !matches!(self.office, Office::From(_)) {
                self.candidate.tell_loss(standing);
                self.leave_office(now);
            }
            return;
        }
        if now < self.held_back || !self.is_read_back() {
            return;
        }
        match self.office {
            // No other relay has had the office since. Once this relay has read its own record, it has
            // read everything that came before.
            Office::From(from) if now >= from && !self.needs_term && self.own_term().is_some() => {
                self.office = Office::Asked;
                self.beat();
            }
            Office::From(from) if now >= from => {
                let (relay, incarnation) = self.me;
                let record = Coordination { version: VERSION, relay, incarnation };
                (self.office, self.needs_term) = (Office::Asked, false);
                self.write(&Write::new(Key::Coordinator, &record));
            }
            Office::From(_) => {}
            Office::Asked => match self.own_term() {
                Some(term) => {
                    let core = &mut *lock(&self.core);
                    core.coordinator.begin(term, &core.registry, now);
                    self.office = Office::Held;
                    self.listener.coordinates(true);
                    tracing::info!(term = term.0, "this relay now coordinates");
                }
                None => self.leave_office(now + self.reflection),
            },
            Office::Held => {
                let (term, is_spoilt) = {
                    let core = lock(&self.core);
                    (core.coordinator.term(), core.coordinator.is_office_spoilt())
                };
                let own = self.own_term();
                if own.is_none() {
                    self.tell_successor();
                    self.leave_office(now + self.reflection);
                } else if own != term {
                    // Our own record, which was presumed lost.
                    self.leave_office(now);
                } else if is_spoilt {
                    self.needs_term = true;
                    self.leave_office(now);
                } else {
                    self.decide(now);
                }
            }
        }
    }

    fn tell_successor(&self) {
        let successor = lock(&self.core).registry.coordination().map(|(_, of)| of.relay.0);
        tracing::warn!(
            relay = successor,
            "this relay no longer coordinates: another one has taken office"
        );
    }

    /// The term, if it is this relay's.
    fn own_term(&self) -> Option<Term> {
        let core = lock(&self.core);
        let (term, of) = core.registry.coordination()?;
        ((of.relay, of.incarnation) == self.me).then_some(*term)
    }

    fn decide(&mut self, now: Instant) {
        self.backlogs.take_in();
        let core = Arc::clone(&self.core);
        let unheld = {
            let core = lock(&core);
            core.coordinator.policy().unheld(core.registry.leases().values())
        };
        self.backlogs.look_after(unheld, now);
        if std::mem::take(&mut self.refused) {
            self.held_back = now + HOLD_BACK;
        }
        let writes = {
            let core = &mut *lock(&self.core);
            core.coordinator.look(now);
            let mut facts = World { backlogs: &mut self.backlogs, listener: &*self.listener };
            core.coordinator.decide(&core.registry, &mut facts, now)
        };
        for write in &writes {
            tracing::debug!(key = %write.key, "the coordinator writes");
            self.write(write);
        }
    }
}
