//! Why a ring could not be made: what forbids it says more than the error's number.

use std::io;

use rustix::process::{Resource, getrlimit};

/// The first Linux with all that the engine uses of io_uring: deferred task run, multishot receive.
const MINIMUM_KERNEL: &str = "6.1";

/// Facts about the system that explain a failure.
#[derive(Clone, Copy, Debug, Default)]
struct Facts {
    /// `kernel.io_uring_disabled`; None before Linux 6.6.
    disabled: Option<u8>,
    /// The process has a filter of system calls.
    filtered: bool,
    /// Most bytes that may be locked; None: no limit.
    locked: Option<u64>,
    /// Most descriptors that may be open.
    files: Option<u64>,
}

impl Facts {
    fn of_this_process() -> Self {
        let disabled = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        Self {
            disabled: disabled.ok().and_then(|value| value.trim().parse().ok()),
            filtered: is_filtered(&status),
            locked: getrlimit(Resource::Memlock).current,
            files: getrlimit(Resource::Nofile).current,
        }
    }
}

/// True if seccomp(2) filters the system calls of a process, according to its status
/// (`proc_pid_status(5)`).
fn is_filtered(status: &str) -> bool {
    status.lines().any(|line| line.strip_prefix("Seccomp:").is_some_and(|mode| mode.trim() == "2"))
}

/// True if a ring is forbidden here, which says nothing about the kernel's features.
pub fn is_forbidden(error: &io::Error) -> bool {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => true,
        Some(libc::ENOSYS) => Facts::of_this_process().filtered,
        _ => false,
    }
}

/// The cause of a failure to make a ring, and what to do about it.
pub fn cause(error: &io::Error) -> String {
    because(error.raw_os_error(), Facts::of_this_process())
}

fn because(code: Option<i32>, facts: Facts) -> String {
    const FILTER: &str = "a filter of system calls (seccomp) forbids io_uring, as container runtimes \
         and systemd's SystemCallFilter= do; allow io_uring_setup, io_uring_enter and \
         io_uring_register";
    let kernel = MINIMUM_KERNEL;
    match (code, facts.disabled) {
        (Some(libc::EPERM | libc::EACCES), Some(disabled @ 1..)) => format!(
            "/proc/sys/kernel/io_uring_disabled is {disabled}, which forbids it to {}; set it to 0",
            if disabled == 1 { "all but root and the group io_uring_group" } else { "everybody" },
        ),
        (Some(libc::EPERM | libc::EACCES), _) if facts.filtered => FILTER.to_owned(),
        (Some(libc::EPERM | libc::EACCES), _) => {
            "io_uring is forbidden here: by a security module, as the system's log may say"
                .to_owned()
        }
        (Some(libc::ENOSYS), _) if facts.filtered => {
            format!("{FILTER}; or the kernel has no io_uring at all (CONFIG_IO_URING)")
        }
        (Some(libc::ENOSYS), _) => {
            "the kernel was built without io_uring (CONFIG_IO_URING)".to_owned()
        }
        (Some(libc::ENOMEM), _) => match facts.locked {
            Some(locked) => format!(
                "{} KiB of memory may be locked (RLIMIT_MEMLOCK), and each worker's ring locks \
                 about 350 KiB; raise that (`ulimit -l`, LimitMEMLOCK=), or give CAP_IPC_LOCK",
                locked / 1024
            ),
            None => "the machine, or the control group, has too little memory".to_owned(),
        },
        (Some(libc::EMFILE), _) => format!(
            "only {} files may be open (RLIMIT_NOFILE); raise that (`ulimit -n`, LimitNOFILE=)",
            facts.files.unwrap_or_default()
        ),
        (Some(libc::EINVAL), _) => format!("the relay needs Linux {kernel} or newer"),
        _ => format!("Linux {kernel} or newer has what the relay needs"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_is_named_and_not_the_kernels_version() {
        let (free, filtered) = (Facts::default(), Facts { filtered: true, ..Facts::default() });
        let disabled = |by| Facts { disabled: Some(by), ..Facts::default() };
        let little = Facts { locked: Some(64 << 10), ..Facts::default() };
        for (code, facts, named) in [
            (libc::EPERM, filtered, "seccomp"),
            (libc::EPERM, Facts { disabled: Some(0), ..filtered }, "seccomp"),
            (libc::EPERM, disabled(2), "io_uring_disabled is 2"),
            (libc::EPERM, disabled(1), "io_uring_group"),
            (libc::EPERM, disabled(0), "security module"),
            (libc::ENOSYS, filtered, "seccomp"),
            (libc::ENOSYS, free, "CONFIG_IO_URING"),
            (libc::ENOMEM, little, "64 KiB of memory may be locked"),
            (libc::ENOMEM, free, "too little memory"),
            (libc::EMFILE, Facts { files: Some(20), ..free }, "only 20 files"),
            (libc::EINVAL, free, "Linux 6.1 or newer"),
        ] {
            let told = because(Some(code), facts);
            assert!(told.contains(named), "{code}: {told}");
            assert_eq!(told.contains("or newer"), code == libc::EINVAL, "{told}");
        }
    }

    #[test]
    fn a_filter_is_seen() {
        assert!(is_filtered("NoNewPrivs:\t0\nSeccomp:\t2\nSeccomp_filters:\t1\n"));
        assert!(!is_filtered("NoNewPrivs:\t0\nSeccomp:\t0\nSeccomp_filters:\t0\n"));
    }
}
