//! Every term, one too many and one too few: the ledger says so.

use super::found::{ANY_TIME, SPARE_MS, since};
use super::*;
use crate::kafka::{Difference, TIMESTAMP_TYPE};

/// What a ledger is made of: a relay at rest, after traffic of every kind.
struct Books {
    before: Snapshot,
    after: Snapshot,
    found: Found,
}

fn counts(counts: &[(&str, u64)]) -> BTreeMap<String, u64> {
    counts.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
}

/// With so many messages on their way, of 100 bytes each: the broker is away.
fn books(waiting: u64) -> Books {
    let at_rest = Snapshot {
        incarnation: 1_732_451_696_123,
        messages_received: 1000 + waiting,
        messages_acknowledged: 990,
        messages_in_flight: waiting,
        bytes_in_flight: waiting * (100 + MESSAGE_OVERHEAD_BYTES as u64),
        messages_refused: counts(&[("too_large", 7), ("unknown_partition", 3)]),
        messages_dead_lettered: counts(&[("too_large", 7), ("unknown_partition", 2)]),
        replies_sent: 500,
        replies_orders: 4,
        replies_filtered: 6,
        replies_held: 20,
        replies_dead_lettered: counts(&[("stale", 5), ("hold_limit", 1)]),
        held_dead_lettered: counts(&[("hold_age", 3)]),
        downlink_start: 10_000,
        downlink_position: 10_000 + 536,
        ..Snapshot::default()
    };
    let found = Found {
        messages: 990,
        letters: 7 + 2 + 5 + 1 + 3,
        held: 20,
        downlink_end: 10_000 + 536,
        downlink_committed: 10_000 + 536,
        ..Found::default()
    };
    Books { before: at_rest.clone(), after: at_rest, found }
}

impl Books {
    fn ledger(&self) -> Ledger {
        Ledger::new(&self.before, &self.after, &self.found, BTreeMap::new())
    }

    /// A counter of the relay is wrong: in both looks at it. What is a difference of counters is one
    /// still.
    fn falsify(mut self, change: impl Fn(&mut Snapshot)) -> Ledger {
        for at in [&mut self.before, &mut self.after] {
            change(at);
            let refused = sum(&at.messages_refused);
            let settled = at.messages_acknowledged + refused;
            at.messages_in_flight = at.messages_received.saturating_sub(settled);
        }
        self.ledger()
    }
}

fn by(count: &mut u64, change: i64) {
    *count = count.checked_add_signed(change).unwrap();
}

type Change = (&'static str, fn(&mut Snapshot, i64));

/// Everything that is counted and stands in the ledger.
const COUNTERS: [Change; 13] = [
    ("received", |at, n| by(&mut at.messages_received, n)),
    ("acknowledged", |at, n| by(&mut at.messages_acknowledged, n)),
    ("refused", |at, n| by(at.messages_refused.get_mut("too_large").unwrap(), n)),
    ("dead messages", |at, n| by(at.messages_dead_lettered.get_mut("too_large").unwrap(), n)),
    ("sent", |at, n| by(&mut at.replies_sent, n)),
    ("orders", |at, n| by(&mut at.replies_orders, n)),
    ("filtered", |at, n| by(&mut at.replies_filtered, n)),
    ("held", |at, n| by(&mut at.replies_held, n)),
    ("dead replies", |at, n| by(at.replies_dead_lettered.get_mut("stale").unwrap(), n)),
    ("vanished", |at, n| by(&mut at.replies_vanished, n)),
    ("dead held", |at, n| by(at.held_dead_lettered.get_mut("hold_age").unwrap(), n)),
    ("to bury", |at, n| by(&mut at.messages_to_bury, n)),
    ("bytes", |at, n| by(&mut at.bytes_in_flight, n)),
];

#[test]
fn right_books_balance() {
    for waiting in [0, 5] {
        let ledger = books(waiting).ledger();
        assert!(ledger.balanced, "{ledger}");
        assert_eq!((ledger.uplink.waiting, ledger.uplink.refused), (waiting, 1));
    }
}

#[test]
fn each_counter_that_is_wrong_by_one_is_found() {
    for (name, change) in COUNTERS {
        for by in [1, -1] {
            if by < 0 && matches!(name, "vanished" | "to bury" | "bytes") {
                // They are 0.
                continue;
            }
            let ledger = books(0).falsify(|at| change(at, by));
            // A bound on what may be written and not yet counted: alone it says nothing.
            let is_allowance = name == "to bury";
            assert_eq!(ledger.balanced, is_allowance, "{name} {by:+}: {ledger}");
        }
    }
}

/// What waits has the bytes of its messages to be compared with, which are at least 512 for each and
/// may be more: one message less is not found among long ones, and is one more again when the broker is
/// back.
#[test]
fn while_messages_wait_more_than_there_are_bytes_for_are_found() {
    let waiting = 5;
    let ledger = books(waiting).falsify(|at| at.messages_received += 1);
    assert!(!ledger.balanced, "{ledger}");
    let ledger = books(waiting).falsify(|at| at.messages_received -= waiting);
    assert!(!ledger.balanced, "{ledger}");
}

#[test]
fn each_count_of_records_that_is_wrong_by_one_is_found() {
    type Change = (&'static str, fn(&mut Found, i64));
    let fields: [Change; 5] = [
        ("messages", |found, n| by(&mut found.messages, n)),
        ("letters", |found, n| by(&mut found.letters, n)),
        ("held", |found, n| by(&mut found.held, n)),
        ("committed", |found, n| by(&mut found.downlink_committed, n)),
        ("repeated", |found, n| by(&mut found.repeated, n)),
    ];
    for (name, change) in fields {
        for by in [1, -1] {
            if (name, by) == ("repeated", -1) || (name, by) == ("committed", -1) {
                // There are none; and a commit comes up to a second later than what it is about.
                continue;
            }
            let mut books = books(0);
            change(&mut books.found, by);
            let ledger = books.ledger();
            assert!(!ledger.balanced, "{name} {by:+}: {ledger}");
        }
    }
    // A record that was produced too few: its reply was sent. One too many waits, and so it must be.
    let mut books = books(0);
    books.found.downlink_end -= 1;
    assert!(!books.ledger().balanced);
    books.found.downlink_end += 2;
    books.found.downlink_unread = 1;
    let ledger = books.ledger();
    assert_eq!((ledger.balanced, ledger.downlink.waiting), (true, 1));
}

/// Those of this run and of the one before.
#[test]
fn what_is_postponed_is_not_passed_though_it_is_before_the_offset() {
    let with = |postponed| {
        let mut books = books(0);
        for at in [&mut books.before, &mut books.after] {
            (at.replies_sent, at.downlink_carried) = (500 - 5 + 2, 3);
        }
        books.found.downlink_postponed = postponed;
        books.ledger()
    };
    let ledger = with(6);
    assert_eq!((ledger.balanced, ledger.downlink.waiting), (true, 6), "{ledger}");
    assert_eq!(ledger.downlink.committed_past, 533);
    assert!(!with(5).balanced, "one is passed, and nobody has it");
}

#[test]
fn a_server_that_has_committed_more_than_there_is_is_found() {
    let Books { before, after, found } = books(0);
    let server = |committed| Server { in_partition: 10, committed, waiting: 0, deleted: 0 };
    for (committed, balanced) in [(10, true), (11, false)] {
        let servers = [("server".to_owned(), server(committed))].into();
        assert_eq!(Ledger::new(&before, &after, &found, servers).balanced, balanced);
    }
}

#[test]
fn what_cannot_be_read_is_told() {
    let mut books = books(0);
    assert!(books.ledger().balanced);
    books.found.unreadable = 3;
    let ledger = books.ledger();
    assert!(ledger.problems.iter().any(|it| it.contains("cannot be read")), "{ledger:?}");
}

#[test]
fn a_run_is_looked_for_where_the_earlier_of_two_clocks_has_it() {
    let at = |incarnation, begun_unix_ms| {
        since(&Snapshot { incarnation, begun_unix_ms, ..Snapshot::default() }, "uplink")
    };
    let now = 1_732_451_696_123;
    let spared = 1_732_451_696_123 - SPARE_MS;
    assert_eq!(at(now, None), spared);
    assert_eq!(at(now + 7_200_000, Some(1_732_451_696_123)), spared, "the host's is ahead");
    assert_eq!(at(now, Some(1_732_451_696_123 + 7_200_000)), spared, "or behind");
}

#[test]
fn where_writers_say_the_time_a_run_may_be_anywhere() {
    let differs = Difference {
        topic: "uplink".to_owned(),
        setting: TIMESTAMP_TYPE.to_owned(),
        found: "CreateTime".to_owned(),
        wanted: "LogAppendTime".to_owned(),
        why: String::new(),
    };
    let at = Snapshot { incarnation: 9_000_000, topics: vec![differs], ..Snapshot::default() };
    assert_eq!((since(&at, "uplink"), since(&at, "held")), (ANY_TIME, 9_000_000 - SPARE_MS));
}

#[test]
fn marks_of_transactions_are_no_replies() {
    let with = |passed, unread_offsets: u64, unread| {
        let mut books = books(0);
        for at in [&mut books.before, &mut books.after] {
            at.downlink_position += i64::try_from(passed).unwrap();
            at.downlink_marks = passed;
        }
        let position = u64::try_from(books.after.downlink_position).unwrap();
        books.found.downlink_committed = position;
        books.found.downlink_end = position + unread_offsets;
        books.found.downlink_unread = unread;
        books.ledger()
    };
    let ledger = with(40, 0, 0);
    let Downlink { produced, marks, waiting, .. } = ledger.downlink;
    assert_eq!((ledger.balanced, produced, marks, waiting), (true, 536, 40, 0));
    // The last transaction's mark is behind all that the relay can read.
    let ledger = with(40, 1, 0);
    assert_eq!((ledger.balanced, ledger.downlink.waiting, ledger.downlink.marks), (true, 0, 41));
    let ledger = with(40, 3, 2);
    assert_eq!((ledger.balanced, ledger.downlink.waiting, ledger.downlink.marks), (true, 2, 41));
}

#[test]
fn what_retention_has_deleted_is_said_and_not_missed() {
    let mut books = books(0);
    books.found.messages -= 100;
    assert!(!books.ledger().balanced, "nothing was deleted");
    books.found.messages_deleted = 300;
    let ledger = books.ledger();
    assert_eq!((ledger.balanced, ledger.uplink.deleted), (true, 100), "{ledger}");
    // There are not more than were written all the same.
    books.found.messages = 991;
    assert!(!books.ledger().balanced);
    books.found.messages = 0;
    assert!(!books.ledger().balanced, "more is missing than can be deleted");
    for at in [&mut books.before, &mut books.after] {
        at.messages_gone = 690;
    }
    assert!(books.ledger().balanced, "the rest was in a topic that is gone");
    (books.found.letters, books.found.held) = (0, 0);
    assert!(!books.ledger().balanced);
    (books.found.letters_cut, books.found.held_cut) = (true, true);
    assert!(books.ledger().balanced);
}

#[test]
fn what_is_lost_is_a_problem_though_the_sums_are_right() {
    type Change = fn(&mut Snapshot);
    let losses: [Change; 3] = [
        |at| {
            at.downlink_breaks.insert("deleted".to_owned(), 7);
        },
        |at| {
            at.replies_vanished += 1;
            at.replies_sent -= 1;
        },
        |at| at.held_vanished += 1,
    ];
    for change in losses {
        let ledger = books(0).falsify(change);
        assert_eq!(ledger.problems.len(), 1, "{ledger}");
    }
    let Books { before, after, found } = books(0);
    let server = |deleted| Server { in_partition: 10, committed: 0, waiting: 10, deleted };
    for (deleted, balanced) in [(0, true), (3, false)] {
        let servers = [("server".to_owned(), server(deleted))].into();
        assert_eq!(Ledger::new(&before, &after, &found, servers).balanced, balanced);
    }
}
