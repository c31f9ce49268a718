//! What stands beside the downlink's committed offset: in which log it counts ([`crate::downlink::place`]), and
//! replies before it that are postponed. The next run sees to them, and to nothing else of what is
//! before the offset.

use std::fmt::Write as _;
use std::ops::Range;

use crate::model::ReplyOffset;

/// The broker's default bound (`offset.metadata.max.bytes`).
pub(crate) const MOST_BYTES: usize = 4096;

/// What stands before the log's id.
const LOG: &str = "log";
/// What stands before the offsets that are postponed.
const POSTPONED: &str = "postponed";

/// Offsets as runs: how many are left out, from 0 on, and how many follow.
#[derive(Debug)]
pub(crate) struct Note {
    text: String,
    most_bytes: usize,
    /// No offset is printed yet.
    is_bare: bool,
    /// Behind the last run that is printed.
    end: i64,
    run: Option<(i64, i64)>,
}

impl Note {
    /// One for the log with this id, which is left out if there is no room for it.
    pub(crate) fn new(log: Option<&str>, most_bytes: usize) -> Self {
        let text = log.map(|log| format!("{LOG} {log}")).filter(|text| text.len() <= most_bytes);
        let text = text.unwrap_or_default();
        Self { text, most_bytes, is_bare: true, end: 0, run: None }
    }

    /// Adds an offset, larger than those before; false if there is no room.
    pub(crate) fn add(&mut self, offset: ReplyOffset) -> bool {
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
        if self.is_bare {
            let space = if before == 0 { "" } else { " " };
            write!(self.text, "{space}{POSTPONED}").expect("to memory");
        }
        write!(self.text, " {}+{}", first - self.end, end - first).expect("to memory");
        let fits = self.text.len() <= self.most_bytes;
        if fits {
            (self.end, self.run, self.is_bare) = (end, None, false);
        } else {
            self.text.truncate(before);
        }
        fits
    }

    /// The text, and the first of the offsets that it has no room for.
    pub(crate) fn finish(mut self) -> (String, Option<ReplyOffset>) {
        let left = if self.print_run() { None } else { self.run.map(|(first, _)| first) };
        (self.text, left.map(ReplyOffset))
    }
}

/// What a note says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Told<'a> {
    /// The log's id.
    pub(crate) log: Option<&'a str>,
    /// What is postponed.
    pub(crate) runs: Vec<Range<i64>>,
}

/// What a text says, if it is a note: ranges that grow, all before `end`.
pub(crate) fn parse(text: &str, end: i64) -> Option<Told<'_>> {
    let mut told = Told::default();
    let mut words = text.split(' ').peekable();
    if words.next_if_eq(&LOG).is_some() {
        told.log = Some(words.next().filter(|log| !log.is_empty())?);
        if words.peek().is_none() {
            return Some(told);
        }
    }
    if words.next()? != POSTPONED {
        return text.is_empty().then_some(told);
    }
    let mut at = 0_i64;
    for word in words {
        let (skipped, count) = word.split_once('+')?;
        let (skipped, count) = (skipped.parse::<i64>().ok()?, count.parse::<i64>().ok()?);
        let first = at.checked_add(skipped).filter(|first| skipped >= 0 && *first < end)?;
        at = first.checked_add(count).filter(|at| count > 0 && *at <= end)?;
        told.runs.push(first..at);
    }
    Some(told)
}

/// How many replies before a committed offset are not settled, by the note beside it.
pub fn postponed_before((offset, note): &(i64, String)) -> u64 {
    let runs = parse(note, *offset).unwrap_or_default().runs;
    runs.iter().map(|run| run.end.abs_diff(run.start)).sum()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn print(offsets: &BTreeSet<i64>, most_bytes: usize) -> (String, Option<i64>) {
        print_in(None, offsets, most_bytes)
    }

    fn print_in(
        log: Option<&str>,
        offsets: &BTreeSet<i64>,
        most_bytes: usize,
    ) -> (String, Option<i64>) {
        let mut note = Note::new(log, most_bytes);
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
        assert_eq!(parse("", 9), Some(Told::default()));
        for text in [
            "x",
            "log",
            "log ",
            "log a b",
            "log a ",
            "postponed 1",
            "postponed -1+1",
            "postponed 1+0",
            "postponed 8+2",
            " ",
        ] {
            assert_eq!(parse(text, 9), None, "{text}");
        }
    }

    #[test]
    fn the_log_stands_before_what_is_postponed() {
        let offsets = BTreeSet::from([7, 8]);
        for (offsets, text) in
            [(&offsets, "log a-_9 postponed 7+2"), (&BTreeSet::new(), "log a-_9")]
        {
            assert_eq!(print_in(Some("a-_9"), offsets, 100), (text.to_owned(), None));
            let told = parse(text, 100).unwrap();
            assert_eq!((told.log, told.runs.len()), (Some("a-_9"), offsets.len() / 2));
        }
        assert_eq!(print_in(Some("a-_9"), &offsets, 7), (String::new(), Some(7)));
        assert_eq!(print_in(Some("a-_9"), &offsets, 12), ("log a-_9".to_owned(), Some(7)));
    }

    proptest! {
        #[test]
        fn what_fits_is_read_again(
            offsets in proptest::collection::btree_set(0..100_000_i64, 0..300),
            most_bytes in 0..2000_usize,
        ) {
            let (text, left) = print(&offsets, most_bytes);
            prop_assert!(text.len() <= most_bytes);
            let read: Vec<i64> =
                parse(&text, 100_000).unwrap().runs.into_iter().flatten().collect();
            let there = offsets.iter().copied().filter(|offset| left.is_none_or(|left| *offset < left));
            prop_assert_eq!(read, there.collect::<Vec<_>>());
        }

        #[test]
        fn nothing_panics(text: String, end: i64) {
            for text in [text.clone(), format!("postponed {text}"), format!("log a {text}")] {
                let runs = parse(&text, end).unwrap_or_default().runs;
                prop_assert!(runs.iter().all(|run| run.start < run.end && run.end <= end));
            }
        }
    }
}
