//! Orders of the control plane to the workers: about the connections to a server, or those of some clients.
//!
//! A client goes from one server to another between two messages:
//!
//! ```text
//!  control plane                          worker
//!  Quiesce ─────────────────────────────► reads no more of them (or of some), hands over nothing
//!            ◄── answer ──────────────── all that was read before is handed over
//!  waits until Kafka and the server have it
//!  Move ────────────────────────────────► `close` there, `open` at the new server; reads on
//!  or Release ──────────────────────────► reads on
//! ```

use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crossbeam_queue::ArrayQueue;

use crate::engine::{Engine, SocketId};
use crate::model::{CloseReason, Headers, Kind, ServerId};
use crate::prefix::Prefix;
use crate::ring::{BatchPlace, Wake};

use super::Worker;
use super::actions::push_control;
use super::connection::State;
use super::reasons::Reasons;
use super::shared::LiveSettings;

/// Orders that may wait for one worker; who gives more is told to wait.
const ORDERS: usize = 64;
/// Reason of the `close` record at the server that a connection leaves. No connection ends by it.
const MOVED: &str = "moved";

/// What to do with the connections to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Read no more of them.
    Quiesce,
    /// Read no more of so many of them, of all workers together, whose clients have no other
    /// connection.
    QuiesceSome(u32),
    /// Those that were quiesced go on at other servers, or where they are if there is no other.
    Move,
    /// Those that were quiesced go on where they are.
    Release,
    /// Close them.
    Close,
}

/// An order.
#[derive(Clone, Debug)]
struct Order {
    what: What,
    answer: Arc<OrderAnswer>,
}

/// What is to be done, and with which connections.
#[derive(Clone, Debug)]
enum What {
    /// Those to a server.
    AtServer(ServerId, Task),
    /// Those of clients whose addresses lie there are closed.
    Disconnect(Prefix),
    /// None: other settings are in force.
    Settings(Arc<LiveSettings>),
}

/// Says when all workers have carried an order out; if it was about a server, also that they have handed
/// over all that they had read before.
#[derive(Debug)]
pub struct OrderAnswer {
    workers: AtomicUsize,
    connections: AtomicU64,
    /// How many more it may concern.
    room: AtomicU32,
}

impl OrderAnswer {
    /// How many connections it was about, once all workers are done.
    pub fn connections(&self) -> Option<u64> {
        let done = self.workers.load(Ordering::Acquire) == 0;
        done.then(|| self.connections.load(Ordering::Relaxed))
    }

    fn count(&self, connections: u64) {
        self.connections.fetch_add(connections, Ordering::Relaxed);
    }

    /// One worker is done.
    fn one_is_done(&self) {
        self.workers.fetch_sub(1, Ordering::Release);
    }

    /// True as often as there is room.
    fn take_room(&self) -> bool {
        let one_less = |room: u32| room.checked_sub(1);
        self.room.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok()
    }
}

/// The control plane's end: gives orders to every worker. Its clones lead to the same workers.
#[derive(Clone, Debug, Default)]
pub struct Orders(Arc<Mutex<Vec<WorkerQueue>>>);

/// What waits for a worker, and how to wake it.
type WorkerQueue = (Arc<ArrayQueue<Order>>, Wake);

/// A worker's end.
#[derive(Debug)]
pub struct OrderReceiver(Arc<ArrayQueue<Order>>);

impl Orders {
    /// One worker more, which `wake` wakes.
    pub fn add_worker(&mut self, wake: Wake) -> OrderReceiver {
        let queue = Arc::new(ArrayQueue::new(ORDERS));
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((queue.clone(), wake));
        OrderReceiver(queue)
    }

    /// Gives an order about the connections to a server to every worker, or to none if one of them has
    /// too many to carry out.
    pub fn give(&self, server: ServerId, task: Task) -> Option<Arc<OrderAnswer>> {
        self.push(&What::AtServer(server, task))
    }

    /// Has every worker close the connections of clients whose addresses lie in a prefix, or none if one
    /// of them has too many orders to carry out.
    pub fn disconnect(&self, clients: Prefix) -> Option<Arc<OrderAnswer>> {
        self.push(&What::Disconnect(clients))
    }

    /// Has every worker take over settings, or none if one of them has too many orders to carry out.
    pub fn settings(&self, settings: Arc<LiveSettings>) -> Option<Arc<OrderAnswer>> {
        self.push(&What::Settings(settings))
    }

    fn push(&self, what: &What) -> Option<Arc<OrderAnswer>> {
        // For as long as it takes: whoever else pushed could take the place that was seen.
        let workers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if workers.iter().any(|(queue, _)| queue.is_full()) {
            return None;
        }
        let room = if let What::AtServer(_, Task::QuiesceSome(most)) = what { *most } else { 0 };
        let answer = Arc::new(OrderAnswer {
            workers: AtomicUsize::new(workers.len()),
            connections: AtomicU64::new(0),
            room: AtomicU32::new(room),
        });
        for (queue, wake) in workers.iter() {
            let order = Order { what: what.clone(), answer: answer.clone() };
            queue.push(order).expect("there was room, and nobody else pushes");
            wake.wake();
        }
        Some(answer)
    }
}

impl OrderReceiver {
    pub(super) fn has_order(&self) -> bool {
        !self.0.is_empty()
    }
}

/// The list of connections to a server that may be moved now, or of those that are read from.
pub(super) fn list(server: ServerId, moves: bool) -> usize {
    2 * server.index() + usize::from(moves)
}

impl<E: Engine> Worker<E> {
    pub(super) fn take_orders(&mut self) {
        while let Some(order) = self.orders.0.pop() {
            let answer = order.answer;
            match order.what {
                What::AtServer(server, task) => {
                    let connections = self.obey(server, task, &answer);
                    answer.count(connections);
                    self.unanswered.push(answer);
                }
                What::Disconnect(clients) => {
                    answer.count(self.disconnect(clients));
                    // Nobody waits for what they had sent.
                    answer.one_is_done();
                }
                What::Settings(settings) => {
                    self.take_over(&settings);
                    answer.one_is_done();
                }
            }
        }
    }

    /// Carries out an order about the connections to a server; gives how many it was about.
    fn obey(&mut self, server: ServerId, task: Task, answer: &OrderAnswer) -> u64 {
        let (others, moving) = match task {
            Task::Quiesce | Task::QuiesceSome(_) => (true, false),
            Task::Move | Task::Release => (false, true),
            Task::Close => (true, true),
        };
        let lists = [(others, false), (moving, true)].into_iter().filter(|list| list.0);
        let lists = lists.map(|(_, moves)| list(server, moves));
        // They leave their lists meanwhile.
        let concerned: Vec<_> = lists.flat_map(|list| self.at_servers.iter(list)).collect();
        let mut connections = 0;
        for socket in concerned {
            connections += u64::from(self.obey_one(socket, (server, task), answer));
        }
        connections
    }

    /// Puts a connection into the list in which orders look for it.
    pub(super) fn list_at_server(&mut self, socket: SocketId) {
        let connection = self.connections[socket.index()].as_ref().expect("known to the engine");
        if let Some(identity) = &connection.link.identity {
            self.at_servers.put(socket, list(identity.server, connection.moves()));
        }
    }

    /// Everything that was decoded before is handed over.
    pub(super) fn give_answers(&mut self) {
        for answer in self.unanswered.drain(..) {
            answer.one_is_done();
        }
    }

    /// True if the connection is one of those that the order is about.
    fn obey_one(
        &mut self,
        socket: SocketId,
        (server, task): (ServerId, Task),
        answer: &OrderAnswer,
    ) -> bool {
        let stopping = self.stopping;
        let Some(connection) = self.connections[socket.index()].as_mut() else { return false };
        match task {
            // One that reads no more has nothing to take along; and a stop is not to be waited for.
            Task::Quiesce if connection.state == State::Open && !stopping => {
                self.quiesce(socket);
            }
            Task::QuiesceSome(_) if connection.state == State::Open && !stopping => {
                let link = &connection.link;
                let may_move = link.who.as_ref().is_some_and(|who| {
                    let associations = &self.shared.associations;
                    associations.may_rebalance(link.service, who.clone(), server)
                });
                if !may_move || !answer.take_room() {
                    return false;
                }
                self.quiesce(socket);
            }
            Task::Move if connection.moves() => self.move_on(socket),
            Task::Release if connection.moves() => self.release(socket),
            Task::Close if connection.writes() => {
                self.flush_and_close(socket, CloseReason::ServerAway);
            }
            _ => return false,
        }
        true
    }

    fn quiesce(&mut self, socket: SocketId) {
        self.pause(socket, Reasons::MOVE);
        self.list_at_server(socket);
    }

    fn move_on(&mut self, socket: SocketId) {
        let connection = self.connections[socket.index()].as_mut().expect("just seen");
        let reads = connection.reads();
        let link = &mut connection.link;
        // Acknowledgements are counted, in one partition's order. One that Kafka owes some stays where
        // it is: from two partitions they could be taken for one another.
        let owed = link.sequence - link.acknowledged;
        if let (true, Some(identity), Some(who)) = (reads, &mut link.identity, &link.who)
            && !(identity.acknowledge && owed > 0)
        {
            let associations = &self.shared.associations;
            let association = associations.reassociate(link.service, who.clone(), identity.server);
            if association.server != identity.server {
                let (uplink, credit) = (&mut self.uplink, &self.shared.credit);
                let (origin, close) = (&mut link.origin, Kind::Close(MOVED));
                push_control(uplink, credit, origin, identity, close, Headers::NONE);
                *identity = Arc::new(identity.moved_to(&association));
                *origin = BatchPlace::default();
                push_control(uplink, credit, origin, identity, Kind::Open, identity.begin());
            }
        }
        self.release(socket);
    }
}
