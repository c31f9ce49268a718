//! Threads of a test end with it.

use std::sync::atomic::{AtomicBool, Ordering};

/// Sets flags when it is dropped. Threads that look at them end then, though the test has failed, and so
/// does the scope that waits for them (`std::thread::scope`).
#[derive(Debug)]
pub struct Ended<'a, const FLAGS: usize>(pub [&'a AtomicBool; FLAGS]);

impl<const FLAGS: usize> Drop for Ended<'_, FLAGS> {
    fn drop(&mut self) {
        self.0.iter().for_each(|flag| flag.store(true, Ordering::SeqCst));
    }
}
