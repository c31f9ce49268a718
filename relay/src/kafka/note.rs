//! What stands beside the downlink's committed offset: replies before it that are postponed. The next
//! run sees to them, and to nothing else of what is before the offset.

use std::fmt::Write as _;
use std::ops::Range;

use crate::ring::ReplyOffset;

/// The broker's default bound (`offset.metadata.max.bytes`).
pub(super) const MOST_BYTES: usize = 4096;

/// How every note begins; an empty one has nothing to say.
const NAME: &str = "postponed";

/// Offsets as runs: how many are left out, from 0 on, and how many follow.
#[derive(Debug)]
pub(super) struct Note {
    text: String,
    most_bytes: usize,
    /// Behind the last run that is printed.
    end: i64,
    run: Option<(i64, i64)>,
}

impl Note {
    pub(super) fn new(most_bytes: usize) -> Self {
        Self { text: String::new(), most_bytes, end: 0, run: None }
    }

    /// Adds an offset, larger than those before; false if there is no room.
    pub(super) fn add(&mut self, offset: ReplyOffset) -> bool {
        match &mut self.run {
            Some((_, end)) if *end == offset.0 => *end += 1,
            _ => {
                if !self.print_run() {
                    return false;
                }
                self.run = Some((offset.0, offset.0 + 1));
            }
        }
        true
    }

    fn print_run(&mut self) -> bool {
        let Some((first, end)) = self.run else { return true };
        let before = self.text.len();
        let start = if before == 0 { NAME } else { "" };
        write!(self.text, "{start} {}+{}", first - self.end, end - first).expect("to memory");
        let fits = self.text.len() <= self.most_bytes;
        if fits {
            (self.end, self.run) = (end, None);
        } else {
            self.text.truncate(before);
        }
        fits
    }

    /// The text, and the first of the offsets that it has no room for.
    pub(super) fn finish(mut self) -> (String, Option<ReplyOffset>) {
        let left = if self.print_run() { None } else { self.run.map(|(first, _)| first) };
        (self.text, left.map(ReplyOffset))
    }
}

/// The offsets of a note, if it is one: ranges that grow, all before `end`.
pub(super) fn parse(text: &str, end: i64) -> Option<Vec<Range<i64>>> {
    let mut words = text.split(' ');
    if words.next()? != NAME {
        return text.is_empty().then(Vec::new);
    }
    let (mut runs, mut at) = (Vec::new(), 0_i64);
    for word in words {
        let (skipped, count) = word.split_once('+')?;
        let (skipped, count) = (skipped.parse::<i64>().ok()?, count.parse::<i64>().ok()?);
        let first = at.checked_add(skipped).filter(|first| skipped >= 0 && *first < end)?;
        at = first.checked_add(count).filter(|at| count > 0 && *at <= end)?;
        runs.push(first..at);
    }
    Some(runs)
}

/// How many replies before a committed offset are not settled, by the note beside it.
pub fn postponed_before((offset, note): &(i64, String)) -> u64 {
    let runs = parse(note, *offset).unwrap_or_default();
    runs.iter().map(|run| run.end.abs_diff(run.start)).sum()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn print(offsets: &BTreeSet<i64>, most_bytes: usize) -> (String, Option<i64>) {
        let mut note = Note::new(most_bytes);
        let all = offsets.iter().all(|offset| note.add(ReplyOffset(*offset)));
        let (text, left) = note.finish();
        assert!(all || left.is_some());
        (text, left.map(|offset| offset.0))
    }

    #[test]
    fn runs_are_short() {
        let offsets = BTreeSet::from([7, 8, 9, 1000, 1002]);
        assert_eq!(print(&offsets, 100).0, "postponed 7+3 990+1 1+1");
        assert_eq!(print(&BTreeSet::new(), 0), (String::new(), None));
        assert_eq!(print(&offsets, 0), (String::new(), Some(7)));
    }

    #[test]
    fn what_is_no_note_is_refused() {
        assert_eq!(parse("", 9), Some(Vec::new()));
        for text in ["x", "postponed 1", "postponed -1+1", "postponed 1+0", "postponed 8+2", " "] {
            assert_eq!(parse(text, 9), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_fits_is_read_again(
            offsets in proptest::collection::btree_set(0..100_000_i64, 0..300),
            most_bytes in 0..2000_usize,
        ) {
            let (text, left) = print(&offsets, most_bytes);
            prop_assert!(text.len() <= most_bytes);
            let read: Vec<i64> = parse(&text, 100_000).unwrap().into_iter().flatten().collect();
            let there = offsets.iter().copied().filter(|offset| left.is_none_or(|left| *offset < left));
            prop_assert_eq!(read, there.collect::<Vec<_>>());
        }

        #[test]
        fn nothing_panics(text: String, end: i64) {
            for text in [text.clone(), format!("postponed {text}")] {
                let runs = parse(&text, end).unwrap_or_default();
                prop_assert!(runs.iter().all(|run| run.start < run.end && run.end <= end));
            }
        }
    }
}
