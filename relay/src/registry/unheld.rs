//! Partitions that no server holds, for which the coordinator may commit offsets. A commit replaces whatever
//! was committed before, so none of this relay's may come after a new holder's first one.
//!
//! ```text
//!  coordinator                              renewal, burial
//!  offer ─────────────────────────────────► enter … may_commit? … commit … leave
//!  claim: false from enter to leave, so that no lease begins meanwhile
//!  claim: true ───────────────────────────► enter is refused until the next offer
//!  revoke, with the office ───────────────► may_commit is false
//! ```

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::model::Partition;

#[derive(Debug, Default)]
struct State {
    offered: BTreeSet<Partition>,
    busy: Option<Partition>,
}

/// These partitions, shared by the coordinator and the thread that commits.
#[derive(Clone, Debug, Default)]
pub(super) struct Unheld(Arc<Mutex<State>>);

/// A claim to commit for a partition, held until it is dropped.
#[derive(Debug)]
pub(super) struct Busy<'a> {
    of: &'a Unheld,
    partition: Partition,
}

impl Unheld {
    /// Every step leaves the state whole.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the partitions without a holder, according to everything that the coordinator has written.
    pub(super) fn offer(&self, partitions: BTreeSet<Partition>) {
        self.state().offered = partitions;
    }

    /// Gives a partition to a server. False while a thread commits for it.
    pub(super) fn claim(&self, partition: Partition) -> bool {
        let mut state = self.state();
        let is_free = state.busy != Some(partition);
        if is_free {
            state.offered.remove(&partition);
        }
        is_free
    }

    /// This relay no longer coordinates: another one may give the partitions to servers.
    pub(super) fn revoke(&self) {
        self.state().offered.clear();
    }

    /// Claims a partition in order to commit for it. None if it may have a holder by now.
    pub(super) fn enter(&self, partition: Partition) -> Option<Busy<'_>> {
        let mut state = self.state();
        if !state.offered.contains(&partition) || state.busy.is_some() {
            return None;
        }
        state.busy = Some(partition);
        Some(Busy { of: self, partition })
    }
}

impl Busy<'_> {
    /// True if the partition still has no holder. Asked right before a commit.
    pub(super) fn may_commit(&self) -> bool {
        self.of.state().offered.contains(&self.partition)
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.of.state().busy = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Partition = Partition(1);
    const B: Partition = Partition(2);

    #[test]
    fn nobody_gets_a_partition_while_its_commit_is_written_and_none_is_written_after() {
        let unheld = Unheld::default();
        assert!(unheld.enter(A).is_none(), "nobody has said that it has no holder");
        unheld.offer([A, B].into());
        let busy = unheld.enter(A).expect("it has no holder");
        assert!(busy.may_commit());
        assert!(!unheld.claim(A) && unheld.claim(B));
        assert!(busy.may_commit() && unheld.enter(A).is_none());
        drop(busy);
        assert!(unheld.enter(B).is_none(), "it was given to a server");
        assert!(unheld.claim(A));
        assert!(unheld.enter(A).is_none());
        unheld.offer([B].into());
        assert!(unheld.enter(A).is_none() && unheld.enter(B).is_some());
    }

    #[test]
    fn who_does_not_coordinate_any_more_commits_nothing() {
        let unheld = Unheld::default();
        unheld.offer([A, B].into());
        let busy = unheld.enter(A).expect("it has no holder");
        unheld.revoke();
        assert!(!busy.may_commit());
        assert!(!unheld.claim(A), "it may be on its way");
        drop(busy);
        assert!(unheld.enter(A).is_none() && unheld.enter(B).is_none() && unheld.claim(A));
    }
}
