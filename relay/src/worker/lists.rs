//! Lists of connections, each of which stands in one at most.

use crate::engine::SocketId;

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
}

/// Numbered lists, linked through a table of sockets, so that a connection leaves its list at once when it
/// ends, wherever it stands.
#[derive(Debug, Default)]
pub(super) struct Lists {
    nodes: Vec<Node>,
    lists: Vec<List>,
}

impl Lists {
    /// Puts a connection at the end of a list; it leaves the one in which it is.
    pub(super) fn put(&mut self, socket: SocketId, number: usize) {
        self.remove(socket);
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
        if let Some(before) = before {
            self.nodes[before.index()].after = Some(socket);
        }
        let list = u32::try_from(number + 1).expect("few lists");
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
    pub(super) fn count(&self, number: usize) -> usize {
        self.lists.get(number).map_or(0, |list| list.length)
    }

    /// Takes the first one out of a list.
    pub(super) fn pop(&mut self, number: usize) -> Option<SocketId> {
        let first = self.lists.get(number)?.first?;
        self.remove(first);
        Some(first)
    }

    /// Those who stand in a list, in order.
    pub(super) fn iter(&self, number: usize) -> impl Iterator<Item = SocketId> {
        let first = self.lists.get(number).and_then(|list| list.first);
        std::iter::successors(first, |socket| self.nodes[socket.index()].after)
    }
}

/// For the checks between two turns.
impl Lists {
    /// The list in which a connection stands.
    pub(super) fn list_of(&self, socket: SocketId) -> Option<usize> {
        self.nodes.get(socket.index())?.list.checked_sub(1).map(|number| number as usize)
    }

    /// How many stand in all lists together.
    pub(super) fn length(&self) -> usize {
        self.lists.iter().map(|list| list.length).sum()
    }

    /// Panics unless the links, the ends and the lengths agree.
    pub(super) fn check(&self) {
        for (number, list) in self.lists.iter().enumerate() {
            let mut before = None;
            for socket in self.iter(number) {
                assert_eq!(self.list_of(socket), Some(number), "{socket:?}");
                assert_eq!(self.nodes[socket.index()].before, before, "{socket:?}");
                before = Some(socket);
            }
            assert_eq!((list.last, list.length), (before, self.iter(number).count()), "{number}");
        }
        let listed = self.nodes.iter().filter(|node| node.list > 0).count();
        assert_eq!(listed, self.length(), "each in one list");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_come_first_served_and_each_in_one_list() {
        let mut lists = Lists::default();
        for socket in [5, 1, 9, 2] {
            lists.put(SocketId(socket), 3);
        }
        lists.put(SocketId(1), 0);
        lists.put(SocketId(5), 3);
        assert_eq!((lists.count(3), lists.count(0), lists.count(7)), (3, 1, 0));
        assert!(lists.has(SocketId(9)) && !lists.has(SocketId(0)));
        let drained = |lists: &mut Lists, number| {
            std::iter::from_fn(|| lists.pop(number)).map(|socket| socket.0).collect::<Vec<_>>()
        };
        assert!(lists.iter(3).map(|socket| socket.0).eq([9, 2, 5]) && lists.iter(7).count() == 0);
        assert_eq!(drained(&mut lists, 3), [9, 2, 5]);
        assert_eq!(drained(&mut lists, 0), [1]);
        assert!(!lists.has(SocketId(9)));
    }

    #[test]
    fn whoever_ends_leaves_its_list_wherever_it_stands() {
        for gone in 0..4 {
            let mut lists = Lists::default();
            (0..4).for_each(|socket| lists.put(SocketId(socket), 2));
            lists.remove(SocketId(gone));
            lists.remove(SocketId(gone));
            lists.put(SocketId(7), 2);
            let rest: Vec<u32> = (0..4).filter(|socket| *socket != gone).chain([7]).collect();
            assert_eq!(lists.count(2), 4);
            assert!(lists.iter(2).map(|socket| socket.0).eq(rest));
        }
    }
}
