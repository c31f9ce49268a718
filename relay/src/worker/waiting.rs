//! Connections that are not read from, by what they wait for: whoever may go on is found without a
//! look at the others.

use crate::engine::SocketId;
use crate::model::Partition;

use super::lists::Lists;

/// What a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// To be looked at: something about it has changed.
    Look,
    /// Room in the ring to the producer.
    Ring,
    /// Credit of a partition.
    Credit(Partition),
}

impl Wait {
    fn list(self) -> usize {
        match self {
            Self::Look => 0,
            Self::Ring => 1,
            Self::Credit(partition) => 2 + partition.index(),
        }
    }

    fn of_list(number: usize) -> Self {
        match number {
            0 => Self::Look,
            1 => Self::Ring,
            more => Self::Credit(Partition(u16::try_from(more - 2).expect("few partitions"))),
        }
    }
}

/// The lists, first come first served.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    lists: Lists,
    /// Partitions whose lists may have somebody, each once.
    crowded: Vec<Partition>,
    /// By partition: it stands there.
    is_crowded: Vec<bool>,
}

impl Waiting {
    /// Puts a connection at the end of a list; it leaves the one in which it is.
    pub(super) fn put(&mut self, socket: SocketId, wait: Wait) {
        self.lists.put(socket, wait.list());
        if let Wait::Credit(partition) = wait {
            if self.is_crowded.len() <= partition.index() {
                self.is_crowded.resize(partition.index() + 1, false);
            }
            if !std::mem::replace(&mut self.is_crowded[partition.index()], true) {
                self.crowded.push(partition);
            }
        }
    }

    /// Takes a connection out of its list, if it is in one.
    pub(super) fn remove(&mut self, socket: SocketId) {
        self.lists.remove(socket);
    }

    /// True if a connection stands in some list.
    pub(super) fn has(&self, socket: SocketId) -> bool {
        self.lists.has(socket)
    }

    /// How many stand in a list.
    pub(super) fn count(&self, wait: Wait) -> usize {
        self.lists.count(wait.list())
    }

    /// Takes the first one out of a list.
    pub(super) fn pop(&mut self, wait: Wait) -> Option<SocketId> {
        self.lists.pop(wait.list())
    }

    /// The partition at a place among those that somebody waits for; partitions that nobody waits for
    /// any more go on the way.
    pub(super) fn crowded(&mut self, place: usize) -> Option<Partition> {
        while let Some(partition) = self.crowded.get(place).copied() {
            if self.count(Wait::Credit(partition)) > 0 {
                return Some(partition);
            }
            self.is_crowded[partition.index()] = false;
            self.crowded.swap_remove(place);
        }
        None
    }
}

/// For the checks between two turns.
impl Waiting {
    /// What a connection waits for.
    pub(super) fn of(&self, socket: SocketId) -> Option<Wait> {
        self.lists.list_of(socket).map(Wait::of_list)
    }

    /// How many wait.
    pub(super) fn length(&self) -> usize {
        self.lists.length()
    }

    /// Panics unless every partition that somebody waits for is known to be crowded.
    pub(super) fn check(&self) {
        self.lists.check();
        let mut crowded = 0;
        for (index, is_crowded) in self.is_crowded.iter().enumerate() {
            let partition = Partition(u16::try_from(index).expect("few partitions"));
            assert!(*is_crowded || self.count(Wait::Credit(partition)) == 0, "{partition:?}");
            assert_eq!(*is_crowded, self.crowded.contains(&partition), "{partition:?}");
            crowded += usize::from(*is_crowded);
        }
        assert_eq!(self.crowded.len(), crowded, "each once");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CREDIT: Wait = Wait::Credit(Partition(3));

    #[test]
    fn a_partition_is_crowded_while_somebody_waits_for_it() {
        let mut waiting = Waiting::default();
        for (socket, partition) in [(0, 3), (1, 3), (2, 8)] {
            waiting.put(SocketId(socket), Wait::Credit(Partition(partition)));
        }
        let crowded = |waiting: &mut Waiting| {
            let places = 0..;
            places.map_while(|place| waiting.crowded(place)).map(|of| of.0).collect::<Vec<_>>()
        };
        assert_eq!(crowded(&mut waiting), [3, 8]);
        waiting.remove(SocketId(0));
        waiting.remove(SocketId(1));
        assert_eq!(crowded(&mut waiting), [8]);
        waiting.put(SocketId(1), CREDIT);
        waiting.put(SocketId(0), CREDIT);
        assert_eq!(crowded(&mut waiting), [8, 3]);
    }
}
