//! Tests that need root say so when they skip, and run one at a time.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::netns;

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// The right to build namespaces and load programs, held until the test ends. Without root the
/// test is told to skip, or fails if `MILLRACE_REQUIRE_PRIVILEGE=1`.
pub fn exclusive() -> Option<MutexGuard<'static, ()>> {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    if !netns::privileged(&test) {
        return None;
    }
    // A test that failed has cleaned up after itself.
    Some(ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner))
}
