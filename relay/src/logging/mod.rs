//! The log on standard error, which may go away at any time, or stand still: that costs lines, and nothing
//! else.
//!
//! A service hands its lines to a thread of their own, so that whoever says something never waits for who
//! reads it, least of all a worker. What finds no room there, or cannot be written, is lost and counted.

mod limit;
mod writer;

use std::env;
use std::ffi::OsString;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, OnceLock};
use std::time::{Duration, Instant};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use limit::{Limit, Limiter};
use writer::Queue;

/// Where the log's own lines come from, which are never left out.
const TARGET: &str = "millrace_relay::logging";
/// How often it is looked whether something is to be said of what was left out.
const LOOK: Duration = Duration::from_secs(5);
/// How long the last lines may take.
const LAST_LINES: Duration = Duration::from_secs(1);

static LOST: AtomicU64 = AtomicU64::new(0);
static LIMITER: LazyLock<Limiter> = LazyLock::new(Limiter::default);
static QUEUE: OnceLock<Queue> = OnceLock::new();

/// Who writes a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A command, which ends soon: each line is written at once.
    Command,
    /// A service, which must go on.
    Service,
}

/// What is said if nobody wants anything else.
const USUAL: &str = "info";

/// What `RUST_LOG` asks for; and what is wrong with it, if it cannot be understood.
fn wanted(rust_log: Option<OsString>) -> (EnvFilter, Option<String>) {
    let text = match rust_log.map(OsString::into_string) {
        None => return (USUAL.into(), None),
        Some(Ok(text)) if text.is_empty() => return (USUAL.into(), None),
        Some(Ok(text)) => text,
        Some(Err(other)) => {
            return (USUAL.into(), Some(format!("{} is not UTF-8", other.display())));
        }
    };
    match EnvFilter::try_new(&text) {
        Ok(filter) => (filter, None),
        Err(error) => (USUAL.into(), Some(format!("`{text}`: {error}"))),
    }
}

/// Begins to write the log. Once in a process. An error is that a service's thread for it does not start.
pub fn init(purpose: Purpose) -> io::Result<()> {
    let (filter, problem) = wanted(env::var_os(EnvFilter::DEFAULT_ENV));
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(io::IsTerminal::is_terminal(&io::stderr()))
        .log_internal_errors(false)
        .with_writer(Lines);
    let log = tracing_subscriber::registry().with(filter).with(lines);
    match purpose {
        // Of what it is about, all is said.
        Purpose::Command => log.with(Limit { limiter: &LIMITER, only_kafka: true }).init(),
        Purpose::Service => {
            let thread = std::thread::Builder::new();
            let queue = Queue::start(thread, writer::standard_error(), LOOK, tell_left_out)?;
            QUEUE.get_or_init(|| queue);
            log.with(Limit { limiter: &LIMITER, only_kafka: false }).init();
        }
    }
    if let Some(problem) = problem {
        tracing::warn!(
            problem,
            "RUST_LOG cannot be understood; the log's level is `{USUAL}`. Right is for example \
             RUST_LOG=debug, or RUST_LOG=warn,millrace_relay=debug"
        );
    }
    Ok(())
}

/// Says one line to people, beside the log.
pub fn say(line: &str) {
    write(format!("{line}\n").into_bytes());
}

/// Lines that nobody has.
pub fn lost() -> u64 {
    LOST.load(Ordering::Relaxed)
}

/// Waits for a moment until what was said is written.
pub fn flush() {
    if let Some(queue) = QUEUE.get() {
        queue.flush(LAST_LINES);
    }
}

/// The end of the process: what was left out until now, the last word if there is one, and a moment for
/// them to be written.
pub fn finish(last: Option<&str>) {
    for left_out in LIMITER.take_left_out(Instant::now(), true) {
        tell(&left_out);
    }
    if let Some(last) = last {
        say(last);
    }
    flush();
}

fn tell_left_out() {
    for left_out in LIMITER.take_left_out(Instant::now(), false) {
        tell(&left_out);
    }
}

fn tell(limit::LeftOut { text, times, within }: &limit::LeftOut) {
    let within_s = within.as_secs();
    tracing::warn!(target: TARGET, times, within_s, "left out, as it was said before: {text}");
}

fn write(line: Vec<u8>) {
    match QUEUE.get() {
        Some(queue) => queue.push(line),
        None => writer::write(&mut io::stderr().lock(), &line),
    }
}

/// Makes a line of each event.
struct Lines;

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line(Vec::new())
    }
}

/// One event's line; written when it is complete. It never fails: nobody could say so.
struct Line(Vec<u8>);

impl io::Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if !self.0.is_empty() {
            write(std::mem::take(&mut self.0));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt as _;

    use super::*;

    #[test]
    fn what_rust_log_asks_for_is_done_or_its_fault_is_named() {
        let read = |text: &str| wanted(Some(text.into()));
        for (text, level) in [("debug", "debug"), ("warn,a=trace", "a=trace,warn"), ("", USUAL)] {
            let (filter, problem) = read(text);
            assert_eq!((filter.to_string().as_str(), problem), (level, None));
        }
        assert_eq!(wanted(None).1, None);
        let (filter, problem) = read("millrace_relay=loud");
        assert_eq!(filter.to_string(), USUAL);
        assert!(problem.expect("there is no such level").contains("`millrace_relay=loud`: "));
        let (filter, problem) = wanted(Some(OsString::from_vec(vec![0xff])));
        assert!(filter.to_string() == USUAL && problem.is_some());
    }
}
