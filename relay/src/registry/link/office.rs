//! The office of the coordinator: this relay takes it when its group has chosen it, and leaves it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::registry::Write;
use crate::registry::candidate::Standing;
use crate::registry::facts::World;
use crate::registry::record::{Coordination, Key, Term, VERSION};

use super::{Participant, lock};

/// Least time between decisions while records are refused: one of the coordinator's own may be
/// among them, and it would be written again.
const HOLD_BACK: Duration = Duration::from_millis(200);

/// How far this relay is with taking office.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Office {
    /// It may be tried from then on.
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

    /// A record was not written: what was decided has not come to be. Everything is looked at again, in
    /// a term of its own, but later each time.
    pub(super) fn put_off_office(&mut self) {
        let now = Instant::now();
        let pause = self.retry.refused_again(now);
        if !matches!(self.office, Office::From(_)) {
            let pause_ms = pause.as_millis();
            tracing::warn!(
                pause_ms,
                "this relay coordinates no longer: a record of the registry was not written; after a \
                 pause it tries again"
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
            // Nobody has had it since. Its own word shows whether it has read what came meanwhile.
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
                    tracing::info!(term = term.0, "this relay coordinates from now on");
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
                    // A record of ours that was taken for lost.
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
            "this relay coordinates no longer: another one has taken office"
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
