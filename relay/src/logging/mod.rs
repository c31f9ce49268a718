//! The log on standard error. If its reader goes away or stops reading, lines are lost, and nothing else
//! happens.
//!
//! A service hands its lines to a separate thread, so that no thread waits for the reader, least of all a
//! worker. Lines that find no room in its queue, or cannot be written, are lost and counted.

mod limit;
mod writer;

use std::env;
use std::ffi::OsString;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, reload};

use limit::{Limit, Limiter};
use writer::Queue;

/// The target of the log's own lines, which are never left out.
const TARGET: &str = "millrace_relay::logging";
/// Interval at which lines that were left out are reported.
const LOOK: Duration = Duration::from_secs(5);
/// Time to write the last lines.
const LAST_LINES: Duration = Duration::from_secs(1);

static LOST: AtomicU64 = AtomicU64::new(0);
static LIMITER: LazyLock<Limiter> = LazyLock::new(Limiter::default);
static QUEUE: OnceLock<Queue> = OnceLock::new();
static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();
/// The filter as it was asked for.
static WANTED: Mutex<String> = Mutex::new(String::new());

/// The kind of program that writes a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A command, which ends soon. Each line is written at once.
    Command,
    /// A service, which must not wait for the reader of its log.
    Service,
}

/// The level without `RUST_LOG`.
const USUAL: &str = "info";

/// The filter that `RUST_LOG` asks for, and what is wrong with its value if that is invalid.
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

/// Starts the log. Called once in a process. It fails if the service's log thread cannot be started.
pub fn init(purpose: Purpose) -> io::Result<()> {
    let (filter, problem) = wanted(env::var_os(EnvFilter::DEFAULT_ENV));
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(io::IsTerminal::is_terminal(&io::stderr()))
        .log_internal_errors(false)
        .with_writer(Lines);
    filter.to_string().clone_into(&mut WANTED.lock().unwrap_or_else(PoisonError::into_inner));
    let (filter, handle) = reload::Layer::new(filter);
    FILTER.get_or_init(|| handle);
    let log = tracing_subscriber::registry().with(filter).with(lines);
    match purpose {
        // A command's own lines are all written.
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
            "RUST_LOG is invalid; the log's level is `{USUAL}`. Valid examples: RUST_LOG=debug, \
             RUST_LOG=warn,millrace_relay=debug"
        );
    }
    Ok(())
}

/// What is logged, as `RUST_LOG` says it.
pub fn filter() -> String {
    WANTED.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Says what is wrong with a filter.
pub fn check_filter(text: &str) -> Result<(), String> {
    read(text).map(drop)
}

fn read(text: &str) -> Result<EnvFilter, String> {
    let example = "valid examples: debug; warn,millrace_relay=debug";
    if text.is_empty() {
        return Err(format!("it is empty; {example}"));
    }
    EnvFilter::try_new(text).map_err(|error| format!("`{text}`: {error}; {example}"))
}

/// Logs something else from now on. The error says what is wrong with the filter.
pub fn set_filter(text: &str) -> Result<(), String> {
    let filter = read(text)?;
    let handle = FILTER.get().ok_or("this process has no log")?;
    handle.reload(filter).map_err(|error| error.to_string())?;
    text.clone_into(&mut WANTED.lock().unwrap_or_else(PoisonError::into_inner));
    Ok(())
}

/// Writes a line for people that is not part of the log.
pub fn say(line: &str) {
    write(format!("{line}\n").into_bytes());
}

/// The number of lost lines.
pub fn lost() -> u64 {
    LOST.load(Ordering::Relaxed)
}

/// Waits until all lines are written, for at most one second.
pub fn flush() {
    if let Some(queue) = QUEUE.get() {
        queue.flush(LAST_LINES);
    }
}

/// Ends the log with the process: reports what was left out, writes the last line if there is one, and
/// flushes.
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
    tracing::warn!(target: TARGET, times, within_s, "repeated and not shown: {text}");
}

fn write(line: Vec<u8>) {
    match QUEUE.get() {
        Some(queue) => queue.push(line),
        None => writer::write(&mut io::stderr().lock(), &line),
    }
}

/// Makes a line from each event.
struct Lines;

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line(Vec::new())
    }
}

/// The line of one event, written when it is complete. Writing to it never fails, because nothing could
/// report that.
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
