//! A run of QEMU, from its start to its end.

use std::{
    io::{BufRead as _, BufReader, Read},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::kernel::Kernel;
use crate::process;

const PROCESSORS: &str = "2";
/// Software emulation, which works the same everywhere, also inside another virtual machine. All processors
/// share one thread: with a thread for each, one may run code that another is patching (the kernel's static
/// keys), which QEMU 7.2 sometimes gets wrong.
const ACCELERATION: &str = "tcg,thread=single";
/// Everything that QEMU can emulate except one instruction: QEMU 7.2 leaves garbage in the flags of
/// `cmpxchg16b`, and an interrupt right after it causes a double fault in the guest. Without the feature
/// the kernel's allocator does not use the instruction.
const CPU: &str = "max,cx16=off";
/// The file system is in memory twice while it is unpacked. The flow maps take 100 MB.
const MEMORY_MIB: &str = "1024";
/// Number of the console's last lines that a failure shows.
const CONSOLE_LINES: usize = 30;
/// The guest ends itself after its limit. The machine may take this much longer.
const GRACE: Duration = Duration::from_secs(20);

/// Boots a kernel, and reports every check. Fails unless all of them have passed.
pub(super) fn run(
    kernel: &Kernel,
    initramfs: &Path,
    console: &Path,
    limit: Duration,
    on_check: &mut dyn FnMut(&Value),
) -> Result<()> {
    let mut child = Machine::start(kernel, initramfs, console)?;
    let lines = child.lines()?;
    let outcome = listen(&lines, kernel, Instant::now() + limit + GRACE, on_check);
    drop(child);
    outcome.with_context(|| {
        format!(
            "the end of the console, {}:\n{}",
            console.display(),
            process::tail(console, CONSOLE_LINES)
        )
    })
}

/// A QEMU process, ended when this is dropped.
#[derive(Debug)]
struct Machine(Child);

impl Machine {
    fn start(kernel: &Kernel, initramfs: &Path, console: &Path) -> Result<Self> {
        // If this process is killed, so is QEMU.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "qemu-system-x86_64"])
            .args(["-accel", ACCELERATION, "-cpu", CPU])
            .args(["-smp", PROCESSORS, "-m", MEMORY_MIB])
            .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"])
            .arg("-kernel")
            .arg(&kernel.image)
            .arg("-initrd")
            .arg(initramfs)
            // A panic ends the machine at once, since it may not reboot.
            .args(["-append", "console=ttyS0 panic=-1"])
            .arg("-serial")
            .arg(format!("file:{}", console.display()))
            .args(["-serial", "stdio"]);
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start `{}`", process::shown(&command)))?;
        Ok(Self(child))
    }

    /// The lines from the second serial port.
    fn lines(&mut self) -> Result<Receiver<String>> {
        let output = self.0.stdout.take().context("no pipe to QEMU")?;
        let (sender, lines) = channel();
        std::thread::spawn(move || forward(output, |line| sender.send(line).is_ok()));
        Ok(lines)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Fails if the process has ended, which is fine.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn forward(output: impl Read, mut take: impl FnMut(String) -> bool) {
    for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
        if !take(String::from_utf8_lossy(&line).trim().to_owned()) {
            return;
        }
    }
}

/// Reads the guest's lines until its machine ends.
fn listen(
    lines: &Receiver<String>,
    kernel: &Kernel,
    deadline: Instant,
    on_check: &mut dyn FnMut(&Value),
) -> Result<()> {
    let mut heard = Heard::default();
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => heard.line(&line, on_check)?,
            Err(RecvTimeoutError::Disconnected) => return heard.judge(&kernel.release),
            Err(RecvTimeoutError::Timeout) => {
                bail!("the machine did not end in time and was killed ({heard:?})")
            }
        }
    }
}

/// What the guest has reported so far.
#[derive(Debug, Default)]
struct Heard {
    passed: usize,
    failed: Option<String>,
    /// The kernel that it runs, by its own report.
    release: Option<String>,
    /// The number of passed checks by its own report, once it has finished.
    ended: Option<u64>,
    /// The guest's exit, as `init` reports it.
    exit: Option<(i64, String)>,
}

impl Heard {
    fn line(&mut self, line: &str, on_check: &mut dyn FnMut(&Value)) -> Result<()> {
        if line.is_empty() {
            return Ok(());
        }
        let value: Value = serde_json::from_str(line)
            .with_context(|| format!("cannot parse a line from the guest: {line}"))?;
        if let Some(check) = value["check"].as_str() {
            if value["passed"] == true {
                self.passed += 1;
            } else {
                let detail = value["detail"].as_str().unwrap_or_default();
                self.failed = Some(format!("check `{check}` failed: {detail}"));
            }
            if let Some(release) = value["figures"]["release"].as_str() {
                self.release = Some(release.to_owned());
            }
            on_check(&value);
        } else if value["end"] == true {
            self.ended = value["passed"].as_u64();
        } else if let Some(code) = value["exit"].as_i64() {
            self.exit = Some((code, value["what"].as_str().unwrap_or_default().to_owned()));
        }
        Ok(())
    }

    /// Succeeds only if everything was reported.
    fn judge(&self, release: &str) -> Result<()> {
        if let Some(failed) = &self.failed {
            bail!("{failed}");
        }
        match &self.exit {
            None => bail!("the machine ended before its checks did, after {} of them", self.passed),
            Some((0, _)) => {}
            Some((code, what)) => {
                bail!("`{what}` ended with {code} in the machine, after {} checks", self.passed)
            }
        }
        ensure!(
            self.passed > 0 && self.ended == u64::try_from(self.passed).ok(),
            "the guest counts {:?} checks, but {} were reported",
            self.ended,
            self.passed
        );
        let ran = self.release.as_deref();
        ensure!(ran == Some(release), "kernel {ran:?} was booted, not {release}");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RELEASE: &str = "6.1.0-1-cloud-amd64";
    const KERNEL: &str =
        r#"{"check":"kernel","passed":true,"figures":{"release":"6.1.0-1-cloud-amd64"}}"#;

    fn judged(lines: &[&str]) -> Result<()> {
        let mut heard = Heard::default();
        for line in lines {
            heard.line(line, &mut |_| {})?;
        }
        heard.judge(RELEASE)
    }

    #[test]
    fn only_a_whole_run_under_the_right_kernel_passes() {
        let end = r#"{"end":true,"passed":1}"#;
        let exit = r#"{"exit":0,"what":"guest"}"#;
        judged(&[KERNEL, end, exit]).unwrap();

        let refused = |lines: &[&str]| judged(lines).unwrap_err().to_string();
        assert!(refused(&[]).contains("before its checks did"));
        assert!(refused(&[KERNEL, end]).contains("before its checks did"));
        assert!(refused(&[KERNEL, exit]).contains("counts None"));
        assert!(refused(&[r#"{"end":true,"passed":0}"#, exit]).contains("0 were reported"));
        assert!(refused(&[&KERNEL.replace("6.1.0", "6.2.0"), end, exit]).contains("was booted"));
        assert!(refused(&[r#"{"exit":1,"what":"insmod veth.ko"}"#]).contains("insmod veth.ko"));
        let failed = r#"{"check":"load","passed":false,"detail":"because"}"#;
        assert!(refused(&[KERNEL, failed, exit]).contains("`load` failed: because"));
        assert!(refused(&["[    1.0] Oops"]).contains("cannot parse"));
    }
}
