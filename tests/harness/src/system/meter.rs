//! Processor time of all that takes part in a measurement, read together.
//!
//! What a device's soft interrupt costs is charged to whoever it interrupts: a packet on a veth is
//! forwarded in the time of the process that sent it, or in that of `ksoftirqd`. So the time of the
//! processes contains that of the hosts between them; only the idle task's share is in the machine's
//! time alone.

#![allow(clippy::cast_precision_loss, reason = "counts of ticks become microseconds here")]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::system::cpu::{CpuTime, idle_us};

/// Name under which the kernel's threads for deferred soft interrupts are reported.
pub const SOFTIRQ_THREADS: &str = "ksoftirqd";

/// Knows whose time to read.
#[derive(Clone, Debug)]
pub struct Meter {
    own: String,
    others: Vec<(String, Vec<u32>)>,
}

/// Processor time since the start of the machine and of each process.
#[derive(Clone, Debug)]
pub struct Reading {
    at: Instant,
    idle_us: f64,
    processes_us: Vec<(String, f64)>,
}

/// Processor time between two readings, in microseconds.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Usage {
    /// Between the readings.
    pub seconds: f64,
    /// Everything but idling, in all processes of the machine: what else it did is in here too.
    pub machine_us: f64,
    /// Of the processes that take part, user and system.
    pub processes_us: BTreeMap<String, f64>,
}

impl Meter {
    /// Knows this process under a name, and the kernel's soft interrupt threads.
    pub fn new(own: &str) -> Result<Self> {
        let mut softirq = Vec::new();
        for pid in process_ids()? {
            // A process may be gone by now.
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            if name.starts_with("ksoftirqd/") {
                softirq.push(pid);
            }
        }
        Ok(Self { own: own.to_owned(), others: vec![(SOFTIRQ_THREADS.to_owned(), softirq)] })
    }

    /// Knows another process, too.
    #[must_use]
    pub fn with(mut self, name: &str, pid: u32) -> Self {
        self.others.push((name.to_owned(), vec![pid]));
        self
    }

    /// Reads them.
    pub fn read(&self) -> Result<Reading> {
        let others_us = self.others.iter().map(|(name, pids)| {
            let times =
                pids.iter().map(|pid| CpuTime::of_process(*pid)).collect::<Result<Vec<_>>>()?;
            let used: u64 = times.into_iter().map(CpuTime::total_us).sum();
            Ok((name.clone(), used as f64))
        });
        let mut processes_us = others_us.collect::<Result<Vec<_>>>()?;
        // To the nanosecond, and it is often the only one: the others' are counted in steps of 10 ms.
        let own = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        let own_us = own.tv_sec as f64 * 1e6 + own.tv_nsec as f64 / 1e3;
        processes_us.push((self.own.clone(), own_us));
        Ok(Reading { at: Instant::now(), idle_us: idle_us()? as f64, processes_us })
    }
}

impl Reading {
    /// What has been used since an earlier reading of the same meter.
    pub fn since(&self, earlier: &Self) -> Usage {
        let before: BTreeMap<_, _> = earlier.processes_us.iter().cloned().collect();
        let used = |(name, now): &(String, f64)| {
            (name.clone(), now - before.get(name).copied().unwrap_or_default())
        };
        let seconds = (self.at - earlier.at).as_secs_f64();
        let processors = std::thread::available_parallelism().map_or(1, usize::from) as f64;
        Usage {
            seconds,
            machine_us: processors * seconds * 1e6 - (self.idle_us - earlier.idle_us),
            processes_us: self.processes_us.iter().map(used).collect(),
        }
    }
}

impl Usage {
    /// Of all processes that take part.
    pub fn total_us(&self) -> f64 {
        self.processes_us.values().sum()
    }

    /// Per unit of work.
    #[must_use]
    pub fn per(&self, units: f64) -> Self {
        let each = |(name, used): (&String, &f64)| (name.clone(), used / units);
        Self {
            seconds: self.seconds,
            machine_us: self.machine_us / units,
            processes_us: self.processes_us.iter().map(each).collect(),
        }
    }
}

/// Memory that a process has in use (`VmRSS` of `proc_pid_status(5)`).
pub fn resident_bytes(process: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB")).context("no VmRSS")?;
    Ok(kilobytes.trim().parse::<u64>()? << 10)
}

fn process_ids() -> Result<impl Iterator<Item = u32>> {
    Ok(std::fs::read_dir("/proc")?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok()))
}

/// The process that listens on a TCP port in this network namespace, if it is one of this machine.
pub fn listening_process(port: u16) -> Result<Option<u32>> {
    const LISTENING: &str = "0A";
    let mut inode = None;
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let text = std::fs::read_to_string(table).unwrap_or_default();
        for line in text.lines().skip(1) {
            let fields: Vec<_> = line.split_whitespace().collect();
            let [_, local, _, LISTENING, _, _, _, _, _, number, ..] = fields[..] else { continue };
            if local.rsplit_once(':').is_some_and(|(_, hex)| hex == format!("{port:04X}")) {
                inode = Some(format!("socket:[{number}]"));
            }
        }
    }
    let Some(inode) = inode else { return Ok(None) };
    Ok(process_ids()?.find(|pid| {
        std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten().any(|entry| {
            std::fs::read_link(entry.path()).is_ok_and(|target| target == Path::new(&inode))
        })
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_spent_is_seen() {
        let meter = Meter::new("this").unwrap();
        let before = meter.read().unwrap();
        let start = Instant::now();
        let mut sum = 0_u64;
        // Three ticks at least.
        while start.elapsed().as_millis() < 60 {
            sum = std::hint::black_box(sum.wrapping_mul(31).wrapping_add(7));
        }
        let used = meter.read().unwrap().since(&before);
        // The processor may have been another's for a part.
        assert!((10_000.0..1_000_000.0).contains(&used.processes_us["this"]), "{used:?}");
        assert!(used.machine_us >= 10_000.0, "{used:?}");
    }

    #[test]
    fn a_listener_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(listening_process(port).unwrap(), Some(std::process::id()));
        drop(listener);
        assert_eq!(listening_process(port).unwrap(), None);
    }
}
