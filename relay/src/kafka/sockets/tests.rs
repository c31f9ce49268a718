use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::time::Instant;

use super::*;

pub(super) const LINK: LinkId = LinkId(7);
const PATIENCE: Duration = Duration::from_secs(20);

/// What was told, in words.
pub(super) type Told = Vec<String>;

pub(super) fn turn_until(
    sockets: &mut Sockets,
    wake: &Wake,
    is_over: impl Fn(&Told) -> bool,
) -> Told {
    let (told, _) = turn_until_told(sockets, wake, |told, _| is_over(told));
    told
}

/// What was told, and whether a connection takes bytes again.
pub(super) fn turn_until_told(
    sockets: &mut Sockets,
    wake: &Wake,
    is_over: impl Fn(&Told, bool) -> bool,
) -> (Told, bool) {
    let mut is_writable = false;
    let (begun, mut told) = (Instant::now(), Told::new());
    while !is_over(&told, is_writable) {
        assert!(begun.elapsed() < PATIENCE, "{told:?}");
        wake.announce_sleep();
        wake.wait_for(Duration::from_millis(50), Some(sockets.as_fd()));
        wake.awake();
        sockets.turn(|link, event| {
            assert_eq!(link, LINK);
            told.push(match event {
                SocketEvent::Connected => "connected".to_owned(),
                SocketEvent::Received(bytes) => String::from_utf8_lossy(bytes).into_owned(),
                SocketEvent::Writable => {
                    is_writable = true;
                    return;
                }
                SocketEvent::Failed(error) => format!("failed: {error}"),
            });
        });
    }
    (told, is_writable)
}

fn sockets() -> (Sockets, Wake) {
    let wake = Wake::new().expect("an eventfd");
    (Sockets::new(wake.clone(), None).expect("an epoll"), wake)
}

#[test]
fn a_connection_is_made_by_name_or_address_and_carries_bytes() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a listener");
    let port = listener.local_addr().expect("bound").port();
    for host in ["127.0.0.1", "localhost"] {
        let (mut sockets, wake) = sockets();
        sockets.connect(LINK, host, port);
        turn_until(&mut sockets, &wake, |told| told.iter().any(|of| of == "connected"));
        let (mut peer, _) = listener.accept().expect("it is there");
        let sent = sockets.send(LINK, &[IoSlice::new(b"pi"), IoSlice::new(b"ng")]);
        assert_eq!(sent.expect("taken"), 4);
        let mut ping = [0; 4];
        peer.read_exact(&mut ping).expect("sent");
        assert_eq!(&ping, b"ping");
        peer.write_all(b"pong").expect("taken");
        let told = turn_until(&mut sockets, &wake, |told| !told.is_empty());
        assert_eq!(told, ["pong"]);
        drop(peer);
        let told = turn_until(&mut sockets, &wake, |told| !told.is_empty());
        assert_eq!(told, ["failed: closed by the broker"]);
        assert!(sockets.send(LINK, &[IoSlice::new(b"more")]).is_err());
    }
}

#[test]
fn a_connection_that_cannot_be_made_has_failed_once() {
    let port = {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a listener");
        listener.local_addr().expect("bound").port()
    };
    // RFC 6761 section 6.4: no name below `invalid` exists.
    for (host, port) in [("127.0.0.1", port), ("localhost", port), ("broker.invalid", 9092)] {
        let (mut sockets, wake) = sockets();
        sockets.connect(LINK, host, port);
        let told = turn_until(&mut sockets, &wake, |told| !told.is_empty());
        assert!(told.len() == 1 && told[0].starts_with("failed: "), "{host}: {told:?}");
        sockets.turn(|_, event| panic!("{event:?}"));
    }
}

#[test]
fn a_connection_that_was_closed_tells_nothing() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a listener");
    let port = listener.local_addr().expect("bound").port();
    for host in ["127.0.0.1", "localhost"] {
        let (mut sockets, _wake) = sockets();
        sockets.connect(LINK, host, port);
        sockets.close(LINK);
        // A connection that was made before it was closed ends; a name's thread may not be done yet.
        sockets.turn(|_, event| panic!("{event:?}"));
    }
}
