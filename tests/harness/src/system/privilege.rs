//! Tests that need root say so when they skip, and share the host.

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Held for reading by every test that loads, for writing by one that wants to be alone with the
/// host's shared parts (the bpffs mount).
static HOST: RwLock<()> = RwLock::new(());

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

/// Beside other tests that load.
pub fn shared() -> RwLockReadGuard<'static, ()> {
    // A test that failed has cleaned up after itself.
    HOST.read().unwrap_or_else(PoisonError::into_inner)
}

/// With the host's shared parts to itself.
pub fn alone() -> RwLockWriteGuard<'static, ()> {
    HOST.write().unwrap_or_else(PoisonError::into_inner)
}

/// [`shared`], if the running test is [`privileged`].
pub fn shared_if_privileged() -> Option<RwLockReadGuard<'static, ()>> {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    privileged(&test).then(shared)
}
