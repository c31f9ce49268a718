//! The kernel's autogroups (sched(7)), off while tests run.
//!
//! Autogroups share the processors among sessions instead of among threads, and Kafka has its own session.
//! The broker thread of an idempotent producer of librdkafka 2.12 spins as long as a batch is unanswered
//! and another one waits. The relay avoids that (`kafka::ffi::poll`), but servers in Python do not. With
//! one such thread per processor, the broker and even the kernel's threads got no processor for seconds, so
//! that the machine seemed to stand still: the test `rebalance` took 75 to 90 s. Without autogroups none of
//! them waited longer than 0.4 s, and the test took 22 s.

use std::{
    fs,
    io::Write as _,
    os::unix::process::CommandExt as _,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result};

const SWITCH: &str = "/proc/sys/kernel/sched_autogroup_enabled";

/// Waits for the end of its input, then restores the switch. Works even if this process is killed.
const PUT_BACK: &str = "trap '' HUP; read -r line; echo 1 > \"$0\"";

/// Keeps autogroups off while it exists. They come back when the process ends, in whatever way.
#[derive(Debug)]
pub(crate) struct Off(Option<Child>);

impl Off {
    /// Turns them off, if they are on and this process may do that.
    pub(crate) fn new() -> Result<Self> {
        let is_on = fs::read_to_string(SWITCH).is_ok_and(|value| value.trim() == "1");
        if !is_on || fs::OpenOptions::new().write(true).open(SWITCH).is_err() {
            return Ok(Self(None));
        }
        let mut shell = Command::new("sh");
        // Ctrl-C at the terminal must not reach it.
        shell.args(["-c", PUT_BACK, SWITCH]).stdin(Stdio::piped()).process_group(0);
        let waiter = shell.spawn().context("cannot start `sh`")?;
        let off = Self(Some(waiter));
        fs::write(SWITCH, "0\n").with_context(|| format!("cannot write {SWITCH}"))?;
        Ok(off)
    }
}

impl Drop for Off {
    fn drop(&mut self) {
        if let Some(waiter) = &mut self.0 {
            // The shell reads this line, unless it has already ended.
            let _ = waiter.stdin.take().map(|mut input| input.write_all(b"\n"));
            let _ = waiter.wait();
        }
    }
}
