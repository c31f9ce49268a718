//! What an instance leaves on the host outside the network: its state file, and the bpffs mount.

use std::collections::BTreeMap;
use std::fs::{DirEntry, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::statfs;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::gateway::rules::in_force::InForce;
use crate::gateway::rules::place::DeviceNumbers;

use super::error::GatewayError;
use super::host::Report;
use super::known::Bpffs;

/// Where every instance has its directory.
pub(super) const RUN: &str = "/run/millrace";
/// An instance's state there.
const STATE: &str = "gateway.json";
/// Where the kernel's BPF file system belongs.
const BPFFS: &str = "/sys/fs/bpf";
/// Present while the bpffs mount is ours to undo: shared, for instances come and go in any order.
const MOUNTED: &str = "/run/millrace/bpffs-mounted";
/// What the kernel itself puts into a fresh bpffs.
const BY_KERNEL: [&str; 2] = ["maps.debug", "progs.debug"];
/// `BPF_FS_MAGIC` of `linux/magic.h`.
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

/// What `load` has made and `unload` removes.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct State {
    pub instance: String,
    pub devices: Vec<String>,
    /// The numbers by which the programs know the devices, in the same order. None: they count from 1.
    #[serde(default)]
    pub numbers: Vec<u16>,
    pub pin_directory: PathBuf,
}

impl State {
    pub(super) fn of(config: &Config) -> Self {
        Self {
            instance: config.gateway.instance.clone(),
            devices: config.gateway.devices.clone(),
            numbers: (1..).take(config.gateway.devices.len()).collect(),
            pin_directory: config.pin_directory(),
        }
    }

    /// The same of an instance that is loaded: rules know devices by their numbers, so those that stay keep
    /// theirs.
    pub(super) fn following(mut self, former: &Self) -> Self {
        let kept = |name: &String| former.numbered().find(|(_, it)| *it == name).map(|(it, _)| it);
        let taken: Vec<u16> = self.devices.iter().filter_map(kept).collect();
        let mut free = (1..).filter(|number| !taken.contains(number));
        let numbers = self.devices.iter().map(|name| kept(name).or_else(|| free.next()));
        self.numbers = numbers.flatten().collect();
        self
    }

    /// The devices, each with the number by which the programs know it.
    pub(super) fn numbered(&self) -> impl Iterator<Item = (u16, &String)> {
        let number =
            |index: u16| self.numbers.get(usize::from(index)).copied().unwrap_or(index + 1);
        (0..).map(number).zip(&self.devices)
    }

    /// The same, for rules.
    pub(super) fn device_numbers(&self) -> DeviceNumbers {
        DeviceNumbers::loaded(self.numbered().map(|(number, name)| (number, name.clone())))
    }

    fn path(config: &Config) -> PathBuf {
        config.run_directory().join(STATE)
    }

    /// Reads the state of a loaded instance; `None` if it is not loaded.
    pub(super) fn read(config: &Config) -> Result<Option<Self>, GatewayError> {
        read_json(&Self::path(config))
    }

    /// Those of all loaded instances, as far as they can be read.
    pub(super) fn all() -> Vec<Self> {
        let instances = std::fs::read_dir(RUN).into_iter().flatten().flatten();
        let state = |entry: DirEntry| read_json(&entry.path().join(STATE)).ok().flatten();
        let mut all: Vec<Self> = instances.filter_map(state).collect();
        all.sort_by(|one, other| one.instance.cmp(&other.instance));
        all
    }

    /// [`Self::read`] of an instance that should be loaded.
    pub(super) fn of_loaded(config: &Config) -> Result<Self, GatewayError> {
        let instance = || config.gateway.instance.clone();
        Self::read(config)?.ok_or_else(|| GatewayError::NotLoaded { instance: instance() })
    }

    /// Writes the state before anything else is changed, so that even a load that is killed can be
    /// undone.
    pub(super) fn create(&self, config: &Config) -> Result<(), GatewayError> {
        config
            .create_run_directory()
            .map_err(GatewayError::io(format!("create {}", config.run_directory().display())))?;
        Draft::write(Self::path(config), self)?.keep()
    }

    /// Removes the instance's run-time directory, unless a relay still answers there.
    pub(super) fn remove(config: &Config, report: Report<'_>) -> Result<(), GatewayError> {
        let directory = config.run_directory();
        if std::os::unix::net::UnixStream::connect(config.control_socket()).is_ok() {
            report("a relay is still running, and its clients have lost their path: stop it too");
            return ignore_missing(std::fs::remove_file(Self::path(config)))
                .map_err(GatewayError::io("remove the state file"));
        }
        ignore_missing(std::fs::remove_dir_all(&directory))
            .map_err(GatewayError::io(format!("remove {}", directory.display())))
    }
}

fn rules_path(config: &Config) -> PathBuf {
    config.run_directory().join("rules.json")
}

/// A setting of the relay namespace that was put into force.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Setting {
    /// What the namespace had before.
    pub before: String,
    /// As the configuration had it.
    pub wanted: String,
    /// What the kernel made of that; it writes some values otherwise.
    pub made: String,
}

/// Those of an instance, by name.
pub(super) type Settings = BTreeMap<String, Setting>;

fn sysctls_path(config: &Config) -> PathBuf {
    config.run_directory().join("sysctls.json")
}

/// The settings of the relay namespace that were put into force last.
pub(super) fn read_sysctls(config: &Config) -> Result<Settings, GatewayError> {
    Ok(read_json(&sysctls_path(config))?.unwrap_or_default())
}

/// Writes down settings of the relay namespace.
pub(super) fn draft_sysctls(config: &Config, settings: &Settings) -> Result<Draft, GatewayError> {
    Draft::write(sysctls_path(config), settings)
}

/// The rules that were put into force last.
pub(super) fn read_rules(config: &Config) -> Result<InForce, GatewayError> {
    let path = rules_path(config);
    read_json(&path)?
        .ok_or_else(|| GatewayError::State { path, problem: "it is missing".to_owned() })
}

/// Whether a load has come to its end, where it writes the rules down.
pub(super) fn is_complete(config: &Config) -> bool {
    rules_path(config).exists()
}

/// Writes rules down that are about to be put into force.
pub(super) fn draft_rules(config: &Config, rules: &InForce) -> Result<Draft, GatewayError> {
    Draft::write(rules_path(config), rules)
}

/// Whether rules were written down and then neither put into force nor discarded, as far as anybody
/// knows.
pub(super) fn has_draft(config: &Config) -> bool {
    Draft::path_of(&rules_path(config)).exists()
}

/// Reads one of our files; `None` if there is none.
fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>, GatewayError> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(GatewayError::io(format!("read {}", path.display()))(error)),
    };
    serde_json::from_str(&text)
        .map(Some)
        .map_err(|error| GatewayError::State { path: path.to_owned(), problem: error.to_string() })
}

/// A file that is written whole and takes its place later, so that it is never read half-written
/// and writing it fails before anything depends on it.
pub(super) struct Draft {
    draft: PathBuf,
    path: PathBuf,
}

impl Draft {
    fn write(path: PathBuf, value: &impl Serialize) -> Result<Self, GatewayError> {
        let mut text = serde_json::to_string_pretty(value).expect("strings and paths");
        text.push('\n');
        let draft = Self::path_of(&path);
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        options
            .open(&draft)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .map_err(GatewayError::io(format!("write {}", draft.display())))?;
        Ok(Self { draft, path })
    }

    fn path_of(path: &Path) -> PathBuf {
        path.with_extension("json.new")
    }

    /// Removes it.
    pub(super) fn discard(&self) -> Result<(), GatewayError> {
        std::fs::remove_file(&self.draft)
            .map_err(GatewayError::io(format!("remove {}", self.draft.display())))
    }

    /// Puts it in its place.
    pub(super) fn keep(&self) -> Result<(), GatewayError> {
        std::fs::rename(&self.draft, &self.path)
            .map_err(GatewayError::io(format!("write {}", self.path.display())))
    }
}

/// Makes sure that there is a bpffs to pin to.
pub(super) fn mount_bpffs(report: Report<'_>) -> Result<(), GatewayError> {
    if is_bpffs() {
        return Ok(());
    }
    report(&format!("mount -t bpf bpf {BPFFS}"));
    File::create(MOUNTED).map_err(GatewayError::io(format!("write {MOUNTED}")))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::RELATIME;
    mount("bpf", BPFFS, "bpf", flags, c"mode=0700").map_err(|error| {
        // Nothing was mounted, so there is nothing to undo.
        let _ = std::fs::remove_file(MOUNTED);
        GatewayError::NoBpffs { path: BPFFS, source: error.into() }
    })
}

/// Undoes [`mount_bpffs`] when nobody has anything there any more.
pub(super) fn unmount_bpffs(report: Report<'_>) -> Result<(), GatewayError> {
    if !Path::new(MOUNTED).exists() {
        return Ok(());
    }
    if is_bpffs() {
        let in_use = std::fs::read_dir(BPFFS)
            .map_err(GatewayError::io(format!("read {BPFFS}")))?
            .flatten()
            .any(|entry| !BY_KERNEL.iter().any(|name| entry.file_name() == *name));
        if in_use {
            return Ok(());
        }
        report(&format!("umount {BPFFS}"));
        unmount(BPFFS, UnmountFlags::empty())
            .map_err(|error| GatewayError::io(format!("unmount {BPFFS}"))(error.into()))?;
    }
    ignore_missing(std::fs::remove_file(MOUNTED))
        .map_err(GatewayError::io(format!("remove {MOUNTED}")))
}

/// Whether there is a bpffs, or can be.
pub(super) fn bpffs() -> Bpffs {
    if is_bpffs() {
        return Bpffs::Usable;
    }
    if !Path::new(BPFFS).is_dir() {
        return Bpffs::NoMountPoint;
    }
    // Where the list cannot be read, mounting will tell.
    let kinds = std::fs::read_to_string("/proc/filesystems").unwrap_or_else(|_| "bpf".to_owned());
    let known = kinds.lines().any(|line| line.split_whitespace().next_back() == Some("bpf"));
    if known { Bpffs::Usable } else { Bpffs::Unknown }
}

fn is_bpffs() -> bool {
    statfs(BPFFS).is_ok_and(|there| there.f_type == BPF_FS_MAGIC)
}

/// What is gone already need not be removed.
pub(super) fn ignore_missing(result: std::io::Result<()>) -> std::io::Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
