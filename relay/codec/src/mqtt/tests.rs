//! What the codec does, packet by packet, in both versions.

mod conformance;
mod packets;
mod properties;
mod replies;
mod sessions;

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::script::{Action, Named, Script};
use crate::{Codec, MqttSection, ProtocolKind, Sending, Settings, Unencodable};
use millrace_model::{CloseReason, HeaderList, IdentityKind, RelayId, Reply, ReplyOrigin};

use super::Mqtt;
use packets::{Build, Sent, connect};

pub(super) const LIMIT: u32 = 1000;

/// What the connections of one service share.
fn service(adjust: impl FnOnce(&mut MqttSection)) -> Arc<Mqtt> {
    let mut section = MqttSection::default();
    adjust(&mut section);
    Arc::new(Mqtt::new(&Settings {
        identity: IdentityKind::Address,
        max_message_bytes: LIMIT,
        mqtt: section,
        ..Settings::new(ProtocolKind::Mqtt)
    }))
}

/// A connection under test.
struct Peer {
    codec: Box<dyn Codec>,
    script: Script,
    now: Instant,
    v5: bool,
}

impl Peer {
    fn new(mqtt: &Arc<Mqtt>) -> Self {
        static GENERATION: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(1);
        let now = Instant::now();
        let mut script = Script::default();
        script.key.generation = GENERATION.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Self { codec: mqtt.codec(now), script, now, v5: false }
    }

    /// A client that is connected, with what else its CONNECT says.
    fn connected(mqtt: &Arc<Mqtt>, connect: &Build) -> (Self, Sent) {
        let mut peer = Self::new(mqtt);
        peer.v5 = connect.is_v5();
        let mut answers = peer.send(&connect.bytes());
        assert!(!answers.is_empty(), "{:?}", peer.script.actions);
        let connack = answers.remove(0);
        assert_eq!((connack.first, connack.body[1]), (0x20, 0), "{connack:?}");
        assert!(matches!(peer.script.actions[0], Action::Begin { .. }));
        peer.script.output = answers.into_iter().flat_map(|answer| answer.bytes()).collect();
        peer.script.actions.remove(0);
        (peer, connack)
    }

    /// A client that takes over from another connection of its own.
    fn taking_over(mqtt: &Arc<Mqtt>, connect: &Build, former: &mut Self) -> (Self, Sent) {
        let mut peer = Self::new(mqtt);
        peer.v5 = connect.is_v5();
        assert!(peer.send(&connect.bytes()).is_empty(), "the former one has yet to end");
        assert_eq!(peer.script.actions, [Action::TakeOver(former.script.key)]);
        former.codec.farewell(CloseReason::TakenOver, former.now, &mut former.script);
        former.codec.delivered(u64::MAX, former.now, &mut former.script);
        peer.wait(Duration::from_millis(5));
        let mut answers = peer.answers();
        let connack = answers.remove(0);
        assert_eq!((connack.first, connack.body[1]), (0x20, 0), "{connack:?}");
        assert!(matches!(peer.script.actions[1], Action::Begin { .. }));
        peer.script.output = answers.into_iter().flat_map(|answer| answer.bytes()).collect();
        peer.script.actions.drain(..2);
        (peer, connack)
    }

    /// Gives it bytes; what it answers.
    fn send(&mut self, bytes: &[u8]) -> Vec<Sent> {
        self.codec.receive(bytes, self.now, &mut self.script);
        self.answers()
    }

    fn answers(&mut self) -> Vec<Sent> {
        Sent::split(&std::mem::take(&mut self.script.output))
    }

    /// What it has asked for since the last time, but for the replies that waited.
    fn actions(&mut self) -> Vec<Action> {
        self.asks_held();
        std::mem::take(&mut self.script.actions)
    }

    /// Whether it has asked for the replies that waited.
    fn asks_held(&mut self) -> bool {
        let before = self.script.actions.len();
        self.script.actions.retain(|action| *action != Action::AskHeld);
        before - self.script.actions.len() == 1
    }

    fn delivered(&mut self, sequence: u64) -> Vec<Sent> {
        self.codec.delivered(sequence, self.now, &mut self.script);
        self.answers()
    }

    fn reply(&mut self, offset: i64, headers: &[(&str, &str)]) -> Result<Sending, Unencodable> {
        self.reply_after(offset, headers, Duration::ZERO, false)
    }

    /// One that has waited, for its client if it was `held`.
    fn reply_after(
        &mut self,
        offset: i64,
        headers: &[(&str, &str)],
        waited: Duration,
        held: bool,
    ) -> Result<Sending, Unencodable> {
        let mut list = HeaderList::default();
        for (name, value) in headers {
            assert!(list.push(name.as_bytes(), value.as_bytes()));
        }
        let (origin, headers) = (origin(offset), list.headers());
        let reply = Reply { origin, headers, payload: b"reply", waited, held };
        self.codec.reply(reply, self.now, &mut self.script)
    }

    fn end(&mut self, reason: CloseReason) -> Vec<Action> {
        self.codec.ended(reason, self.now, &mut self.script);
        self.actions()
    }

    fn wait(&mut self, time: Duration) {
        self.now += time;
        self.codec.elapsed(self.now, &mut self.script);
    }

    fn subscribe(&mut self, filter: &str, qos: u8) {
        let granted = self.send(&packets::subscribe(self.v5, 9, &[(filter, qos)]));
        assert_eq!(granted[0].body.last(), Some(&qos), "{granted:?}");
    }
}

fn origin(offset: i64) -> ReplyOrigin {
    ReplyOrigin { relay: RelayId(0), offset }
}

fn named(headers: &[(&str, &str)]) -> Named {
    headers.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
}

fn message(headers: &[(&str, &str)], payload: &str) -> Action {
    Action::Message { headers: named(headers), payload: payload.into() }
}

/// What a connection that has been refused says and asks for.
fn refused(first: &[u8]) -> (Vec<Sent>, Option<CloseReason>) {
    let mut peer = Peer::new(&service(|_| ()));
    let answers = peer.send(first);
    let closed = peer.actions().into_iter().find_map(|action| match action {
        Action::Close(reason) => Some(reason),
        _ => None,
    });
    (answers, closed)
}

/// A client of this version, whatever its session.
fn client(v5: bool) -> Peer {
    Peer::connected(&service(|_| ()), &connect(v5, "client")).0
}
