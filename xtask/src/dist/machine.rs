//! A minimal Debian that boots in a container: systemd as its first process, file system, processes and mounts of
//! its own; devices and addresses are those of the network namespace that it is started in.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::{paths, process};

/// Beside what the package depends on.
const FIRST_PROCESS: &str = "systemd";
const OS_RELEASE: &str = "/etc/os-release";
const PATIENCE: Duration = Duration::from_mins(1);
const LOOK: Duration = Duration::from_millis(100);

/// What the relay needs that systemd-nspawn(1) does not give: the BPF file system, and settings of the network.
const OPEN: &str = "mount -t bpf bpf /sys/fs/bpf && mkdir /run/proc && mount -t proc proc /run/proc && \
    mount --bind /run/proc/sys/net /proc/sys/net && umount /run/proc && rmdir /run/proc";

/// Makes the file system's archive, once for each release of Debian and each set of packages that the package
/// depends on: the container has no network to fetch them by.
fn archive(depends: &[String]) -> Result<PathBuf> {
    let release = release()?;
    let included = [&[FIRST_PROCESS.to_owned()], depends].concat();
    let name = format!("{release}-{}", included.join("-"));
    let archive = paths::dist().join(format!("{name}.tar"));
    if archive.is_file() {
        return Ok(archive);
    }
    fs::create_dir_all(paths::dist())?;
    let half = paths::dist().join(format!("{name}.{}.tar", std::process::id()));
    process::step(
        "mmdebstrap: a minimal Debian, 240 MB",
        Command::new("mmdebstrap")
            .args(["--variant=minbase", &format!("--include={}", included.join(",")), &release])
            .arg(&half),
        &paths::setup_log("mmdebstrap"),
    )?;
    fs::rename(&half, &archive)?;
    Ok(archive)
}

/// The host's own release, whose libraries the relay is linked to (os-release(5)).
fn release() -> Result<String> {
    let text =
        fs::read_to_string(OS_RELEASE).with_context(|| format!("cannot read {OS_RELEASE}"))?;
    let names = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let release = names.with_context(|| format!("{OS_RELEASE} has no VERSION_CODENAME"))?;
    Ok(release.trim_matches('"').to_owned())
}

/// The container. Ended and removed when this is dropped.
#[derive(Debug)]
pub(super) struct Machine {
    root: PathBuf,
    container: Child,
    leader: String,
}

impl Machine {
    /// Boots it in a network namespace, with these packages.
    pub(super) fn boot(namespace: &Path, depends: &[String]) -> Result<Self> {
        let root = paths::dist().join("root");
        let archive = archive(depends)?;
        remove(&root)?;
        fs::create_dir_all(&root)?;
        process::capture(Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(&root))?;
        let console = File::create(paths::dist().join("console.log"))?;
        let mut net = std::ffi::OsString::from("--net=");
        net.push(namespace);
        let container = Command::new("nsenter")
            .arg(net)
            .args(["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--boot"])
            .args([
                "--capability=all",
                "--system-call-filter=bpf perf_event_open",
                "--bind=/dev/fuse",
            ])
            .arg("--directory")
            .arg(&root)
            .stdin(Stdio::null())
            .stdout(console.try_clone()?)
            .stderr(console)
            .spawn()
            .context("cannot start systemd-nspawn")?;
        let mut machine = Self { root, container, leader: String::new() };
        machine.wait("the container to boot", |machine| {
            if let Some(status) = machine.container.try_wait()? {
                bail!("systemd-nspawn has ended ({status}); see target/dist/console.log");
            }
            let own = machine.container.id();
            let children = fs::read_to_string(format!("/proc/{own}/task/{own}/children"))?;
            children.trim().clone_into(&mut machine.leader);
            let state = machine.run("systemctl is-system-running || true").unwrap_or_default();
            Ok(["running", "degraded"].contains(&state.as_str()))
        })?;
        machine.run(OPEN)?;
        Ok(machine)
    }

    /// A path of its file system, from outside.
    pub(super) fn path(&self, inside: &str) -> PathBuf {
        self.root.join(inside.trim_start_matches('/'))
    }

    /// Runs a shell's command line inside, and gives what it writes.
    pub(super) fn run(&self, line: &str) -> Result<String> {
        process::capture(
            Command::new("nsenter")
                .args(["-t", &self.leader, "-m", "-u", "-i", "-p", "-n", "-C"])
                .args([
                    "env",
                    "-i",
                    "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
                    "DEBIAN_FRONTEND=noninteractive",
                ])
                .args(["timeout", "120", "sh", "-c", line]),
        )
    }

    /// Waits for a condition.
    pub(super) fn wait(
        &mut self,
        what: &str,
        mut is_so: impl FnMut(&mut Self) -> Result<bool>,
    ) -> Result<()> {
        let begun = Instant::now();
        while !is_so(self)? {
            if begun.elapsed() > PATIENCE {
                bail!("waited {PATIENCE:?} in vain for {what}");
            }
            thread::sleep(LOOK);
        }
        Ok(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It powers the container off (systemd-nspawn(1), `--kill-signal`).
        if let Some(own) = i32::try_from(self.container.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(own, Signal::TERM);
        }
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE && matches!(self.container.try_wait(), Ok(None)) {
            thread::sleep(LOOK);
        }
        let _ = self.container.kill();
        let _ = self.container.wait();
        if let Err(error) = remove(&self.root) {
            process::say(format!("{error:#}"));
        }
    }
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}
