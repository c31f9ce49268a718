//! Rate limit of the log: a line that is repeated, possibly with other numbers, is written a few times, then
//! counted, and reported with its count from time to time. Otherwise a broker that is away would fill a
//! disk.

use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

/// Lines of one kind that are written before further ones are only counted.
const FREE: u32 = 3;
/// How long they are counted. Then their number is reported, and a kind without new lines is forgotten.
const WINDOW: Duration = Duration::from_mins(1);
/// Most kinds at a time; all further ones share one.
const MOST_KINDS: usize = 500;
/// Length in bytes of the text that determines a line's kind, and is repeated with the count.
const MOST_TEXT: usize = 300;
/// The target of librdkafka's lines. It logs as information some things that others would log as warnings.
const KAFKA: &str = "millrace_relay::kafka::context";

/// The lines of one kind in the present window.
#[derive(Debug)]
struct Kind {
    text: String,
    since: Instant,
    said: u32,
    left_out: u64,
}

/// Decides which lines are written.
#[derive(Debug, Default)]
pub(super) struct Limiter(Mutex<HashMap<String, Kind>>);

/// Lines of one kind that were left out.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LeftOut {
    /// The first line.
    pub(super) text: String,
    /// How many were left out.
    pub(super) times: u64,
    /// In which time.
    pub(super) within: Duration,
}

impl Limiter {
    /// True if a line should be written.
    fn admits(&self, text: String, now: Instant) -> bool {
        let mut kinds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut key = kind_of(&text);
        if kinds.len() >= MOST_KINDS && !kinds.contains_key(&key) {
            key.clear();
        }
        let kind = kinds.entry(key).or_insert(Kind { text, since: now, said: 0, left_out: 0 });
        if kind.said < FREE {
            kind.said += 1;
            return true;
        }
        kind.left_out += 1;
        false
    }

    /// What was left out in windows that have ended; with `all`, in all windows.
    pub(super) fn take_left_out(&self, now: Instant, all: bool) -> Vec<LeftOut> {
        let mut kinds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut left_out = Vec::new();
        kinds.retain(|_, kind| {
            let within = now.saturating_duration_since(kind.since);
            if within < WINDOW && !all {
                return true;
            }
            let times = std::mem::take(&mut kind.left_out);
            kind.since = now;
            if times > 0 {
                left_out.push(LeftOut { text: kind.text.clone(), times, within });
            }
            times > 0
        });
        left_out
    }
}

/// librdkafka's lines begin with the thread that logs them. The kind does not depend on it.
const THREAD: (&str, &str) = ("[thrd:", "]: ");
/// Some of them end with the number of suppressed repetitions.
const AGAIN: (&str, &str) = (", ", " identical error(s) suppressed");

/// The kind of a line, which does not depend on addresses, ports, times and counts.
fn kind_of(text: &str) -> String {
    let mut kind = String::with_capacity(text.len());
    let mut rest = text;
    if let Some((before, behind)) = text.split_once(THREAD.0)
        && let Some((_, behind)) = behind.split_once(THREAD.1)
    {
        kind.push_str(before);
        rest = behind;
    }
    if let Some((before, _)) = rest.rsplit_once(AGAIN.1)
        && let Some((before, _)) = before.rsplit_once(AGAIN.0)
    {
        rest = before;
    }
    for character in rest.trim_end_matches([')', '"']).chars() {
        match character {
            '0'..='9' if kind.ends_with('#') => {}
            '0'..='9' => kind.push('#'),
            _ => kind.push(character),
        }
    }
    kind
}

/// A layer that leaves out lines that [`Limiter`] does not admit. It applies to warnings, errors, and
/// librdkafka's lines.
pub(super) struct Limit {
    pub(super) limiter: &'static Limiter,
    /// It applies to librdkafka's lines only.
    pub(super) only_kafka: bool,
}

impl<S: Subscriber> Layer<S> for Limit {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let of = event.metadata();
        let is_kafka = of.target() == KAFKA;
        let concerns = *of.level() <= Level::WARN && (is_kafka || !self.only_kafka)
            || *of.level() == Level::INFO && is_kafka;
        if !concerns || of.target() == super::TARGET {
            return true;
        }
        let mut text = Text(String::new());
        event.record(&mut text);
        self.limiter.admits(text.0, Instant::now())
    }
}

/// The parts of a line that determine its kind: message and reasons, but not whom it concerns.
struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if !matches!(field.name(), "message" | "error" | "reason" | "facility" | "thread") {
            return;
        }
        if !self.0.is_empty() {
            self.0.push_str(", ");
        }
        let _ = write!(self.0, "{value:?}");
        if self.0.len() > MOST_TEXT {
            let end = (0..=MOST_TEXT).rev().find(|end| self.0.is_char_boundary(*end));
            self.0.truncate(end.unwrap_or_default());
        }
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[test]
    fn what_is_said_over_and_over_is_counted_and_told_once_in_a_while() {
        let (limiter, now) = (Limiter::default(), Instant::now());
        let say = |seconds: u64, port: u16| {
            let text = format!("127.0.0.1:{port}: Connection refused (after {seconds}ms)");
            limiter.admits(text, now + Duration::from_secs(seconds))
        };
        // A minute without a broker: a dozen clients that try again each second.
        let said = (0..60)
            .flat_map(|second| (9092..9104).map(move |port| (second, port)))
            .filter(|(second, port)| say(*second, *port))
            .count();
        assert_eq!(said, FREE as usize);
        let early = limiter.take_left_out(now + WINDOW / 2, false);
        assert_eq!(early, [], "its time is not over");
        let left_out = limiter.take_left_out(now + WINDOW, false);
        let [one] = &*left_out else { panic!("{left_out:?}") };
        assert_eq!((one.times, one.within), (60 * 12 - u64::from(FREE), WINDOW));
        assert!(one.text.starts_with("127.0.0.1:9092"), "{}", one.text);
        // It goes on: only its count is said.
        assert!(!say(61, 9092));
        assert_eq!(limiter.take_left_out(now + 2 * WINDOW, false).len(), 1);
        // It is over, and forgotten; the next time it is said again.
        assert_eq!(limiter.take_left_out(now + 3 * WINDOW, false), []);
        assert!(say(200, 9092));
    }

    #[test]
    fn what_several_clients_say_of_one_broker_is_one_kind() {
        let refused =
            "127.0.0.1:9092: Connect failed: Connection refused (after 1ms in state CONNECT";
        let kind = kind_of(&format!("\"FAIL\", \"{refused})\""));
        for text in [
            format!("\"FAIL\", \"[thrd:127.0.0.1:9092/bootstrap]: {refused})\""),
            format!(
                "\"FAIL\", \"[thrd:GroupCoordinator]: {refused}, 31 identical error(s) suppressed)\""
            ),
            format!("\"FAIL\", \"{refused}, 1 identical error(s) suppressed)\""),
        ] {
            assert_eq!(kind_of(&text), kind, "{text}");
        }
        assert_ne!(kind_of(&refused.replace("refused", "timed out")), kind_of(refused));
    }

    #[test]
    fn another_matter_is_said_and_there_is_a_bound_to_how_many() {
        let (limiter, now) = (Limiter::default(), Instant::now());
        for _ in 0..2 * FREE {
            limiter.admits("refused".to_owned(), now);
        }
        assert!(limiter.admits("timed out".to_owned(), now));
        let name = |number: usize| "x".repeat(number + 1);
        let said = (0..2 * MOST_KINDS).filter(|number| limiter.admits(name(*number), now)).count();
        assert_eq!(said, MOST_KINDS - 2 + FREE as usize);
        assert_eq!(limiter.take_left_out(now, true).len(), 2, "`refused`, and what is beyond");
    }

    /// Counts what passes.
    #[derive(Default)]
    struct Lines(std::sync::atomic::AtomicU32);

    impl<S: Subscriber> Layer<S> for &'static Lines {
        fn on_event(&self, _: &Event<'_>, _: Context<'_, S>) {
            self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }

    #[test]
    fn of_a_command_only_what_librdkafka_says_is_left_out() {
        for (only_kafka, expected) in [(false, 2 * FREE), (true, FREE + 10)] {
            let lines: &Lines = Box::leak(Box::default());
            let limiter: &Limiter = Box::leak(Box::default());
            let log = tracing_subscriber::registry();
            let log = log.with(lines).with(Limit { limiter, only_kafka });
            tracing::subscriber::with_default(log, || {
                for port in 0..10 {
                    tracing::warn!(target: KAFKA, reason = %format!("port {port}"), "kafka");
                    tracing::warn!(target: "millrace_relay::cli", reason = %format!("port {port}"), "it is so");
                }
            });
            assert_eq!(lines.0.load(std::sync::atomic::Ordering::Relaxed), expected);
        }
    }
}
