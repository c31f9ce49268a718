//! Child processes that are watched, and never outlive their owner.

use std::collections::VecDeque;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, WaitIdStatus, kill_process, waitid};

/// Lines of output kept for error messages.
const KEPT_LINES: usize = 400;
/// How long a child and its outputs may take to end after each other.
const END_PATIENCE: Duration = Duration::from_secs(2);
/// How long a child's threads may take to stand still after SIGSTOP.
pub(crate) const STOP_PATIENCE: Duration = Duration::from_secs(20);
/// How often a condition that sends no notice is looked at.
const POLL: Duration = Duration::from_millis(20);

/// A running child. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    stdout: Arc<Output>,
    stderr: Arc<Output>,
}

/// What a finished child has left.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

#[derive(Debug, Default)]
struct Output {
    state: Mutex<(VecDeque<String>, bool)>,
    changed: Condvar,
}

impl Output {
    fn collect(source: impl Read + Send + 'static) -> Arc<Self> {
        let output = Arc::new(Self::default());
        let filled = Arc::clone(&output);
        std::thread::spawn(move || {
            for line in BufReader::new(source).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).into_owned();
                let lines = &mut filled.state.lock().expect("no panic under this lock").0;
                if lines.len() == KEPT_LINES {
                    lines.pop_front();
                }
                lines.push_back(line);
                filled.changed.notify_all();
            }
            filled.state.lock().expect("no panic under this lock").1 = true;
            filled.changed.notify_all();
        });
        output
    }

    /// The first kept line that `wanted` takes; nothing once the output has ended or time is up.
    fn wait_line(&self, deadline: Instant, wanted: impl Fn(&str) -> bool) -> Option<String> {
        let mut state = self.state.lock().expect("no panic under this lock");
        loop {
            if let Some(line) = state.0.iter().find(|line| wanted(line)) {
                return Some(line.clone());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if state.1 || left.is_zero() {
                return None;
            }
            state = self.changed.wait_timeout(state, left).expect("no panic under this lock").0;
        }
    }

    /// Everything, after the output has ended.
    fn text_at_end(&self) -> String {
        let deadline = Instant::now() + END_PATIENCE;
        self.wait_line(deadline, |_| false);
        self.text()
    }

    fn text(&self) -> String {
        let state = self.state.lock().expect("no panic under this lock");
        state.0.iter().cloned().collect::<Vec<_>>().join("\n")
    }
}

impl Process {
    /// Starts `command` in a process group of its own, so that a Ctrl-C meant for us leaves it to us.
    pub fn spawn(name: &str, command: &mut Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .with_context(|| {
                format!("cannot start {name} ({})", command.get_program().display())
            })?;
        let stdout = Output::collect(child.stdout.take().context("no stdout")?);
        let stderr = Output::collect(child.stderr.take().context("no stderr")?);
        Ok(Self { name: name.to_owned(), child, stdout, stderr })
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the child has printed a line that begins with `start`.
    pub fn wait_line(&self, start: &str, patience: Duration) -> Result<String> {
        let deadline = Instant::now() + patience;
        match self.stdout.wait_line(deadline, |line| line.starts_with(start)) {
            Some(line) => Ok(line),
            None if Instant::now() >= deadline => bail!(
                "{} did not print `{start}…` within {patience:?}; it said:\n{}",
                self.name,
                self.stderr.text()
            ),
            None => bail!(
                "{} ended ({}) and did not print `{start}…`; it said:\n{}",
                self.name,
                self.how_it_ended(),
                self.stderr.text_at_end()
            ),
        }
    }

    /// How a child ended whose output has. It is left to be waited for.
    fn how_it_ended(&self) -> String {
        match self.told(WaitIdOptions::EXITED, END_PATIENCE, "end") {
            Ok(told) => match (told.exit_status(), told.terminating_signal()) {
                (Some(code), _) => format!("exit code {code}"),
                (None, Some(signal)) => format!("signal {signal}"),
                (None, None) => "unknown how".to_owned(),
            },
            Err(_) => "its output only: it still runs".to_owned(),
        }
    }

    /// What the kernel tells the parent of a change of its state (wait(2)), which it may tell again.
    fn told(&self, change: WaitIdOptions, patience: Duration, what: &str) -> Result<WaitIdStatus> {
        let id = WaitId::Pid(Pid::from_child(&self.child));
        let look = change | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        let mut told = None;
        wait_until(patience, &format!("{} to {what}", self.name), || {
            told = waitid(id.clone(), look)?;
            Ok(told.is_some())
        })?;
        told.context("just told")
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Sends a signal; after SIGSTOP, waits until its last thread stands still.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).with_context(|| format!("cannot signal {}", self.name))?;
        if signal == Signal::STOP {
            // The parent is told when the whole process has stopped (signal(7)).
            self.told(WaitIdOptions::STOPPED, STOP_PATIENCE, "stand still")?;
        }
        Ok(())
    }

    /// Waits for the end.
    pub fn wait(mut self, patience: Duration) -> Result<Finished> {
        let mut ended = None;
        wait_until(patience, &format!("{} to end", self.name), || {
            ended = self.child.try_wait()?;
            Ok(ended.is_some())
        })
        .with_context(|| self.stderr.text())?;
        let status = ended.context("ended without a status")?;
        Ok(Finished {
            status,
            stdout: self.stdout.text_at_end(),
            stderr: self.stderr.text_at_end(),
        })
    }

    /// What it has said on standard error.
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            // A stopped process (SIGSTOP) dies of SIGKILL too. Nobody is left to tell of an error.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Runs `command` to its end.
pub fn run(name: &str, command: &mut Command, patience: Duration) -> Result<Finished> {
    Process::spawn(name, command)?.wait(patience)
}

/// Runs `command` to its end and refuses a failure.
pub fn run_ok(name: &str, command: &mut Command, patience: Duration) -> Result<Finished> {
    let finished = run(name, command, patience)?;
    if !finished.status.success() {
        bail!("{name} failed ({}): {}", finished.status, finished.stderr.trim());
    }
    Ok(finished)
}

/// True if no thread of a process goes on after SIGSTOP. The kernel tells one of them, which may have to wait
/// for a processor, and meanwhile the others go on; whose child it is is told when all have stopped.
pub fn stands_still(pid: Pid) -> Result<bool> {
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        // One that has ended since goes on no more.
        let Ok(stat) = fs::read_to_string(thread?.path().join("stat")) else { continue };
        // The state follows the name, which may contain anything (proc_pid_stat(5)).
        let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
        if !matches!(state, Some('T' | 't' | 'Z' | 'X')) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Copies a program that is to be run. Not by this process: the kernel executes nothing that is open for
/// writing (ETXTBSY), and a child that another thread has just made has all that is open here until its
/// `exec`.
pub fn copy_program(from: &Path, to: &Path) -> Result<()> {
    run_ok("cp", Command::new("cp").args(["--preserve=mode"]).args([from, to]), STOP_PATIENCE)
        .map(drop)
}

/// Looks at `condition` until it holds.
pub fn wait_until(
    patience: Duration,
    what: &str,
    mut condition: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let deadline = Instant::now() + patience;
    while !condition()? {
        if Instant::now() >= deadline {
            bail!("waited {patience:?} in vain for {what}");
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}
