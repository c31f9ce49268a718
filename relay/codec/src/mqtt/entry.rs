//! How a client is let in: its CONNECT, whether it may, and its former connection.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::Actions;
use millrace_model::{Begin, CloseReason, HeaderList};

use super::TOPIC_ALIAS_MAXIMUM;
use super::check::Ticket;
use super::client::Client;
use super::connection::{Checking, Connection, Entering, State};
use super::encode::{self, Granted};
use super::packet::{self, Connect, ConnectFault, Version};
use super::reason::Reason;
use super::record;
use super::sessions::{Arrival, Readiness};
use super::will::Will;
use super::wire::Parsed;

/// Longest client identifier in bytes: it becomes a part of records' keys. 23 must be allowed
/// (MQTT-3.1.3-5).
const MAX_CLIENT_BYTES: usize = 256;
/// How long a client that takes over waits for what its former connection has sent to be in Kafka. Where
/// that takes longer, Kafka is away, and the order of the two is not assured.
const TAKE_OVER_PATIENCE: Duration = Duration::from_secs(2);
/// How often it is looked whether the answer is there, and whether a former connection is done.
const CHECK_POLL: Duration = Duration::from_millis(5);

impl Connection {
    /// Takes the first packet, and once more when it is known whether its client may connect.
    pub(super) fn connect(
        &mut self,
        packet: &[u8],
        allowed: Option<bool>,
        now: Instant,
        actions: &mut dyn Actions,
    ) {
        let (version, reason, close) = match packet::connect(packet) {
            Ok(connect) => match self.check(&connect, allowed, actions) {
                Ok(Asked::Ticket(ticket)) => {
                    let (connect, look) = (packet.to_vec(), now + CHECK_POLL);
                    self.state = State::Checking(Box::new(Checking { connect, ticket, look }));
                    return;
                }
                Ok(Asked::Allowed(id)) => {
                    let number = self.mqtt.sessions.arrive();
                    let entering = Entering {
                        connect: packet.to_vec(),
                        id,
                        number,
                        told: None,
                        look: now,
                        until: now + TAKE_OVER_PATIENCE,
                    };
                    return self.enter(&connect, Box::new(entering), now, actions);
                }
                Err(reason) => (Some(connect.version), reason, reason.close_reason()),
            },
            Err(ConnectFault { reason, version }) => (version, reason, reason.close_reason()),
        };
        self.turn_away(version, reason, close, actions);
    }

    /// Says that there will be no connection, in words that the client knows.
    fn turn_away(
        &mut self,
        version: Option<Version>,
        reason: Reason,
        close: CloseReason,
        actions: &mut dyn Actions,
    ) {
        // Many clients never come back after a CONNACK that refuses them, and this one passes.
        if let Some(version) = version
            && close != CloseReason::KafkaBehind
        {
            encode::refuse(actions.output(), version, reason);
        }
        self.over(false, actions);
        actions.close(close);
    }

    /// Lets a client in, as soon as its former connection is done: "the Server MUST ... close the Network
    /// Connection of the existing Client" (MQTT-3.1.4-3), and the will of that comes before whatever
    /// this one publishes.
    fn enter(
        &mut self,
        connect: &Connect<'_>,
        mut entering: Box<Entering>,
        now: Instant,
        actions: &mut dyn Actions,
    ) {
        let arrival = Arrival {
            client: &entering.id,
            clean: connect.clean_start,
            owner: actions.key(),
            keep_s: self.session_expiry(connect).1,
            number: entering.number,
        };
        match self.mqtt.sessions.ready(arrival) {
            Readiness::Not(former) if now < entering.until => {
                if entering.told != Some(former) {
                    entering.told = Some(former);
                    actions.take_over(former);
                }
                entering.look = now + CHECK_POLL;
                self.state = State::Entering(entering);
            }
            Readiness::Superseded => {
                self.over(false, actions);
                actions.close(CloseReason::TakenOver);
            }
            Readiness::Ready | Readiness::Not(_) => {
                if let Err((reason, close)) = self.accept(connect, arrival, now, actions) {
                    self.turn_away(Some(connect.version), reason, close, actions);
                }
            }
        }
    }

    /// Whether a client may connect, and under which identifier; a ticket, if that has yet to be found
    /// out.
    fn check(
        &self,
        connect: &Connect<'_>,
        allowed: Option<bool>,
        actions: &dyn Actions,
    ) -> Parsed<Asked> {
        let properties = &connect.properties;
        if properties.authentication_method.is_some() {
            return Err(Reason::BAD_AUTHENTICATION_METHOD);
        }
        // "It is a Protocol Error to include Authentication Data if there is no Authentication Method"
        // (section 3.1.2.11.10).
        if properties.authentication_data.is_some() {
            return Err(Reason::PROTOCOL_ERROR);
        }
        let will = connect.will.as_ref();
        if connect.version.is_v5() && will.is_some_and(|will| will.retain) {
            return Err(Reason::RETAIN_NOT_SUPPORTED);
        }
        let id = client_id(connect, actions)?;
        match (self.mqtt.checker(), allowed) {
            (None, _) | (Some(_), Some(true)) => Ok(Asked::Allowed(id)),
            (Some(_), Some(false)) => Err(Reason::BAD_USER_OR_PASSWORD),
            (Some(checker), None) => checker
                .ask(connect.client, connect.user, connect.password)
                .map(Asked::Ticket)
                .ok_or(Reason::SERVER_BUSY),
        }
    }

    /// Looks whether the answer about a client is there, or its former connection is done, and goes on
    /// with what came meanwhile.
    pub(super) fn look(&mut self, now: Instant, actions: &mut dyn Actions) {
        match std::mem::replace(&mut self.state, State::Over(None)) {
            State::Checking(mut checking) => {
                checking.look = now + CHECK_POLL;
                match checking.ticket.answer() {
                    Some(allowed) => self.connect(&checking.connect, Some(allowed), now, actions),
                    None => self.state = State::Checking(checking),
                }
            }
            State::Entering(mut entering) => {
                let connect = std::mem::take(&mut entering.connect);
                let parsed = packet::connect(&connect).expect("it was one before");
                self.enter(&parsed, entering, now, actions);
                if let State::Entering(entering) = &mut self.state {
                    entering.connect = connect;
                }
            }
            other => self.state = other,
        }
        self.go_on(now, actions);
    }

    /// Accepts a client, or says why not, and how that is counted.
    fn accept(
        &mut self,
        connect: &Connect<'_>,
        arrival: Arrival<'_>,
        now: Instant,
        actions: &mut dyn Actions,
    ) -> Result<(), (Reason, CloseReason)> {
        let fault = |reason: Reason| (reason, reason.close_reason());
        let (version, properties, id) = (connect.version, &connect.properties, arrival.client);
        let (wanted_s, expiry_s) = self.session_expiry(connect);
        let will = connect.will.as_ref();
        let most = self.mqtt.max_message_bytes;
        let will = will.map(|will| Will::new(will, most)).transpose().map_err(fault)?;
        let section = &self.mqtt.section;
        let keep_alive_s = self.keep_alive(connect);
        let granted = Granted {
            session_expiry_s: (wanted_s != expiry_s).then_some(expiry_s),
            receive_maximum: section.receive_maximum,
            maximum_packet: u32::try_from(self.mqtt.max_packet_bytes()).expect("28 bits"),
            topic_alias_maximum: TOPIC_ALIAS_MAXIMUM,
            assigned_client: connect.client.is_empty().then_some(&**id),
            keep_alive_s: (keep_alive_s != connect.keep_alive_s).then_some(keep_alive_s),
        };
        let maximum_packet = properties.maximum_packet.unwrap_or(u32::MAX) as usize;
        // "The Server MUST NOT send packets exceeding Maximum Packet Size" (MQTT-3.1.2-24): one that could
        // not even be told that it is connected.
        if granted.bytes(version) > maximum_packet {
            return Err(fault(Reason::PACKET_TOO_LARGE));
        }
        begin(connect, id, expiry_s > 0, actions)
            .map_err(|refusal| (Reason::SERVER_UNAVAILABLE, refusal.into()))?;

        let attached = self.mqtt.sessions.attach(arrival, now);
        if let Some(former) = attached.former {
            actions.take_over(former);
        }
        encode::accept(actions.output(), version, attached.present, &granted);
        let session = (attached.session, attached.turn);
        let mut client = Client::new(version, Arc::clone(id), arrival.owner, session, now);
        client.will = will;
        client.persists = wanted_s > 0;
        client.bridge = connect.bridge;
        // "If a Client does not send packets within one and a half times the Keep Alive" (MQTT-3.1.2-22).
        client.keep_alive = Duration::from_millis(u64::from(keep_alive_s) * 1500);
        client.window = properties
            .receive_maximum
            .map_or(section.send_maximum, |wanted| wanted.min(section.send_maximum));
        client.maximum_packet = maximum_packet;
        client.resume(actions);
        if !attached.present {
            client.unmatched.expect(now);
        }
        if attached.present {
            client.ask_held(actions);
        } else if connect.clean_start {
            // What waited belonged to the session that has ended with this (MQTT-3.1.2-4): it is filtered,
            // however soon the client subscribes.
            client.gives_up = Some(actions.downlink_end());
            client.ask_held(actions);
        }
        // Otherwise it believes in a session that is not there, and has yet to learn that it must subscribe
        // again: what waited for it would be filtered until then.
        self.state = State::Open(Box::new(client));
        Ok(())
    }

    /// How long the client wants its session kept, and how long it is, in seconds.
    fn session_expiry(&self, connect: &Connect<'_>) -> (u32, u32) {
        let most = self.mqtt.section.session_expiry_s;
        let wanted = match (connect.version, connect.clean_start) {
            (Version::V5, _) => connect.properties.session_expiry.unwrap_or(0),
            (Version::V3, true) => 0,
            (Version::V3, false) => most,
        };
        (wanted, wanted.min(most))
    }

    /// The keep-alive in seconds, which is not always the one that the client wants.
    fn keep_alive(&self, connect: &Connect<'_>) -> u16 {
        let (wanted, most) = (connect.keep_alive_s, self.mqtt.section.max_keep_alive_s);
        let too_long = most > 0 && (wanted == 0 || wanted > most);
        if connect.version.is_v5() && too_long { most } else { wanted }
    }
}

/// What is known of a client that wants to connect.
enum Asked {
    /// It may, under this identifier.
    Allowed(Arc<str>),
    /// It is being asked.
    Ticket(Ticket),
}

/// The client's identifier, or one for a client without: of that its connection's key makes the only
/// one of its kind.
fn client_id(connect: &Connect<'_>, actions: &dyn Actions) -> Result<Arc<str>, Reason> {
    let id = connect.client;
    if id.is_empty() {
        // "MUST also set CleanSession to 1" (MQTT-3.1.3-7 of 3.1.1).
        if connect.version == Version::V3 && !connect.clean_start {
            return Err(Reason::CLIENT_ID_INVALID);
        }
        let key = actions.key().print();
        return Ok(format!("millrace-{}", String::from_utf8_lossy(&key)).into());
    }
    if id.len() > MAX_CLIENT_BYTES || id.contains(char::is_control) {
        return Err(Reason::CLIENT_ID_INVALID);
    }
    Ok(id.into())
}

fn begin(
    connect: &Connect<'_>,
    id: &str,
    holds: bool,
    actions: &mut dyn Actions,
) -> Result<(), millrace_model::Refusal> {
    let mut headers = HeaderList::default();
    record::open(&mut headers, connect, id);
    let headers = headers.headers();
    let (protocol, client) = ("mqtt", Some(id));
    actions.begin(Begin { protocol, acknowledge: true, client, holds, later: true, headers })
}
