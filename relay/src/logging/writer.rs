//! The queue of lines for standard error.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd as _;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};

use super::LOST;

/// Most bytes of lines in the queue. Further lines are lost.
const MOST_WAITING: usize = 1 << 20;

/// Standard error under its own descriptor, so that a blocked write holds nobody else's lock.
pub(super) fn standard_error() -> Box<dyn Write + Send> {
    match io::stderr().as_fd().try_clone_to_owned() {
        Ok(own) => Box::new(Patient(File::from(own))),
        Err(_) => Box::new(io::stderr()),
    }
}

/// Writes a line, or counts it as lost.
pub(super) fn write(to: &mut (impl Write + ?Sized), line: &[u8]) {
    if to.write_all(line).and_then(|()| to.flush()).is_err() {
        LOST.fetch_add(1, Ordering::Relaxed);
    }
}

/// A file that other users of it may have made non-blocking (`O_NONBLOCK`).
struct Patient(File);

impl Write for Patient {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.0.write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let mut waits = [PollFd::new(&self.0, PollFlags::OUT)];
                    poll(&mut waits, None)?;
                }
                written => return written,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[derive(Debug, Default)]
struct State {
    lines: VecDeque<Vec<u8>>,
    /// The bytes of these lines and of the one that is being written.
    bytes: usize,
}

/// Lines that a separate thread writes.
#[derive(Clone, Debug, Default)]
pub(super) struct Queue(Arc<(Mutex<State>, Condvar)>);

impl Queue {
    /// Starts the thread, which also calls `each` once per `interval`.
    pub(super) fn start(
        thread: std::thread::Builder,
        mut to: Box<dyn Write + Send>,
        interval: Duration,
        mut each: impl FnMut() + Send + 'static,
    ) -> io::Result<Self> {
        let queue = Self::default();
        let of_thread = queue.clone();
        let body = move || {
            let mut next = Instant::now() + interval;
            loop {
                if let Some(line) = of_thread.next(next) {
                    write(&mut *to, &line);
                    of_thread.written(line.len());
                }
                if Instant::now() >= next {
                    next = Instant::now() + interval;
                    each();
                }
            }
        };
        thread.name("log".to_owned()).spawn(body)?;
        Ok(queue)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a line, or counts it as lost.
    pub(super) fn push(&self, line: Vec<u8>) {
        let mut state = self.state();
        if state.bytes > 0 && state.bytes + line.len() > MOST_WAITING {
            LOST.fetch_add(1, Ordering::Relaxed);
            return;
        }
        state.bytes += line.len();
        state.lines.push_back(line);
        self.0.1.notify_all();
    }

    /// The next line, if it comes before `deadline`.
    fn next(&self, deadline: Instant) -> Option<Vec<u8>> {
        let patience = deadline.saturating_duration_since(Instant::now());
        let waits = |state: &mut State| state.lines.is_empty();
        let waited = self.0.1.wait_timeout_while(self.state(), patience, waits);
        waited.unwrap_or_else(PoisonError::into_inner).0.lines.pop_front()
    }

    fn written(&self, bytes: usize) {
        self.state().bytes -= bytes;
        self.0.1.notify_all();
    }

    /// Waits until all lines are written, for at most `patience`.
    pub(super) fn flush(&self, patience: Duration) {
        let busy = |state: &mut State| state.bytes > 0;
        drop(self.0.1.wait_timeout_while(self.state(), patience, busy));
    }
}

#[cfg(test)]
mod tests {
    use std::io::{PipeReader, Read as _, pipe};
    use std::thread::Builder;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn queue() -> (PipeReader, Queue) {
        let (reader, writer) = pipe().expect("a pipe");
        let queue = Queue::start(Builder::new(), Box::new(writer), PATIENCE, || {});
        (reader, queue.expect("a thread"))
    }

    #[test]
    fn that_no_thread_starts_is_an_error() {
        // A stack larger than the address space.
        let thread = Builder::new().stack_size(1 << 50);
        let queue = Queue::start(thread, Box::new(io::sink()), PATIENCE, || {});
        assert!(queue.is_err(), "nobody would write a line");
    }

    #[test]
    fn lines_come_in_order() {
        let (mut reader, queue) = queue();
        queue.push(b"one\n".to_vec());
        queue.push(b"two\n".to_vec());
        let mut read = [0; 8];
        reader.read_exact(&mut read).expect("they come");
        assert_eq!(&read, b"one\ntwo\n");
        queue.flush(PATIENCE);
        assert_eq!(queue.state().bytes, 0);
    }

    #[test]
    fn who_reads_no_more_costs_lines_and_no_time() {
        let (reader, queue) = queue();
        // More than the pipe and the queue hold together.
        let begun = Instant::now();
        let lost = LOST.load(Ordering::Relaxed);
        for _ in 0..1500 {
            queue.push(vec![b'x'; 1000]);
        }
        assert!(LOST.load(Ordering::Relaxed) > lost, "some found no room");
        assert!(queue.state().bytes <= MOST_WAITING);
        queue.flush(Duration::from_millis(10));
        assert!(begun.elapsed() < PATIENCE / 2, "nobody waited for the reader");
        // And one that has gone costs all that wait.
        let lost = LOST.load(Ordering::Relaxed);
        drop(reader);
        queue.flush(PATIENCE);
        assert_eq!(queue.state().bytes, 0);
        assert!(LOST.load(Ordering::Relaxed) > lost + 500);
    }
}
