//! The hot path allocates nothing for a message: neither the worker and the pump on its way to the
//! producer, nor the worker on a reply's way to the client. This is so for every protocol whose
//! messages are not requests: each exchange of HTTP is a small allocation of its own.
//!
//! What librdkafka allocates for a record is its own, and is not seen here.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use millrace_harness::clients::speech::Speech;
use millrace_relay::config::Config;
use millrace_relay::engine::{BufferId, Engine, Event, SocketId, SocketOptions};
use millrace_relay::model::{
    ConnectionKey, HeaderList, Headers, Identity, Incarnation, Kind, RelayId, Reply, ReplyOffset,
    ReplyOrigin, ServiceId,
};
use millrace_relay::ring::{Command, Receipt, Wake, downlink, uplink};
use millrace_relay::uplink::{ProduceError, Producer, Pump, PumpParts, Report, Token};
use millrace_relay::worker::{NoGateway, Orders, Shared, Worker, WorkerParts, WorkerStats};

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

const WARM_UP: usize = 1000;
const ROUNDS: usize = 3000;
/// Receive buffers a round, and messages in each.
const BUFFERS: usize = 8;
const MESSAGES: usize = 10;
/// The test runner's own thread allocates a few blocks while it begins to wait for this one.
const BY_THE_RUNNER: u64 = 10;
const SOCKET: SocketId = SocketId(0);

/// One client that greets, sends the same buffer again and again, and takes what it is sent.
struct SteadyEngine {
    greeting: Vec<u8>,
    stream: Vec<u8>,
    accepted: bool,
    greeted: bool,
    to_receive: usize,
    sending: Option<Vec<u8>>,
}

impl Engine for SteadyEngine {
    fn listen(&mut self, _: ServiceId, _: OwnedFd) {}
    fn set_options(&mut self, _: SocketId, _: &SocketOptions) -> io::Result<()> {
        Ok(())
    }
    fn stop_listening(&mut self) {}
    fn receive(&mut self, _: SocketId) {}
    fn stop_receiving(&mut self, _: SocketId) {
        panic!("nothing here is held back");
    }
    fn watch(&mut self, _: SocketId) {
        panic!("nothing here is held back");
    }
    fn unread(&mut self, _: SocketId) -> usize {
        panic!("nothing here is held back");
    }
    fn send(&mut self, _: SocketId, buffer: Vec<u8>) {
        self.sending = Some(buffer);
    }
    fn is_taken(&mut self, _: SocketId) -> bool {
        true
    }
    fn shut_down(&mut self, _: SocketId) {
        panic!("nothing here is closed");
    }
    fn connect(&mut self, _: OwnedFd, _: SocketAddr) -> Option<SocketId> {
        panic!("nothing here is handed on");
    }
    fn abort(&mut self, _: SocketId) {
        panic!("nothing here is closed");
    }
    fn close(&mut self, _: SocketId) {
        panic!("nothing here is closed");
    }
    fn wait(&mut self, _: Duration) -> io::Result<()> {
        self.to_receive = BUFFERS;
        Ok(())
    }
    fn next_event(&mut self) -> Option<Event> {
        if !std::mem::replace(&mut self.accepted, true) {
            let address = |port| SocketAddr::from(([192, 0, 2, 1], port));
            return Some(Event::Accepted {
                socket: SOCKET,
                service: ServiceId(0),
                client: address(1),
                server: address(2),
            });
        }
        if let Some(buffer) = self.sending.take() {
            let result = Ok(buffer.len());
            return Some(Event::Sent { socket: SOCKET, buffer, result });
        }
        self.to_receive = self.to_receive.checked_sub(1)?;
        let greets = !std::mem::replace(&mut self.greeted, true) && !self.greeting.is_empty();
        let (buffer, length) =
            if greets { (1, self.greeting.len()) } else { (0, self.stream.len()) };
        Some(Event::Received { socket: SOCKET, buffer: BufferId(buffer), length })
    }
    fn bytes(&self, buffer: &BufferId, length: usize) -> &[u8] {
        if buffer.0 == 1 { &self.greeting[..length] } else { &self.stream[..length] }
    }
    fn recycle(&mut self, _: BufferId) {}
}

/// Acknowledges everything at the next look.
#[derive(Default)]
struct SteadyProducer {
    reports: Vec<Report>,
    key: Option<ConnectionKey>,
    messages: u64,
}

impl Producer for SteadyProducer {
    fn produce(
        &mut self,
        identity: &Identity,
        kind: Kind,
        headers: Headers<'_>,
        payload: &[u8],
        _unix_ms: i64,
    ) -> Result<(), ProduceError> {
        let key = identity.key;
        self.key = Some(key);
        self.messages += u64::from(kind.is_message());
        self.reports.push(Report {
            partition: identity.partition,
            records: 1,
            booked_bytes: payload.len() + headers.weight(),
            token: Token {
                acknowledge: identity.acknowledge && kind.is_message(),
                weighed: !headers.is_empty(),
                control: !kind.is_message(),
                worker: key.worker,
                slot: key.slot,
                generation: key.generation,
            },
            message: 0,
            result: Ok(()),
        });
        Ok(())
    }
    fn poll(&mut self, on_report: &mut dyn FnMut(Report)) -> bool {
        let any = !self.reports.is_empty();
        self.reports.drain(..).for_each(on_report);
        any
    }
    fn purge(&mut self) {}
    fn fatal(&self) -> Option<String> {
        None
    }
}

fn config() -> Config {
    toml::from_str(
        r#"
        [gateway]
        devices = ["eth0"]
        [[service]]
        name = "frames"
        destinations = ["192.0.2.0/24"]
        port = 7000
        framing = { type = "length", bytes = 2 }
        server = [{ id = "a", address = "192.0.2.2", partition = 0 }]
        "#,
    )
    .expect("valid")
}

#[test]
fn a_message_and_its_reply_allocate_nothing() {
    // One after another: the profiler counts for the whole process.
    for speech in
        [Speech::Framing, Speech::Lines, Speech::WebSocket, Speech::Mqtt, Speech::MqttQos1]
    {
        let (allocated, messages) = measure(speech);
        let least = (ROUNDS * BUFFERS * MESSAGES) as u64;
        assert!(messages >= least, "{speech:?}: only {messages} came through");
        assert!(
            allocated <= BY_THE_RUNNER,
            "{speech:?}: {allocated} allocations for {messages} messages"
        );
    }
}

/// Blocks allocated while so many messages went by.
fn measure(speech: Speech) -> (u64, u64) {
    let _profiler = dhat::Profiler::builder().testing().build();
    let mut config = config();
    speech.of(&mut config.services[0]);
    let incarnation = Incarnation::new(1);
    let shared = Shared::new(&config, incarnation);
    let wake = || Wake::new().expect("an eventfd");
    let (worker_wake, producer_wake) = (wake(), wake());
    let (sender, receiver) = uplink(worker_wake.clone(), producer_wake.clone());
    let (replies, downlink_receiver) = downlink(worker_wake.clone(), wake());
    let payload = [b'x'; 100];
    let message = speech.message(&payload);
    let mut stream = message.repeat(MESSAGES);
    speech.number(&mut stream, message.len(), payload.len(), 1);
    let engine = SteadyEngine {
        greeting: speech.greeting("client"),
        stream,
        accepted: false,
        greeted: false,
        to_receive: 0,
        sending: None,
    };
    let parts = WorkerParts {
        index: 0,
        shared: shared.clone(),
        wake: worker_wake,
        flows: Box::new(NoGateway),
        uplink: sender,
        downlink: downlink_receiver,
        orders: Orders::default().add_worker(wake()),
        stats: Arc::new(WorkerStats::new(shared.services.len())),
        peers: Vec::new(),
    };
    let mut worker = Worker::new(engine, parts);
    let mut pump = Pump::new(PumpParts {
        producer: SteadyProducer::default(),
        relay: RelayId(0),
        incarnation,
        uplinks: vec![receiver],
        downlinks: vec![replies.clone()],
        credit: shared.credit.clone(),
        stats: Arc::default(),
        wake: producer_wake,
        stop_time: shared.stop_time.clone(),
    });
    let mut headers = HeaderList::default();
    if let Some(name) = speech.correlation() {
        assert!(headers.push(name.as_bytes(), b"t"));
    }
    let mut before = dhat::HeapStats::get();
    for round in 0..WARM_UP + ROUNDS {
        if round == WARM_UP {
            before = dhat::HeapStats::get();
        }
        worker.engine().wait(Duration::ZERO).expect("no kernel, no error");
        worker.step();
        while pump.step() {}
        let key = pump.producer().key.expect("the connection's open record came first");
        let mut batch = replies.take_empty().expect("the worker takes every batch at once");
        for number in 0..MESSAGES {
            let offset = i64::try_from(round * MESSAGES + number).expect("few");
            let origin = ReplyOrigin { relay: key.relay, offset };
            let reply = Reply {
                origin,
                headers: headers.headers(),
                payload: &payload,
                waited: Duration::ZERO,
                held: false,
            };
            batch.push(key, Command::Reply, Receipt::Offset(ReplyOffset(offset)), reply);
        }
        replies.hand_over(batch);
    }
    // The last round's replies are sent, and settled in the next.
    let settled = (WARM_UP + ROUNDS - 1) * MESSAGES;
    assert!(replies.settled().0 >= i64::try_from(settled - MESSAGES).expect("few"), "not settled");
    let after = dhat::HeapStats::get();
    (after.total_blocks - before.total_blocks, pump.producer().messages)
}
