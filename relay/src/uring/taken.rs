//! What a peer's kernel has acknowledged.

use std::os::fd::{AsFd, AsRawFd};

/// `TCP_CLOSE` of the kernel's `tcp_states.h`: a connection that was reset, or is over.
const CLOSED: u8 = 7;

/// True if the peer's kernel has acknowledged everything that was sent, and has not reset the connection.
/// False if that cannot be determined.
pub(super) fn is_taken(socket: impl AsFd) -> bool {
    let fd = socket.as_fd().as_raw_fd();
    let mut unacknowledged: libc::c_int = 0;
    // SAFETY: the descriptor is open, and SIOCOUTQ (the same number as TIOCOUTQ) writes one int.
    let told = unsafe { libc::ioctl(fd, libc::TIOCOUTQ, &raw mut unacknowledged) };
    if told != 0 || unacknowledged > 0 {
        return false;
    }
    // The state is the first byte of TCP_INFO.
    let (mut state, mut length) = (CLOSED, 1 as libc::socklen_t);
    // SAFETY: the descriptor is open; the kernel writes at most `length` bytes, which `state` has.
    let told = unsafe {
        libc::getsockopt(
            fd,
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut state).cast(),
            &raw mut length,
        )
    };
    told == 0 && state != CLOSED
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::time::{Duration, Instant};

    use super::*;

    /// Both ends of a connection, the accepted one first.
    fn connection() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (listener.accept().unwrap().0, client)
    }

    fn becomes(what: bool, socket: &TcpStream) -> bool {
        let deadline = Instant::now() + Duration::from_secs(10);
        while is_taken(socket) != what && Instant::now() < deadline {
            std::thread::yield_now();
        }
        is_taken(socket) == what
    }

    #[test]
    fn who_has_ended_its_side_and_reads_on_takes_what_it_is_sent() {
        let (mut relay, client) = connection();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(relay.read(&mut [0]).unwrap(), 0);
        relay.write_all(b"a reply").unwrap();
        assert!(becomes(true, &relay));
    }

    #[test]
    fn who_has_closed_takes_nothing_though_the_send_says_so() {
        let (mut relay, client) = connection();
        drop(client);
        assert_eq!(relay.read(&mut [0]).unwrap(), 0);
        relay.write_all(b"a reply").unwrap();
        assert!(becomes(false, &relay));
        std::thread::yield_now();
        assert!(!is_taken(&relay));
    }
}
