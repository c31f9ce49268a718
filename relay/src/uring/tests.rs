//! The engine, with real sockets and few buffers.

use std::collections::HashMap;
use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::engine::{BufferId, Engine, Event, ReceiveEnd, SocketId};
use crate::model::ServiceId;
use crate::ring::Wake;

use super::{EngineLimits, UringEngine};

const PATIENCE: Duration = Duration::from_secs(10);
const BUFFER_BYTES: u32 = 64;

/// An engine and clients that are connected to it.
struct Pond {
    engine: UringEngine,
    /// By their sockets at the engine.
    clients: HashMap<SocketId, TcpStream>,
}

impl Pond {
    fn new(buffers: u16, clients: u32) -> Self {
        let limits = EngineLimits {
            sockets: clients,
            buffers,
            buffer_bytes: BUFFER_BYTES,
            batch_wait_us: 0,
        };
        let mut engine =
            UringEngine::new(limits, Wake::new().expect("an eventfd")).expect("io_uring");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        engine.listen(ServiceId(0), listener.into());
        let mut pond = Self { engine, clients: HashMap::new() };
        for number in 1..=clients {
            let client = TcpStream::connect(address).expect("somebody listens");
            let name = client.local_addr().expect("connected");
            let accepted = pond.next(|event| match event {
                Event::Accepted { socket, client, .. } if client == name => Some(socket),
                other => panic!("client {number}: {other:?}"),
            });
            pond.clients.insert(accepted, client);
        }
        pond
    }

    /// The next event.
    fn next<R>(&mut self, take: impl FnOnce(Event) -> Option<R>) -> R {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(event) = self.engine.next_event() {
                return take(event).expect("another event");
            }
            assert!(Instant::now() < deadline, "nothing comes");
            self.engine.wait(Duration::from_millis(100)).expect("io_uring");
        }
    }

    fn send(&mut self, socket: SocketId, bytes: &[u8]) {
        self.clients.get_mut(&socket).expect("connected").write_all(bytes).expect("taken");
    }

    /// Takes what comes until that is enough.
    fn take_until(&mut self, mut is_enough: impl FnMut(&mut UringEngine, Event) -> bool) {
        loop {
            let event = self.next(Some);
            if is_enough(&mut self.engine, event) {
                return;
            }
        }
    }
}

#[test]
fn more_clients_than_buffers_are_received_from_in_turn() {
    let (clients, message) = (20, [b'x'; 200]);
    let mut pond = Pond::new(2, clients);
    let sockets: Vec<_> = pond.clients.keys().copied().collect();
    for socket in &sockets {
        pond.engine.receive(*socket);
        pond.send(*socket, &message);
    }
    let mut received: HashMap<SocketId, usize> = HashMap::new();
    for _ in 0..4 * clients {
        let (socket, buffer, length) = pond.next(|event| match event {
            Event::Received { socket, buffer, length } => Some((socket, buffer, length)),
            other => panic!("{other:?}"),
        });
        assert!(pond.engine.bytes(&buffer, length).iter().all(|byte| *byte == b'x'));
        *received.entry(socket).or_default() += length;
        pond.engine.recycle(buffer);
    }
    assert!(sockets.iter().all(|socket| received[socket] == message.len()), "{received:?}");
}

#[test]
fn buffers_that_are_kept_leave_the_others_a_reserve() {
    let mut pond = Pond::new(4, 2);
    let [one, other] = <[SocketId; 2]>::try_from(pond.clients.keys().copied().collect::<Vec<_>>())
        .expect("two clients");
    pond.engine.receive(one);
    pond.send(one, &[b'x'; 1000]);
    let mut kept: Vec<(BufferId, usize)> = Vec::new();
    while kept.len() < 3 {
        pond.next(|event| match event {
            Event::Received { socket, buffer, length } if socket == one => {
                kept.push((buffer, length));
                Some(())
            }
            other => panic!("{other:?}"),
        });
    }
    pond.engine.stop_receiving(one);
    pond.engine.receive(other);
    pond.send(other, &[b'y'; 1000]);
    let (mut copied, mut of_other, mut stopped) = (0, 0, 0);
    pond.take_until(|engine, event| {
        match event {
            Event::Received { socket, buffer, length } => {
                *(if socket == one { &mut copied } else { &mut of_other }) += length;
                engine.recycle(buffer);
            }
            Event::ReceiveEnded { socket, end: ReceiveEnd::Stopped } if socket == one => {
                stopped += 1;
            }
            event => panic!("{event:?}"),
        }
        // The reserve goes round.
        of_other == 1000 && stopped == 1
    });
    for (buffer, length) in &kept {
        assert!(pond.engine.bytes(buffer, *length).iter().all(|byte| *byte == b'x'), "still there");
    }
    let so_far = copied + kept.iter().map(|(_, length)| length).sum::<usize>();
    for (buffer, _) in kept {
        pond.engine.recycle(buffer);
    }
    pond.engine.receive(one);
    let mut all = so_far;
    pond.take_until(|engine, event| match event {
        Event::Received { socket, buffer, length } if socket == one => {
            all += length;
            engine.recycle(buffer);
            all >= 1000
        }
        event => panic!("{event:?}"),
    });
    assert_eq!(all, 1000);
}

#[test]
fn one_that_waits_for_a_buffer_can_be_stopped_and_closed() {
    let mut pond = Pond::new(2, 3);
    let sockets: Vec<_> = pond.clients.keys().copied().collect();
    pond.engine.receive(sockets[0]);
    pond.send(sockets[0], &[b'x'; 1000]);
    let kept = pond.next(|event| match event {
        Event::Received { buffer, .. } => Some(buffer),
        _ => None,
    });
    // The reserve goes too, against the rule: nobody can be received from now.
    let reserve = pond.next(|event| match event {
        Event::Received { buffer, .. } => Some(buffer),
        _ => None,
    });
    for socket in &sockets[1..] {
        pond.engine.receive(*socket);
        pond.send(*socket, b"a line");
    }
    for _ in 0..10 {
        pond.engine.wait(Duration::from_millis(1)).expect("io_uring");
        assert!(pond.engine.next_event().is_none(), "there is no buffer");
    }
    pond.engine.stop_receiving(sockets[1]);
    pond.engine.close(sockets[2]);
    let (mut stopped, mut closed) = (false, false);
    pond.take_until(|_, event| {
        match event {
            Event::ReceiveEnded { socket, end: ReceiveEnd::Stopped } if socket == sockets[1] => {
                stopped = true;
            }
            Event::Closed { socket } if socket == sockets[2] => closed = true,
            event => panic!("{event:?}"),
        }
        stopped && closed
    });
    pond.engine.recycle(kept);
    pond.engine.recycle(reserve);
    pond.engine.receive(sockets[1]);
    let mut received = [0, 0];
    pond.take_until(|engine, event| match event {
        Event::Received { socket, buffer, length } => {
            let of = sockets.iter().position(|one| *one == socket).expect("one of them");
            received[of] += length;
            engine.recycle(buffer);
            received == [1000 - 2 * BUFFER_BYTES as usize, 6]
        }
        event => panic!("{event:?}"),
    });
}
