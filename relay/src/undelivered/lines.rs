//! The order in which replies are held: what Kafka refuses is written again later, and what comes after it
//! for the same client waits until then.
//!
//! Those that were on their way already cannot be called back. If one of them was taken, the older one that
//! was refused has been overtaken, and is not held any more: the order is promised, and the client may have
//! the newer one by then.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::model::ReplyOffset;

/// What is to be done with a reply that is to be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// It is written.
    Now,
    /// It is tried again later.
    Wait,
    /// A newer one was taken.
    Overtaken,
}

/// Replies to one client that are not held yet.
#[derive(Debug, Default)]
struct Line {
    under_way: BTreeSet<ReplyOffset>,
    /// Those to be tried again, and whether they were refused.
    waiting: BTreeMap<ReplyOffset, bool>,
    /// The last one that was taken.
    taken: Option<ReplyOffset>,
}

impl Line {
    fn is_empty(&self) -> bool {
        self.under_way.is_empty() && self.waiting.is_empty()
    }

    /// True if it is not known yet whether a reply was overtaken.
    fn is_open(&self, offset: ReplyOffset) -> bool {
        self.under_way.last().is_some_and(|last| *last > offset)
    }
}

/// By client (`SERVICE/IDENTITY`). No more than the intake has replies.
#[derive(Debug, Default)]
pub(super) struct Lines {
    lines: HashMap<String, Line>,
    /// Whose those are that wait.
    waiting: BTreeMap<ReplyOffset, String>,
}

impl Lines {
    /// What to do with a reply to `holder`. One that has to wait is in its line then.
    pub(super) fn turn(&mut self, holder: &str, offset: ReplyOffset) -> Turn {
        let Some(line) = self.lines.get_mut(holder) else { return Turn::Now };
        let refused = line.waiting.get(&offset).copied().unwrap_or_default();
        let is_first = line.waiting.range(..offset).next().is_none();
        if refused && line.taken > Some(offset) {
            return Turn::Overtaken;
        }
        if is_first && !(refused && line.is_open(offset)) {
            return Turn::Now;
        }
        line.waiting.entry(offset).or_default();
        self.waiting.entry(offset).or_insert_with(|| holder.to_owned());
        Turn::Wait
    }

    /// Whether it is known, without the reply being read, that its turn is not yet.
    pub(super) fn must_wait(&self, offset: ReplyOffset) -> bool {
        let line = self.waiting.get(&offset).and_then(|holder| self.lines.get(holder));
        let first = line.and_then(|line| Some((line, line.waiting.first_key_value()?)));
        first.is_some_and(|(line, (first, refused))| {
            *refused && line.taken < Some(*first) && line.is_open(*first)
        })
    }

    /// It is on its way.
    pub(super) fn sent(&mut self, holder: &str, offset: ReplyOffset) {
        let line = self.lines.entry(holder.to_owned()).or_default();
        line.waiting.remove(&offset);
        line.under_way.insert(offset);
        self.waiting.remove(&offset);
    }

    /// Kafka has it.
    pub(super) fn taken(&mut self, holder: &str, offset: ReplyOffset) {
        self.end(holder, offset, |line| line.taken = line.taken.max(Some(offset)));
    }

    /// Kafka has refused it, and it is to be tried again.
    pub(super) fn refused(&mut self, holder: &str, offset: ReplyOffset) {
        self.end(holder, offset, |line| {
            line.waiting.insert(offset, true);
        });
        self.waiting.insert(offset, holder.to_owned());
    }

    /// It was on its way, and is not to be held any more.
    pub(super) fn left(&mut self, holder: &str, offset: ReplyOffset) {
        self.end(holder, offset, |_| ());
    }

    fn end(&mut self, holder: &str, offset: ReplyOffset, note: impl FnOnce(&mut Line)) {
        let Some(line) = self.lines.get_mut(holder) else { return };
        line.under_way.remove(&offset);
        note(line);
        if line.is_empty() {
            self.lines.remove(holder);
        }
    }

    /// A reply that may have waited is not to be held any more.
    pub(super) fn leave(&mut self, offset: ReplyOffset) {
        let Some(holder) = self.waiting.remove(&offset) else { return };
        self.end(&holder, offset, |line| {
            line.waiting.remove(&offset);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "chat/a";

    fn turn(lines: &mut Lines, offset: i64) -> Turn {
        let turn = lines.turn(A, ReplyOffset(offset));
        if turn == Turn::Now {
            lines.sent(A, ReplyOffset(offset));
        }
        turn
    }

    fn is_forgotten(lines: &Lines) -> bool {
        lines.lines.is_empty() && lines.waiting.is_empty()
    }

    #[test]
    fn what_comes_later_waits_behind_what_was_refused_and_others_go_on() {
        let mut lines = Lines::default();
        assert_eq!(turn(&mut lines, 1), Turn::Now);
        lines.refused(A, ReplyOffset(1));
        assert_eq!(turn(&mut lines, 3), Turn::Wait);
        assert_eq!(turn(&mut lines, 2), Turn::Wait);
        assert_eq!(lines.turn("chat/b", ReplyOffset(4)), Turn::Now);
        // Tried again in order, and refused once more.
        assert_eq!([1, 2, 3].map(|offset| turn(&mut lines, offset)), [Turn::Now; 3]);
        for offset in [1, 2, 3].map(ReplyOffset) {
            lines.refused(A, offset);
        }
        assert_eq!(turn(&mut lines, 5), Turn::Wait);
        assert_eq!([1, 2, 3, 5].map(|offset| turn(&mut lines, offset)), [Turn::Now; 4]);
        for offset in [1, 2, 3, 5].map(ReplyOffset) {
            lines.taken(A, offset);
        }
        assert!(is_forgotten(&lines));
    }

    #[test]
    fn what_was_overtaken_is_not_written_behind_what_overtook_it() {
        let mut lines = Lines::default();
        assert_eq!([1, 2, 3].map(|offset| turn(&mut lines, offset)), [Turn::Now; 3]);
        lines.refused(A, ReplyOffset(1));
        assert!(lines.must_wait(ReplyOffset(1)), "it is not known yet what becomes of the others");
        assert_eq!(turn(&mut lines, 1), Turn::Wait);
        assert_eq!(turn(&mut lines, 4), Turn::Wait);
        assert!(lines.must_wait(ReplyOffset(4)));
        lines.refused(A, ReplyOffset(2));
        lines.taken(A, ReplyOffset(3));
        assert!(!lines.must_wait(ReplyOffset(1)));
        for offset in [1, 2] {
            assert_eq!(turn(&mut lines, offset), Turn::Overtaken);
            lines.leave(ReplyOffset(offset));
        }
        assert_eq!(turn(&mut lines, 4), Turn::Now);
        lines.taken(A, ReplyOffset(4));
        assert!(is_forgotten(&lines));
    }

    #[test]
    fn what_becomes_a_dead_letter_keeps_nobody_waiting() {
        let mut lines = Lines::default();
        assert_eq!([1, 2].map(|offset| turn(&mut lines, offset)), [Turn::Now; 2]);
        lines.left(A, ReplyOffset(1));
        lines.refused(A, ReplyOffset(2));
        assert_eq!(turn(&mut lines, 3), Turn::Wait);
        lines.leave(ReplyOffset(2));
        assert_eq!(turn(&mut lines, 3), Turn::Now);
        lines.left(A, ReplyOffset(3));
        lines.leave(ReplyOffset(7));
        assert!(is_forgotten(&lines));
    }

    /// Replies of several connections of a client come as their ends are known.
    #[test]
    fn what_is_handed_in_late_was_not_overtaken() {
        let mut lines = Lines::default();
        assert_eq!(turn(&mut lines, 9), Turn::Now);
        assert_eq!(turn(&mut lines, 5), Turn::Now);
        lines.taken(A, ReplyOffset(9));
        assert_eq!(turn(&mut lines, 6), Turn::Now);
        lines.taken(A, ReplyOffset(5));
        lines.taken(A, ReplyOffset(6));
        assert!(is_forgotten(&lines));
    }
}
