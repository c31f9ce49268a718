//! How a command asks a running relay, whichever of its sockets it is.

use std::io::{self, Read as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Time for a relay to answer.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Connects to a socket of a running relay. `None` if no relay runs.
pub(super) fn connect(path: &Path) -> io::Result<Option<UnixStream>> {
    match UnixStream::connect(path) {
        Ok(stream) => Ok(Some(stream)),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Reads a relay's answer to its end.
pub(super) fn read_answer(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    let mut text = Vec::new();
    stream.read_to_end(&mut text).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => io::Error::new(
            io::ErrorKind::TimedOut,
            format!(
                "it did not answer within {ANSWER_TIMEOUT:?}: it is suspended (`kill -STOP`), or too \
                 busy and needs more processors"
            ),
        ),
        _ => error,
    })?;
    Ok(text)
}
