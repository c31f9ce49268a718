//! One process at a time changes what is loaded.

use std::fs::{DirBuilder, File, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock, major, minor};

use super::error::GatewayError;
use super::state::RUN;

/// How long another process may hold the lock: longer than a `load` takes on a busy host.
const PATIENCE: Duration = Duration::from_secs(30);
const MOMENT: Duration = Duration::from_millis(500);
/// From then on the log says who is waited for.
const SILENCE: Duration = Duration::from_secs(1);
const INTERVAL: Duration = Duration::from_millis(10);

/// Held while the host is changed: one `load` or `unload` at a time.
pub(super) struct Lock {
    _directory: File,
}

impl Lock {
    pub(super) fn take() -> Result<Self, GatewayError> {
        Self::take_within(PATIENCE)
    }

    /// Takes it unless somebody has it for longer than a moment: whoever writes into a file waits meanwhile, and
    /// no signal ends that.
    pub(super) fn take_soon() -> Result<Self, GatewayError> {
        Self::take_within(MOMENT)
    }

    /// Takes it if nobody has it.
    pub(super) fn try_take() -> Result<Self, GatewayError> {
        Self::take_within(Duration::ZERO)
    }

    fn take_within(patience: Duration) -> Result<Self, GatewayError> {
        let start = Instant::now();
        let mut told = false;
        loop {
            let directory = open().map_err(GatewayError::io(format!("lock {RUN}")))?;
            match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
                // The last `unload` removes the directory: a lock on a removed one excludes nobody.
                Ok(()) if is_there(&directory) => return Ok(Self { _directory: directory }),
                Ok(()) => continue,
                Err(rustix::io::Errno::WOULDBLOCK) => {}
                Err(error) => return Err(GatewayError::io(format!("lock {RUN}"))(error.into())),
            }
            let waited = start.elapsed();
            if waited >= patience {
                return Err(GatewayError::Locked { holder: holder(&directory) });
            }
            if waited >= SILENCE && !told {
                told = true;
                tracing::warn!(
                    "{RUN} is locked by {}; waiting for at most {} s",
                    holder(&directory),
                    patience.as_secs()
                );
            }
            std::thread::sleep(INTERVAL);
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Fails while another instance has its directory there, which is as it should be.
        let _ = std::fs::remove_dir(RUN);
    }
}

/// Only root may open it: whoever can open a directory can also lock it.
fn open() -> std::io::Result<File> {
    loop {
        DirBuilder::new().recursive(true).mode(0o700).create(RUN)?;
        match File::open(RUN) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Ok(directory) => {
                if directory.metadata()?.mode() & 0o077 != 0 {
                    directory.set_permissions(Permissions::from_mode(0o700))?;
                }
                return Ok(directory);
            }
            Err(error) => return Err(error),
        }
    }
}

fn is_there(directory: &File) -> bool {
    let inode = |metadata: std::io::Result<std::fs::Metadata>| metadata.map(|it| it.ino()).ok();
    inode(directory.metadata()) == inode(std::fs::metadata(RUN))
}

/// Who has locked it, as `/proc/locks` knows (proc(5)).
fn holder(directory: &File) -> String {
    let locks = std::fs::read_to_string("/proc/locks").unwrap_or_default();
    let process = directory.metadata().ok().and_then(|there| {
        let device = there.dev();
        process_of(&locks, (major(device), minor(device)), there.ino())
    });
    let Some(process) = process else {
        return "a process that cannot be seen from here".to_owned();
    };
    let name = std::fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
    match name.trim() {
        "" => format!("process {process}"),
        name => format!("process {process} (`{name}`)"),
    }
}

/// The process that has a lock of flock(2) on a file, in lines such as
/// `2: FLOCK  ADVISORY  WRITE 4711 00:19:1234 0 EOF`.
fn process_of(locks: &str, (major, minor): (u32, u32), inode: u64) -> Option<u32> {
    let file = format!("{major:02x}:{minor:02x}:{inode}");
    locks.lines().find_map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        match words[..] {
            [_, "FLOCK", _, _, process, at, ..] if at == file => process.parse().ok(),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_of_a_lock_is_found() {
        let locks = "1: POSIX  ADVISORY  READ 7 00:19:12 128 128\n\
                     2: FLOCK  ADVISORY  WRITE 4711 00:19:12 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 12 00:19:12 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 9 fe:01:12 0 EOF\n";
        assert_eq!(process_of(locks, (0, 0x19), 12), Some(4711));
        assert_eq!(process_of(locks, (0xfe, 1), 12), Some(9));
        assert_eq!(process_of(locks, (0, 0x19), 13), None);
    }

    /// A `relay unload` that waited for such a process for ever said nothing.
    #[test]
    fn who_holds_the_lock_is_said() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED who_holds_the_lock_is_said: needs root (/run)");
            return;
        }
        let held = Lock::take().unwrap();
        let error = Lock::take_within(Duration::from_millis(30)).err().unwrap().to_string();
        let us = format!("process {} (`", std::process::id());
        assert!(error.contains(&us), "{error}");
        assert_eq!(std::fs::metadata(RUN).unwrap().mode() & 0o777, 0o700);
        drop(held);
        drop(Lock::take_within(PATIENCE).unwrap());
    }
}
