//! Tests that need root say so when they skip, and run one at a time.

use std::sync::{Mutex, MutexGuard, PoisonError};

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Environment variable that turns a skip for want of privilege into a failure.
pub const REQUIRE_PRIVILEGE: &str = "MILLRACE_REQUIRE_PRIVILEGE";

/// Whether this process may make namespaces and load programs. If not, says loudly what is skipped,
/// or panics where [`REQUIRE_PRIVILEGE`] is set to 1.
pub fn privileged(what: &str) -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    assert!(
        std::env::var_os(REQUIRE_PRIVILEGE).is_none_or(|value| value != "1"),
        "{what}: needs root, and {REQUIRE_PRIVILEGE}=1 forbids to skip it"
    );
    eprintln!("SKIPPED {what}: needs root (network namespaces, BPF)");
    false
}

/// The right to build namespaces and load programs, held until the test ends. Without root the
/// test is told to skip, or fails if `MILLRACE_REQUIRE_PRIVILEGE=1`.
pub fn exclusive() -> Option<MutexGuard<'static, ()>> {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    if !privileged(&test) {
        return None;
    }
    // A test that failed has cleaned up after itself.
    Some(ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner))
}
