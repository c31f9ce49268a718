//! Processor time, of a process and of the machine.

use anyhow::{Context, Result};
use millrace_relay::control;
use serde::Serialize;

/// What a clock tick of `/proc` is worth (`sysconf(_SC_CLK_TCK)` is 100 on every Linux we run on).
const TICK_US: u64 = 10_000;

/// Microseconds that all processors together have had nothing to do, in steps of 10 ms, or been
/// taken away by a hypervisor. A tickless kernel measures idling; what [`CpuTime::of_machine`]
/// counts are samples taken at ticks, which miss the timers that run at ticks.
pub fn idle_us() -> Result<u64> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().context("an empty /proc/stat")?;
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let ticks = |field: usize| -> Result<u64> {
        fields.get(field).and_then(|ticks| ticks.parse().ok()).context("a short first line")
    };
    // The first is `cpu`; idle, waiting for a disk, stolen.
    Ok((ticks(4)? + ticks(5)? + ticks(8)?) * TICK_US)
}

/// Processor time in microseconds, in steps of 10 ms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CpuTime {
    /// In user space.
    pub user_us: u64,
    /// In the kernel, interrupts among it.
    pub system_us: u64,
}

impl CpuTime {
    /// Of a process with all its threads so far.
    pub fn of_process(id: u32) -> Result<Self> {
        let time = control::CpuTime::of_process(id);
        let time = time.with_context(|| format!("process {id} is gone"))?;
        Ok(Self { user_us: time.user, system_us: time.system })
    }

    /// Of all processors since the start of the machine; `proc_stat(5)`. Time that a hypervisor
    /// gave to others is left out.
    pub fn of_machine() -> Result<Self> {
        let stat = std::fs::read_to_string("/proc/stat")?;
        let line = stat.lines().next().context("an empty /proc/stat")?;
        let ticks: Vec<u64> =
            line.split_ascii_whitespace().skip(1).map(str::parse).collect::<Result<_, _>>()?;
        let [user, nice, system, _idle, _iowait, irq, softirq, ..] = ticks[..] else {
            anyhow::bail!("/proc/stat has a short first line: {line}");
        };
        Ok(Self { user_us: (user + nice) * TICK_US, system_us: (system + irq + softirq) * TICK_US })
    }

    /// What has been used since an earlier reading.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Self {
        Self {
            user_us: self.user_us.saturating_sub(earlier.user_us),
            system_us: self.system_us.saturating_sub(earlier.system_us),
        }
    }

    /// User and system together.
    pub const fn total_us(self) -> u64 {
        self.user_us + self.system_us
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn a_busy_process_uses_time_and_the_machine_no_less() {
        let (own, machine) =
            (CpuTime::of_process(std::process::id()).unwrap(), CpuTime::of_machine().unwrap());
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut used = CpuTime::default();
        while used.total_us() < 100_000 && Instant::now() < deadline {
            used = CpuTime::of_process(std::process::id()).unwrap().since(own);
        }
        assert!(used.total_us() >= 100_000, "{used:?}");
        // The two are sampled by different clocks, a few ticks apart.
        let machine = CpuTime::of_machine().unwrap().since(machine);
        assert!(machine.total_us() * 2 >= used.total_us(), "{machine:?} {used:?}");
    }
}
