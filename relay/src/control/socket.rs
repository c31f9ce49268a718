//! The relay's sockets on its host. Who connects to the control socket gets the counters as one JSON
//! document; [`super::orders`] has the other one.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{UnixListener, UnixStream};

use crate::config::Config;
use crate::worker::Orders;

use super::asking::{ANSWER_TIMEOUT, connect, read_answer};
use super::orders;
use super::snapshot::Observer;
use super::tuning::Tuner;
use super::{RunError, Snapshot};

/// Pause after a failed accept.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Listens at a path, for whoever has the lock: what is left over there is a killed relay's.
fn listen(path: &Path) -> Result<UnixListener, RunError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(RunError::io(format!("remove {}", path.display()))(error));
        }
        _ => {}
    }
    UnixListener::bind(path).map_err(RunError::io(format!("listen on {}", path.display())))
}

/// The next client of a socket.
async fn accept(listener: &UnixListener, name: &str) -> UnixStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            // For example while too many files are open. Clients wait meanwhile.
            Err(error) => {
                tracing::warn!(
                    %error, "the {name} socket cannot accept connections now; retrying"
                );
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

/// Locks the file at a path. Creates it if there is none.
fn lock(path: &Path) -> Result<File, RunError> {
    let opening = || RunError::io(format!("open {}", path.display()));
    loop {
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)
            .map_err(opening())?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(RunError::Running { lock: path.to_owned() });
            }
            Err(error) => return Err(opening()(error.into())),
        }
        if is_at(&file, path).map_err(opening())? {
            return Ok(file);
        }
    }
}

/// True if a file is the one at a path. A relay removes its own file when it ends; a process that had opened
/// that file before would hold a lock that nobody else can see.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let own = file.metadata()?;
    match std::fs::metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (own.dev(), own.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// The relay's claim to its instance, and its sockets. All end with the process, in whatever way that ends.
pub(super) struct ControlSocket {
    path: PathBuf,
    listeners: Option<(UnixListener, UnixListener)>,
    _lock: File,
}

impl ControlSocket {
    /// Claims the instance. Fails if another relay of the same instance runs on this host.
    pub(super) fn claim(config: &Config) -> Result<Self, RunError> {
        let directory = config.create_run_directory().map_err(|source| {
            let hint = match source.kind() {
                io::ErrorKind::PermissionDenied => {
                    " (run it as root, or set XDG_RUNTIME_DIR to a directory of your own)"
                }
                _ => "",
            };
            let directory = config.run_directory();
            RunError::io(format!("create {}{hint}", directory.display()))(source)
        })?;
        let lock_path = directory.join("relay.lock");
        let lock = lock(&lock_path)?;
        let path = config.control_socket();
        let listeners = (listen(&path)?, listen(&orders::socket(config))?);
        Ok(Self { path, listeners: Some(listeners), _lock: lock })
    }

    /// Begins to answer.
    pub(super) fn serve(&mut self, observer: Observer, orders: Orders, tuner: Tuner) {
        let (listener, for_orders) = self.listeners.take().expect("served once");
        tokio::spawn(async move {
            loop {
                let stream = accept(&for_orders, "orders").await;
                // Does not wait for a client that says nothing.
                tokio::spawn(tokio::time::timeout(
                    ANSWER_TIMEOUT,
                    orders::answer(stream, orders.clone(), tuner.clone()),
                ));
            }
        });
        tokio::spawn(async move {
            loop {
                let mut stream = accept(&listener, "control").await;
                let snapshot = serde_json::to_vec(&observer.snapshot()).unwrap_or_default();
                // Does not wait for a client that does not read.
                tokio::spawn(async move {
                    let _ = tokio::time::timeout(ANSWER_TIMEOUT, stream.write_all(&snapshot)).await;
                });
            }
        });
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
        let _ = std::fs::remove_file(self.path.with_file_name(orders::SOCKET));
        let _ = std::fs::remove_file(self.path.with_file_name("relay.lock"));
        // Fails if the directory is not empty: a loaded gateway keeps its state there.
        if let Some(directory) = self.path.parent() {
            let _ = std::fs::remove_dir(directory);
        }
    }
}

/// Asks a running relay for its counters. `None` if no relay runs.
pub fn read_snapshot(config: &Config) -> io::Result<Option<Snapshot>> {
    let Some(mut stream) = connect(&config.control_socket())? else { return Ok(None) };
    serde_json::from_slice(&read_answer(&mut stream)?).map(Some).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_on_a_file_that_was_taken_away_is_none() {
        let name = format!("millrace-lock-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        // Opened before the relay that had it takes it away, and locked behind that.
        let opened = File::create(&path).expect("a file");
        assert!(is_at(&opened, &path).expect("it is there"));
        std::fs::remove_file(&path).expect("it was there");
        assert!(!is_at(&opened, &path).expect("that is no error"));
        let next = lock(&path).expect("nobody has it");
        assert!(is_at(&next, &path).expect("it is there"));
        assert!(!is_at(&opened, &path).expect("it is another one"));
        assert!(matches!(lock(&path), Err(RunError::Running { .. })), "one at a time");
        std::fs::remove_file(&path).expect("it was there");
    }
}
