//! The capabilities of a running relay (capabilities(7)): the process gives up what no part of it needs before
//! it does anything else, and each thread that meets clients' or Kafka's bytes gives up the rest.
//!
//! Capabilities belong to threads, and a new thread has those of the one that starts it. Where the process has
//! none, as that of an ordinary user, none of this changes anything.

use std::io;

pub use rustix::thread::CapabilitySet;
use rustix::thread::{
    CapabilitySets, capabilities, remove_capability_from_bounding_set, set_capabilities,
    set_no_new_privs,
};

/// What a relay may need while it runs. The threads of the control plane keep it:
///
/// - `CAP_SYS_ADMIN` enters network namespaces (setns(2)), mounts the tree of settings, and finds BPF programs
///   by their numbers;
/// - `CAP_NET_ADMIN`, `CAP_BPF` and `CAP_PERFMON` attach the XDP programs to a device that comes back;
/// - `CAP_NET_RAW` lets a socket have another host's address (`IP_TRANSPARENT`), `CAP_NET_BIND_SERVICE` a port
///   below 1024;
/// - `CAP_IPC_LOCK` keeps the rings of `io_uring` out of `RLIMIT_MEMLOCK`;
/// - `CAP_DAC_READ_SEARCH` reads rules, passwords and certificates that belong to others;
/// - `CAP_SYS_PTRACE` finds the network namespace of the host's first process, for a relay in another one.
pub const CONTROL: CapabilitySet = CapabilitySet::SYS_ADMIN
    .union(CapabilitySet::NET_ADMIN)
    .union(CapabilitySet::BPF)
    .union(CapabilitySet::PERFMON)
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::IPC_LOCK)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::SYS_PTRACE);

/// What clients of Kafka keep: they read files of passwords and certificates.
pub const KAFKA: CapabilitySet = CapabilitySet::DAC_READ_SEARCH;

/// What a worker keeps that connects to servers in its clients' names.
pub const HANDS_ON: CapabilitySet = CapabilitySet::NET_RAW.union(CapabilitySet::NET_BIND_SERVICE);

/// Leaves the process [`CONTROL`], for good, whatever it executes. To be called while it has one thread.
pub fn confine() -> io::Result<()> {
    set_no_new_privs(true)?;
    let had = capabilities(None)?;
    if had.effective.contains(CapabilitySet::SETPCAP) {
        for capability in CapabilitySet::all().difference(CONTROL).iter() {
            match remove_capability_from_bounding_set(capability) {
                // The kernel does not know it.
                Ok(()) | Err(rustix::io::Errno::INVAL) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    lower(had, CONTROL)
}

/// Leaves the calling thread these at most, for good.
pub fn keep(kept: CapabilitySet) -> io::Result<()> {
    lower(capabilities(None)?, kept)
}

fn lower(had: CapabilitySets, kept: CapabilitySet) -> io::Result<()> {
    let sets = CapabilitySets {
        effective: had.effective & kept,
        permitted: had.permitted & kept,
        inheritable: had.inheritable & kept,
    };
    Ok(set_capabilities(None, sets)?)
}

/// Does something on a thread that keeps these at most. The threads that it starts have no more.
pub fn with<T: Send>(kept: CapabilitySet, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    let confined = move || keep(kept).map(|()| work());
    std::thread::scope(|scope| match scope.spawn(confined).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the calling thread has, and what a thread has that it starts.
    fn seen() -> [CapabilitySets; 2] {
        let look = || capabilities(None).expect("anybody may look");
        [look(), std::thread::spawn(look).join().expect("it only looks")]
    }

    #[test]
    fn what_is_given_up_is_gone_for_threads_to_come_and_kept_by_the_others() {
        let before = capabilities(None).expect("anybody may look");
        let within = with(HANDS_ON, seen).expect("anybody may give up");
        for sets in within {
            assert_eq!(sets.effective, before.effective & HANDS_ON);
            assert_eq!(sets.permitted, before.permitted & HANDS_ON);
        }
        assert_eq!(capabilities(None).expect("anybody may look"), before);
    }

    #[test]
    fn what_threads_keep_is_part_of_what_the_process_keeps() {
        assert!(CONTROL.contains(KAFKA) && CONTROL.contains(HANDS_ON));
        assert!(!CONTROL.contains(CapabilitySet::SYS_MODULE | CapabilitySet::SETPCAP));
    }
}
