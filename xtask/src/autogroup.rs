//! The kernel's autogroups (sched(7)), off while tests run.
//!
//! They share the processors among sessions instead of among threads, and Kafka has a session of its
//! own. The broker thread of an idempotent producer of librdkafka 2.12 turns without a pause for as long
//! as a batch is unanswered and another one waits; the relay's do not any more (`kafka::ffi::poll`), but
//! those of servers in Python do. With as many of these as there are processors, the broker and even the
//! kernel's own threads were seen to get no processor for seconds: a machine that seems to stand still
//! (the test `rebalance` took 75 to 90 s). Without autogroups none of them waited for 0.4 s (22 s).

use std::{
    fs,
    io::Write as _,
    os::unix::process::CommandExt as _,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result};

const SWITCH: &str = "/proc/sys/kernel/sched_autogroup_enabled";

/// Waits for the end of its input, and puts the switch back: also if this process is killed.
const PUT_BACK: &str = "trap '' HUP; read -r line; echo 1 > \"$0\"";

/// Autogroups are off for as long as this lives. They come back when the process ends in any way.
#[derive(Debug)]
pub(crate) struct Off(Option<Child>);

impl Off {
    /// Turns them off, if they are on and this may be done.
    pub(crate) fn new() -> Result<Self> {
        let is_on = fs::read_to_string(SWITCH).is_ok_and(|value| value.trim() == "1");
        if !is_on || fs::OpenOptions::new().write(true).open(SWITCH).is_err() {
            return Ok(Self(None));
        }
        let mut shell = Command::new("sh");
        // Ctrl-C at the terminal is not for it.
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
            // It has a line to read, or it has ended.
            let _ = waiter.stdin.take().map(|mut input| input.write_all(b"\n"));
            let _ = waiter.wait();
        }
    }
}
