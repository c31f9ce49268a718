//! The end of a worker's connections when the relay stops.

use crate::engine::{Engine, SocketId};
use crate::model::CloseReason;
use crate::stop::StopPart;

use super::Worker;
use super::connection::{Receive, State};
use super::step::Step;

impl<E: Engine> Worker<E> {
    /// Begins to stop; and when the time for connections is over, ends them as they are.
    pub(super) fn go_on_stopping(&mut self) {
        if !self.stopping {
            self.begin_stop();
        }
        if !self.out_of_time && self.shared.stop_time.is_over(StopPart::Connections) {
            self.out_of_time = true;
            for index in 0..self.connections.len() {
                if self.connections[index].is_some() {
                    let socket = SocketId(u32::try_from(index).expect("sockets are u32"));
                    self.close(socket, CloseReason::RelayStop);
                }
            }
        }
    }

    fn begin_stop(&mut self) {
        self.stopping = true;
        self.engine.stop_listening();
        self.end_onward();
        for index in 0..self.connections.len() {
            let Some(connection) = &mut self.connections[index] else { continue };
            let socket = SocketId(u32::try_from(index).expect("sockets are u32"));
            match (connection.state, connection.receive) {
                (State::Open, Receive::Armed) => {
                    connection.receive = Receive::Stopping;
                    self.engine.stop_receiving(socket);
                }
                // Its end stops the connection.
                (State::Open, Receive::Stopping) | (State::HandingOn | State::Closing, _) => {}
                (State::Draining | State::Flushing(_), _) => self.hurry(socket),
                (State::Open | State::HalfClosed, _) => self.stop_connection(socket),
            }
        }
    }

    /// Delivers what was read of a connection, then closes it.
    pub(super) fn stop_connection(&mut self, socket: SocketId) {
        self.take_steps(socket, [Step::Deliver]);
        if self.connection(socket).reads() {
            // It is not the client that ends it: its codec hears of that by the reason alone.
            let whole = self.connection(socket).codec.is_between_messages();
            self.stats.truncated.add(u64::from(!whole));
        }
        self.flush_and_close(socket, CloseReason::RelayStop);
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};
    use std::os::fd::OwnedFd;
    use std::sync::Arc;
    use std::sync::atomic::Ordering;
    use std::time::{Duration, Instant};
    use std::{io, thread};

    use super::super::{NoGateway, Orders, Shared, WorkerParts, WorkerStats};
    use super::*;
    use crate::config::Config;
    use crate::engine::{BufferId, Event, SocketOptions};
    use crate::model::Kind;
    use crate::model::{Association, Partition, ServerId, ServiceId};
    use crate::model::{Begin, Headers};
    use crate::model::{ConnectionKey, Identity, Incarnation, RelayId};
    use crate::ring::{BatchPlace, UplinkReceiver, Wake, downlink, uplink};

    /// A kernel in which nothing happens.
    struct Quiet;

    impl Engine for Quiet {
        fn listen(&mut self, _: ServiceId, _: OwnedFd) {}
        fn set_options(&mut self, _: SocketId, _: &SocketOptions) -> io::Result<()> {
            Ok(())
        }
        fn stop_listening(&mut self) {}
        fn receive(&mut self, _: SocketId) {}
        fn stop_receiving(&mut self, _: SocketId) {}
        fn watch(&mut self, _: SocketId) {}
        fn unread(&mut self, _: SocketId) -> usize {
            0
        }
        fn send(&mut self, _: SocketId, _: Vec<u8>) {}
        fn connect(&mut self, _: OwnedFd, _: SocketAddr) -> Option<SocketId> {
            None
        }
        fn is_taken(&mut self, _: SocketId) -> bool {
            true
        }
        fn shut_down(&mut self, _: SocketId) {}
        fn abort(&mut self, _: SocketId) {}
        fn close(&mut self, _: SocketId) {}
        fn wait(&mut self, timeout: Duration) -> io::Result<()> {
            thread::sleep(timeout);
            Ok(())
        }
        fn next_event(&mut self) -> Option<Event> {
            None
        }
        fn bytes(&self, _: &BufferId, _: usize) -> &[u8] {
            &[]
        }
        fn recycle(&mut self, _: BufferId) {}
    }

    /// A worker that is told to stop with more to hand over than the ring takes.
    fn stopping(stop_timeout_ms: u32) -> (Worker<Quiet>, UplinkReceiver, Shared, Arc<WorkerStats>) {
        let config = format!(
            r#"
            gateway = {{ devices = ["eth0"] }}
            relay = {{ stop_timeout_ms = {stop_timeout_ms} }}
            [[service]]
            name = "test"
            destinations = ["192.0.2.0/24"]
            port = 7000
            framing = {{ type = "lines" }}
            server = [{{ id = "a", address = "192.0.2.1", partition = 0 }}]
            "#
        );
        let config: Config = toml::from_str(&config).expect("valid");
        let incarnation = Incarnation::new(1);
        let shared = Shared::new(&config, incarnation);
        let wake = || Wake::new().expect("an eventfd");
        let (mut sender, receiver) = uplink(wake(), wake());
        let (_, from_kafka) = downlink(wake(), wake());
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 7000));
        let (server, name, partition) = (ServerId(0), "a".into(), Partition(0));
        let association = Association { server, name, partition, epoch: 0 };
        let key =
            ConnectionKey { relay: RelayId(0), incarnation, worker: 0, slot: 0, generation: 1 };
        let begin = Begin::default();
        let identity = Arc::new(Identity::new(key, None, &association, address, address, begin));
        let mut origin = BatchPlace::default();
        for sequence in 1..=400 {
            let kind = Kind::Message { sequence };
            sender.push(&mut origin, &identity, kind, Headers::NONE, &[b'x'; 16 << 10]);
            sender.has_room();
        }
        let stats = Arc::new(WorkerStats::new(shared.services.len()));
        let parts = WorkerParts {
            index: 0,
            shared: shared.clone(),
            wake: wake(),
            flows: Box::new(NoGateway),
            uplink: sender,
            downlink: from_kafka,
            orders: Orders::default().add_worker(wake()),
            stats: stats.clone(),
            peers: Vec::new(),
        };
        let worker = Worker::new(Quiet, parts);
        shared.stop_time.begin();
        shared.stop.store(true, Ordering::SeqCst);
        (worker, receiver, shared, stats)
    }

    #[test]
    fn nobody_is_waited_for_who_has_gone() {
        let (worker, receiver, shared, _) = stopping(60_000);
        drop(receiver);
        worker.run().expect("no kernel, no error");
        assert!(shared.stop_time.left() > Duration::from_secs(30), "it did not wait");
    }

    #[test]
    fn who_takes_nothing_is_waited_for_until_the_time_is_over_and_without_turning() {
        let (worker, receiver, shared, stats) = stopping(5000);
        let begun = Instant::now();
        worker.run().expect("no kernel, no error");
        assert!(!shared.stop_time.left().is_zero(), "took {:?}", begun.elapsed());
        assert!(begun.elapsed() > Duration::from_secs(1), "it gave up early");
        assert!(stats.loops.get() < 1000, "{} turns", stats.loops.get());
        drop(receiver);
    }
}
