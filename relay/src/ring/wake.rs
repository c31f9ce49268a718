//! Waking a thread that waits in the kernel.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd};

#[derive(Debug)]
struct Shared {
    event: OwnedFd,
    asleep: AtomicBool,
}

/// An eventfd with a flag, so that only a sleeping thread costs a system call.
///
/// The sleeper: [`announce_sleep`](Self::announce_sleep), look once more for work, wait for the
/// eventfd, [`awake`](Self::awake). The others: publish the work, then [`wake`](Self::wake). The
/// two fences order "publish, then read the flag" against "set the flag, then look", so that one of
/// the two always sees the other.
#[derive(Clone, Debug)]
pub struct Wake(Arc<Shared>);

impl Wake {
    /// A wake-up for one thread.
    pub fn new() -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self(Arc::new(Shared { event, asleep: AtomicBool::new(false) })))
    }

    /// The thread is about to wait; after this it must look for work once more.
    pub fn announce_sleep(&self) {
        self.0.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// The thread runs again.
    pub fn awake(&self) {
        self.0.asleep.store(false, Ordering::Relaxed);
    }

    /// Wakes the thread if it sleeps. Work published before is seen by it.
    pub fn wake(&self) {
        fence(Ordering::SeqCst);
        if self.0.asleep.load(Ordering::Relaxed) && self.0.asleep.swap(false, Ordering::Relaxed) {
            // It fails only when the counter is full, and then the thread wakes anyway.
            let _ = rustix::io::write(&self.0.event, &1_u64.to_ne_bytes());
        }
    }

    /// Waits for the eventfd, at most `timeout`, and empties it; between
    /// [`announce_sleep`](Self::announce_sleep) and [`awake`](Self::awake). For threads that do not
    /// wait in a ring.
    pub fn wait(&self, timeout: Duration) {
        self.wait_for(timeout, None);
    }

    /// The same, and until another descriptor becomes readable, which stays as it is.
    pub fn wait_for(&self, timeout: Duration, other: Option<BorrowedFd<'_>>) {
        let timeout = Timespec::try_from(timeout).expect("a sleep is short");
        let event = self.0.event.as_fd();
        let mut descriptors =
            [event, other.unwrap_or(event)].map(|of| PollFd::from_borrowed_fd(of, PollFlags::IN));
        // An interrupted wait is a short one.
        if rustix::event::poll(&mut descriptors, Some(&timeout)).is_ok()
            && descriptors[0].revents().contains(PollFlags::IN)
        {
            let _ = rustix::io::read(&self.0.event, &mut [0_u8; 8]);
        }
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.event.as_fd()
    }
}
