//! What the kernel knows of this process and its threads.

use std::fs;

/// How long a thread ran, and waited to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Thread {
    pub(super) name: String,
    pub(super) busy_ns: u64,
    pub(super) waiting_ns: u64,
}

/// Threads that a relay has from its start to its end; others come and go, and a sum of theirs would
/// shrink. The main thread, with the control plane, is `relay`.
const LASTING: [&str; 10] = [
    "relay",
    "producer",
    "consumer",
    "registry",
    "associations",
    "mover",
    "keeper",
    "proof",
    "waiting",
    "gateway",
];

/// The threads that last, by name. None are told if the kernel does not account for them
/// (`CONFIG_SCHED_INFO`; Documentation/scheduler/sched-stats.rst).
pub(super) fn threads() -> Vec<Thread> {
    let Ok(tasks) = fs::read_dir("/proc/self/task") else { return Vec::new() };
    let mut threads: Vec<Thread> = tasks
        .filter_map(|task| {
            let path = task.ok()?.path();
            let name = fs::read_to_string(path.join("comm")).ok()?.trim_end().to_owned();
            let lasts = LASTING.contains(&&*name) || name.starts_with("worker-");
            // One that has just ended has none.
            lasts.then(|| thread(name, &fs::read_to_string(path.join("schedstat")).ok()?))?
        })
        .collect();
    threads.sort_by(|one, other| one.name.cmp(&other.name));
    // Should one name stand for two threads, a scrape must not have it twice.
    threads.dedup_by(|one, other| one.name == other.name);
    threads
}

fn thread(name: String, schedstat: &str) -> Option<Thread> {
    let mut fields = schedstat.split_ascii_whitespace().map(str::parse);
    let (busy_ns, waiting_ns) = (fields.next()?.ok()?, fields.next()?.ok()?);
    Some(Thread { name, busy_ns, waiting_ns })
}

/// Resident memory in bytes: `proc_pid_statm(5)`, field 2.
pub(super) fn resident_bytes() -> Option<u64> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_works_is_seen_to_be_busy() {
        let working = std::thread::Builder::new().name("worker-77".to_owned());
        let seen = working.spawn(|| {
            // A look may miss it while threads of other tests end.
            let look = || threads().into_iter().find(|one| one.name == "worker-77");
            let busy = || std::iter::repeat_with(look).flatten().next().expect("endless").busy_ns;
            let before = busy();
            let mut sum = 0_u64;
            while busy() < before + 10_000_000 {
                sum = std::hint::black_box(sum + 1);
            }
            threads().iter().map(|one| one.name.clone()).collect::<Vec<_>>()
        });
        let names = seen.unwrap().join().unwrap();
        assert!(names.is_sorted() && names.iter().all(|name| name.len() < 16), "{names:?}");
        assert!(resident_bytes().unwrap() > 1 << 20);
        assert_eq!(thread("x".to_owned(), "12 x 3"), None);
    }
}
