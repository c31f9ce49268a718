//! Runs other programs: with a log and progress messages, or in place of this process.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

/// Interval of the progress messages of a quiet step.
const TICK: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);
const TAIL_LINES: usize = 25;

/// Prints a message for the operator. xtask's own output goes to standard error; standard output belongs to
/// the program that it runs, whose last line may be JSON.
pub(crate) fn say(message: impl AsRef<str>) {
    eprintln!("{}", message.as_ref());
}

/// Runs a step that prints too much to show. Its output goes to `log`. The operator sees its name, the last
/// line of the log every ten seconds, and its duration.
pub(crate) fn step(what: &str, command: &mut Command, log: &Path) -> Result<()> {
    let output = create(log)?;
    let started = Instant::now();
    say(format!("  {what} …"));
    let mut child = command
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .spawn()
        .with_context(|| cannot_start(command))?;
    let mut next_tick = started + TICK;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() >= next_tick {
            next_tick += TICK;
            let last = tail(log, 1);
            say(format!("    {:>4} s  {}", started.elapsed().as_secs(), shorten(last.trim(), 84)));
        }
        std::thread::sleep(POLL);
    };
    if !status.success() {
        bail!(
            "{what}: `{}` failed ({status}). The end of {}:\n{}",
            shown(command),
            log.display(),
            tail(log, TAIL_LINES)
        );
    }
    say(format!("  {what}: done in {:.1} s", started.elapsed().as_secs_f64()));
    Ok(())
}

/// Runs a program and shows its output at once, all of it on standard error.
pub(crate) fn visible(command: &mut Command) -> Result<()> {
    command.stdin(Stdio::null()).stdout(io::stderr());
    check(command)
}

/// Runs a program with this process's standard streams. Fails if the program does.
pub(crate) fn check(command: &mut Command) -> Result<()> {
    let status = status(command)?;
    if !status.success() {
        bail!("`{}` failed ({status})", shown(command));
    }
    Ok(())
}

/// Runs a program with this process's standard streams.
pub(crate) fn status(command: &mut Command) -> Result<ExitStatus> {
    io::stdout().flush()?;
    command.status().with_context(|| cannot_start(command))
}

/// Replaces this process by the program, so that signals, terminal and exit code are its own.
pub(crate) fn replace(command: &mut Command) -> Result<()> {
    io::stdout().flush()?;
    let error = command.exec();
    Err(error).with_context(|| cannot_start(command))
}

/// The standard output of a program, without surrounding white space. Fails if the program cannot be
/// started, or fails.
pub(crate) fn capture(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| cannot_start(command))?;
    if !output.status.success() {
        bail!(
            "`{}` failed ({}): {}",
            shown(command),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The first file of this name on `PATH`, or in system folders that a user's `PATH` may lack.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

/// The command as a user would type it.
pub(crate) fn shown(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|part| part.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

/// The last lines of a text file; empty if it can't be read.
pub(crate) fn tail(file: &Path, lines: usize) -> String {
    let bytes = fs::read(file).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<_> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Whether this process has the rights of root.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn create(log: &Path) -> Result<File> {
    if let Some(folder) = log.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    File::create(log).with_context(|| format!("cannot write {}", log.display()))
}

fn cannot_start(command: &Command) -> String {
    format!("cannot start `{}`", shown(command))
}

fn shorten(text: &str, max: usize) -> String {
    if text.chars().count() <= max {
        text.to_owned()
    } else {
        text.chars().take(max - 1).chain(['…']).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_step_shows_the_end_of_its_log() {
        let log = std::env::temp_dir().join(format!("xtask-step-{}.log", std::process::id()));
        let error =
            step("probe", Command::new("sh").args(["-c", "echo why; exit 3"]), &log).unwrap_err();
        fs::remove_file(&log).unwrap();
        assert!(error.to_string().contains("exit status: 3"), "{error}");
        assert!(error.to_string().ends_with("why"), "{error}");
    }

    #[test]
    fn long_lines_are_shortened_by_characters() {
        assert_eq!(shorten("äöüß", 4), "äöüß");
        assert_eq!(shorten("äöüßx", 4), "äöü…");
    }
}
