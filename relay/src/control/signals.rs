//! The signals that tell a relay to stop, or to read its configuration again.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::RunError;

/// SIGTERM and SIGINT, which stop the relay in good order, and SIGHUP, which has it read its configuration
/// again. If the relay was started under `nohup`, SIGHUP is ignored and stays so.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Option<Signal>,
}

/// What a signal tells a relay to do.
pub(super) enum Told {
    /// To stop; with the signal's name.
    Stop(&'static str),
    /// To read its configuration again.
    Reload,
}

impl Signals {
    /// Begins to watch.
    pub(super) fn watch() -> Result<Self, RunError> {
        let watch = |kind, name| signal(kind).map_err(RunError::io(format!("watch for {name}")));
        let ignored = is_ignored(libc::SIGHUP).map_err(RunError::io("read /proc/self/status"))?;
        Ok(Self {
            terminate: watch(SignalKind::terminate(), "SIGTERM")?,
            interrupt: watch(SignalKind::interrupt(), "SIGINT")?,
            hang_up: if ignored { None } else { Some(watch(SignalKind::hangup(), "SIGHUP")?) },
        })
    }

    /// Waits for a signal.
    pub(super) async fn recv(&mut self) -> Told {
        let hang_up = async {
            match &mut self.hang_up {
                Some(signal) => signal.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.terminate.recv() => Told::Stop("SIGTERM"),
            _ = self.interrupt.recv() => Told::Stop("SIGINT"),
            _ = hang_up => Told::Reload,
        }
    }

    /// Waits for one that stops the relay, and returns its name. It is not reloaded meanwhile: it has read its
    /// configuration just now.
    pub(super) async fn stop(&mut self) -> &'static str {
        loop {
            match self.recv().await {
                Told::Stop(signal) => return signal,
                Told::Reload => {
                    tracing::warn!("SIGHUP: the relay is starting, and does not reload yet");
                }
            }
        }
    }
}

/// True if the process ignores a signal (`proc_pid_status(5)`, `SigIgn`).
fn is_ignored(signal: i32) -> io::Result<bool> {
    Ok(ignores(&std::fs::read_to_string("/proc/self/status")?, signal))
}

fn ignores(status: &str, signal: i32) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.unwrap_or_default() >> (signal - 1) & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ignored_signal_is_seen_in_the_mask() {
        let status = "Name:\trelay\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\n";
        assert!(ignores(status, libc::SIGHUP) && ignores(status, libc::SIGPIPE));
        assert!(!ignores(status, libc::SIGTERM));
        assert!(!ignores("Name:\trelay\n", libc::SIGHUP), "not told");
    }
}
