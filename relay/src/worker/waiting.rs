//! Connections that are not read from, by what they wait for: whoever may go on is found without a
//! look at the others.

use crate::engine::SocketId;
use crate::model::Partition;

/// What a connection waits for. It stands in one list at most.
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
}

#[derive(Clone, Copy, Debug, Default)]
struct Node {
    /// One more than the list's number; 0: it stands in none.
    list: u32,
    before: Option<SocketId>,
    after: Option<SocketId>,
}

#[derive(Clone, Copy, Debug, Default)]
struct List {
    first: Option<SocketId>,
    last: Option<SocketId>,
    length: usize,
    /// Stands among the crowded partitions.
    crowded: bool,
}

/// The lists, first come first served. Linked through a table of sockets, so that a connection leaves
/// its list at once when it ends, wherever it stands.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    nodes: Vec<Node>,
    lists: Vec<List>,
    /// Partitions whose lists may have somebody, each once.
    crowded: Vec<Partition>,
}

impl Waiting {
    /// Puts a connection at the end of a list; it leaves the one in which it is.
    pub(super) fn put(&mut self, socket: SocketId, wait: Wait) {
        self.remove(socket);
        let number = wait.list();
        if self.lists.len() <= number {
            self.lists.resize_with(number + 1, List::default);
        }
        if self.nodes.len() <= socket.index() {
            self.nodes.resize_with(socket.index() + 1, Node::default);
        }
        let list = &mut self.lists[number];
        let before = list.last.replace(socket);
        list.length += 1;
        list.first.get_or_insert(socket);
        if let Wait::Credit(partition) = wait
            && !std::mem::replace(&mut list.crowded, true)
        {
            self.crowded.push(partition);
        }
        if let Some(before) = before {
            self.nodes[before.index()].after = Some(socket);
        }
        let list = u32::try_from(number + 1).expect("partitions are u16");
        self.nodes[socket.index()] = Node { list, before, after: None };
    }

    /// Takes a connection out of its list, if it is in one.
    pub(super) fn remove(&mut self, socket: SocketId) {
        let Some(node) = self.nodes.get_mut(socket.index()) else { return };
        let Node { list, before, after } = std::mem::take(node);
        let Some(number) = list.checked_sub(1) else { return };
        let list = &mut self.lists[number as usize];
        list.length -= 1;
        match before {
            Some(before) => self.nodes[before.index()].after = after,
            None => list.first = after,
        }
        match after {
            Some(after) => self.nodes[after.index()].before = before,
            None => list.last = before,
        }
    }

    /// True if a connection stands in some list.
    pub(super) fn has(&self, socket: SocketId) -> bool {
        self.nodes.get(socket.index()).is_some_and(|node| node.list > 0)
    }

    /// How many stand in a list.
    pub(super) fn count(&self, wait: Wait) -> usize {
        self.lists.get(wait.list()).map_or(0, |list| list.length)
    }

    /// Takes the first one out of a list.
    pub(super) fn pop(&mut self, wait: Wait) -> Option<SocketId> {
        let first = self.lists.get(wait.list())?.first?;
        self.remove(first);
        Some(first)
    }

    /// The partition at a place among those that somebody waits for; partitions that nobody waits for
    /// any more go on the way.
    pub(super) fn crowded(&mut self, place: usize) -> Option<Partition> {
        while let Some(partition) = self.crowded.get(place).copied() {
            let list = &mut self.lists[Wait::Credit(partition).list()];
            if list.length > 0 {
                return Some(partition);
            }
            list.crowded = false;
            self.crowded.swap_remove(place);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CREDIT: Wait = Wait::Credit(Partition(3));

    fn drained(waiting: &mut Waiting, wait: Wait) -> Vec<u32> {
        std::iter::from_fn(|| waiting.pop(wait)).map(|socket| socket.0).collect()
    }

    #[test]
    fn first_come_first_served_and_each_in_one_list() {
        let mut waiting = Waiting::default();
        for socket in [5, 1, 9, 2] {
            waiting.put(SocketId(socket), CREDIT);
        }
        waiting.put(SocketId(1), Wait::Ring);
        waiting.put(SocketId(5), CREDIT);
        assert_eq!((waiting.count(CREDIT), waiting.count(Wait::Ring)), (3, 1));
        assert!(waiting.has(SocketId(9)) && !waiting.has(SocketId(0)));
        assert_eq!(drained(&mut waiting, CREDIT), [9, 2, 5]);
        assert_eq!(drained(&mut waiting, Wait::Ring), [1]);
        assert!(!waiting.has(SocketId(9)));
    }

    #[test]
    fn whoever_ends_leaves_its_list_wherever_it_stands() {
        for gone in 0..4 {
            let mut waiting = Waiting::default();
            (0..4).for_each(|socket| waiting.put(SocketId(socket), Wait::Look));
            waiting.remove(SocketId(gone));
            waiting.remove(SocketId(gone));
            waiting.put(SocketId(7), Wait::Look);
            let rest: Vec<u32> = (0..4).filter(|socket| *socket != gone).chain([7]).collect();
            assert_eq!(waiting.count(Wait::Look), 4);
            assert_eq!(drained(&mut waiting, Wait::Look), rest);
        }
    }

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
