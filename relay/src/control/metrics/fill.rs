//! From a snapshot to the metrics: one source for both, so that they cannot tell different things.

use std::collections::BTreeMap;

use crate::downlink::Break;
use crate::gateway::{Counted, Flows};
use crate::model::{CloseReason, DeliveryFailure, UndeliveredReason};
use crate::registry::RegistryStatus;
use crate::registry::record::RelayState;
use crate::route::{RecordRefusal, ServerState};
use crate::undelivered::HeldRefusal;
use crate::worker::BOUNDS;

use super::super::snapshot::Snapshot;
use super::family::Metric;
use super::process;
use super::sheet::{Sheet, seconds};

/// Counts by reason, those that never happened with 0: a rate needs a value before the first event.
fn by_name<'a>(
    sheet: &mut Sheet,
    metric: Metric,
    all: impl IntoIterator<Item = &'a str>,
    counts: &BTreeMap<String, u64>,
) {
    let mut names: Vec<&str> = all.into_iter().collect();
    names.extend(
        counts.keys().map(String::as_str).filter(|name| !names.contains(name)).collect::<Vec<_>>(),
    );
    for name in names {
        sheet.set_of(metric, [name.to_owned()], counts.get(name).copied().unwrap_or_default());
    }
}

/// What is known of the relay.
pub(super) fn relay(sheet: &mut Sheet, snapshot: &Snapshot) {
    about(sheet, snapshot);
    connections(sheet, snapshot);
    messages(sheet, snapshot);
    replies(sheet, snapshot);
    held(sheet, snapshot);
    routing(sheet, snapshot);
    registry(sheet, &snapshot.registry, snapshot.relay);
    workers(sheet, snapshot);
}

fn about(sheet: &mut Sheet, snapshot: &Snapshot) {
    let measured = &snapshot.measured;
    sheet.set_of(Metric::Build, [measured.version.clone()], 1);
    if !measured.config.sha1.is_empty() {
        sheet.set_of(Metric::Config, [measured.config.sha1.clone()], 1);
    }
    let none = || [""; 0];
    let loaded = seconds(measured.config.loaded_unix_ms, 1000);
    sheet.real(Metric::ConfigLoaded, none(), loaded);
    sheet.real(Metric::Started, none(), seconds(snapshot.incarnation, 1000));
    let behind = seconds(snapshot.clock_difference_ms.unsigned_abs(), 1000);
    let sign = if snapshot.clock_difference_ms < 0 { -1.0 } else { 1.0 };
    sheet.real(Metric::ClockDifference, none(), sign * behind);
    sheet.set(Metric::TopicDifferences, snapshot.topics.len() as u64);
    sheet.set(Metric::LogLinesLost, snapshot.log_lines_lost);
    let cpu_us = snapshot.cpu_us.user + snapshot.cpu_us.system;
    sheet.real(Metric::ProcessCpu, none(), seconds(cpu_us, 1_000_000));
    if let Some(bytes) = process::resident_bytes() {
        sheet.set(Metric::ProcessMemory, bytes);
    }
}

fn connections(sheet: &mut Sheet, snapshot: &Snapshot) {
    let measured = &snapshot.measured;
    for (service, counts) in &measured.services {
        sheet.set_of(Metric::Connections, [service.clone()], counts.connections);
        sheet.set_of(Metric::Accepted, [service.clone()], counts.accepted);
    }
    sheet.set(Metric::ConnectionsMost, measured.max_connections);
    let reasons = || CloseReason::ALL.iter().map(|reason| reason.name());
    by_name(sheet, Metric::Closed, reasons(), &snapshot.connections_closed);
    by_name(sheet, Metric::HandshakesFailed, reasons(), &measured.handshakes_failed);
    let refusals = ["connection_limit", "no_service", "accept_failed"];
    by_name(sheet, Metric::Refused, refusals, &snapshot.connections_refused);
    sheet.set(Metric::Held, measured.connections_held);
    by_name(sheet, Metric::Holds, BOUNDS, &measured.holds_by_bound);
    sheet.times(Metric::HeldTime, &measured.times.connection_held);
    sheet.set(Metric::Throttles, snapshot.throttles);

    let handed_on = |what: &str| snapshot.handed_on.get(what).copied().unwrap_or_default();
    sheet.set(Metric::HandedOn, handed_on("connections"));
    sheet.set(Metric::HandedOnOpen, handed_on("open"));
    let (failed, late) = (handed_on("failed"), handed_on("timed_out"));
    sheet.set_of(Metric::HandOnsFailed, ["timed_out"], late);
    sheet.set_of(Metric::HandOnsFailed, ["other"], failed.saturating_sub(late));
    sheet.set(Metric::HandedOnBytes, handed_on("bytes"));
}

fn messages(sheet: &mut Sheet, snapshot: &Snapshot) {
    for (service, counts) in &snapshot.measured.services {
        sheet.set_of(Metric::MessagesReceived, [service.clone()], counts.messages_received);
        sheet.set_of(Metric::ReceivedBytes, [service.clone()], counts.received_bytes);
        sheet.set_of(Metric::SentBytes, [service.clone()], counts.sent_bytes);
    }
    sheet.set(Metric::MessagesAcknowledged, snapshot.messages_acknowledged);
    sheet.set(Metric::MessagesInFlight, snapshot.messages_in_flight);
    sheet.set(Metric::InFlightBytes, snapshot.bytes_in_flight);
    sheet.times(Metric::AcknowledgeTime, &snapshot.measured.times.acknowledge);
    let failures = DeliveryFailure::ALL.iter().map(|reason| reason.name());
    by_name(sheet, Metric::MessagesRefused, failures, &snapshot.messages_refused);
    sheet.set(Metric::MessagesTruncated, snapshot.messages_truncated);
    sheet.set(Metric::MessagesGone, snapshot.messages_gone);
    sheet.set(Metric::ToBury, snapshot.messages_to_bury);
    for (kind, letters) in [
        ("message", &snapshot.messages_dead_lettered),
        ("reply", &snapshot.replies_dead_lettered),
        ("held_reply", &snapshot.held_dead_lettered),
    ] {
        for reason in crate::undelivered::Reason::ALL {
            let written = letters.get(reason.name()).copied().unwrap_or_default();
            sheet.set_of(Metric::DeadLetters, [kind, reason.name()], written);
        }
    }
    sheet.set(Metric::KafkaWaiting, snapshot.records_waiting);
    sheet.real(Metric::KafkaSilent, [""; 0], seconds(snapshot.kafka_silent_ms, 1000));
    for traffic in ["data", "control"] {
        let ms = snapshot.kafka_throttled_ms.get(traffic).copied().unwrap_or_default();
        sheet.real(Metric::KafkaThrottled, [traffic], seconds(ms, 1000));
    }
    sheet.set(Metric::ProducerBatches, snapshot.producer_batches);
}

fn replies(sheet: &mut Sheet, snapshot: &Snapshot) {
    for (service, counts) in &snapshot.measured.services {
        sheet.set_of(Metric::RepliesSent, [service.clone()], counts.replies_sent);
    }
    sheet.set(Metric::RepliesReceived, snapshot.replies_received);
    sheet.times(Metric::ReplyTime, &snapshot.measured.times.reply);
    sheet.set(Metric::RepliesOrders, snapshot.replies_orders);
    sheet.set(Metric::RepliesFiltered, snapshot.replies_filtered);
    let reasons = UndeliveredReason::ALL.iter().map(|reason| reason.name());
    let reasons = reasons.chain(["malformed_key", "other_relay", "former_run", "unreadable"]);
    by_name(sheet, Metric::RepliesUndelivered, reasons, &snapshot.replies_undelivered);
    sheet.set(Metric::RepliesPostponed, snapshot.replies_postponed);
    sheet.set(Metric::RepliesBacklog, snapshot.replies_backlog);
    let breaks = Break::ALL.iter().map(|what| what.name());
    by_name(sheet, Metric::DownlinkBreaks, breaks, &snapshot.downlink_breaks);
    sheet.set(Metric::DownlinkRingFull, snapshot.measured.downlink_ring_full);
}

fn held(sheet: &mut Sheet, snapshot: &Snapshot) {
    let measured = &snapshot.measured;
    sheet.set(Metric::RepliesHeld, snapshot.replies_held);
    sheet.set(Metric::HeldDelivered, snapshot.held_delivered);
    sheet.set(Metric::HeldWaiting, snapshot.held_waiting);
    sheet.set(Metric::HeldBytes, measured.held_bytes);
    sheet.set(Metric::HeldBytesMost, measured.held_max_bytes);
    sheet.set(Metric::HeldClients, snapshot.held_clients);
    sheet.set(Metric::HeldLate, snapshot.held_late);
    sheet.times(Metric::HeldReplyTime, &measured.times.held_reply);
    let refusals = HeldRefusal::ALL.iter().map(|reason| reason.name());
    by_name(sheet, Metric::HeldRefused, refusals, &snapshot.held_refused);
    sheet.set_of(Metric::Vanished, ["reply"], snapshot.replies_vanished);
    sheet.set_of(Metric::Vanished, ["held_reply"], snapshot.held_vanished);
}

fn routing(sheet: &mut Sheet, snapshot: &Snapshot) {
    let mut clients = 0;
    for (service, servers) in &snapshot.associations {
        for (server, of_server) in servers {
            let labels = [service.clone(), server.clone()];
            sheet.set_of(Metric::Clients, labels, u64::from(*of_server));
            clients += u64::from(*of_server);
        }
    }
    sheet.set(Metric::Associations, clients);
    for (server, moved) in &snapshot.clients_moved {
        sheet.set_of(Metric::ClientsMoved, [server.clone()], *moved);
    }
    sheet.times(Metric::AllotTime, &snapshot.measured.times.allot);
    let operations = ["read", "written", "put_back"];
    by_name(sheet, Metric::AssociationRecords, operations, &snapshot.association_records);
    let refusals = RecordRefusal::ALL.iter().map(|reason| reason.name());
    let refused = &snapshot.association_records_refused;
    by_name(sheet, Metric::AssociationRefused, refusals, refused);
    for (server, waiting) in &snapshot.waiting {
        sheet.set_of(Metric::ServerWaiting, [server.clone()], waiting.messages);
        let oldest = seconds(waiting.oldest_ms, 1000);
        sheet.real(Metric::ServerOldest, [server.clone()], oldest);
        if let Some(ms) = waiting.retention_ms {
            sheet.real(Metric::ServerRetention, [server.clone()], seconds(ms, 1000));
        }
    }
}

fn registry(sheet: &mut Sheet, registry: &RegistryStatus, relay: u16) {
    let states = [ServerState::Live, ServerState::Draining, ServerState::Away, ServerState::Gone];
    let mut servers: BTreeMap<&str, [u64; 4]> = BTreeMap::new();
    for server in &registry.servers {
        let place = states.iter().position(|state| *state == server.state).unwrap_or_default();
        servers.entry(&server.service).or_default()[place] += 1;
    }
    for (service, counts) in servers {
        for (state, count) in states.iter().zip(counts) {
            let labels = [service.to_owned(), state.name().to_owned()];
            sheet.set_of(Metric::Servers, labels, count);
        }
    }
    sheet.set(Metric::RegistrationsRefused, registry.refusals.len() as u64);
    for (reason, count) in &registry.records_refused {
        sheet.set_of(Metric::RegistryRefused, [reason.clone()], *count);
    }
    let live = registry.relays.iter().filter(|one| one.state == RelayState::Live).count();
    sheet.set_of(Metric::Relays, ["live"], live as u64);
    sheet.set_of(Metric::Relays, ["gone"], (registry.relays.len() - live) as u64);
    let coordinator = registry.coordinator;
    let own = coordinator.is_some_and(|coordinator| coordinator.relay == relay);
    sheet.set(Metric::Coordinates, u64::from(own));
    if let Some(coordinator) = coordinator {
        sheet.set(Metric::Term, u64::try_from(coordinator.term).unwrap_or_default());
    }
}

fn workers(sheet: &mut Sheet, snapshot: &Snapshot) {
    let measured = &snapshot.measured;
    sheet.set(Metric::Workers, snapshot.workers as u64);
    sheet.set(Metric::WorkersHanging, snapshot.workers_hanging_ms.len() as u64);
    for (worker, counts) in &measured.each_worker {
        sheet.set_of(Metric::WorkerConnections, [worker.clone()], counts.connections);
        sheet.set_of(Metric::WorkerLoops, [worker.clone()], counts.loops);
    }
    for process::Thread { name, busy_ns, waiting_ns } in process::threads() {
        let busy = seconds(busy_ns, 1_000_000_000);
        sheet.real(Metric::ThreadBusy, [name.clone()], busy);
        sheet.real(Metric::ThreadWaiting, [name], seconds(waiting_ns, 1_000_000_000));
    }
    let mqtt = |what: &str| snapshot.mqtt.get(what).copied().unwrap_or_default();
    sheet.set(Metric::MqttSessions, mqtt("sessions"));
    for (purpose, bytes) in [
        ("connections", snapshot.connection_bytes),
        ("in_flight", snapshot.bytes_in_flight),
        ("receive_buffers", measured.receive_buffer_bytes),
        ("mqtt_sessions", mqtt("bytes")),
    ] {
        sheet.set_of(Metric::Memory, [purpose], bytes);
    }
}

/// What the gateway has counted.
pub(super) fn gateway(sheet: &mut Sheet, counted: &Counted, snapshot: &Snapshot) {
    for (verdict, packets) in &counted.verdicts {
        sheet.set_of(Metric::Packets, [*verdict], *packets);
    }
    let evidence = &counted.evidence;
    sheet.set(Metric::Diverted, evidence.diverted);
    sheet.set(Metric::DivertedReceived, evidence.received);
    let mut lost: BTreeMap<(&'static str, String), u64> = BTreeMap::new();
    for one in &evidence.losses {
        let direction = if one.to_relay { "to_relay" } else { "to_client" };
        *lost.entry((direction, one.error.clone())).or_default() += one.packets;
    }
    for ((direction, error), packets) in lost {
        sheet.set_of(Metric::Lost, [direction.to_owned(), error], packets);
    }
    let mut handshakes: BTreeMap<(String, u32), [u64; 3]> = BTreeMap::new();
    for path in &evidence.paths {
        let device = path.device.clone().unwrap_or_else(|| "gone".to_owned());
        let counts = handshakes.entry((device, path.family)).or_default();
        for (count, more) in counts.iter_mut().zip([path.answered, path.repeated, path.in_vain]) {
            *count += more;
        }
    }
    for ((device, family), counts) in handshakes {
        for (result, count) in ["answered", "repeated", "in_vain"].into_iter().zip(counts) {
            let labels = [device.clone(), family.to_string(), result.to_owned()];
            sheet.set_of(Metric::Handshakes, labels, count);
        }
    }
    let closed = evidence.paths.iter().filter(|path| path.closed).count();
    sheet.set(Metric::PathsClosed, closed as u64);
    let relay = &counted.relay;
    sheet.set(Metric::Alive, u64::from(relay.alive));
    sheet.set(Metric::Full, u64::from(relay.full));
    sheet.set(Metric::Cut, u64::from(relay.cut));
    if let Some(age) = relay.heartbeat_age_ms {
        sheet.real(Metric::HeartbeatAge, [""; 0], seconds(age, 1000));
    }
    let timeout = seconds(relay.heartbeat_timeout_ms, 1000);
    sheet.real(Metric::HeartbeatTimeout, [""; 0], timeout);
    sheet.set(Metric::DevicesDetached, snapshot.devices_detached.len() as u64);
    for (device, times) in &snapshot.devices_reattached {
        sheet.set_of(Metric::DevicesReattached, [device.clone()], *times);
    }
}

/// The sizes of the flow tables.
pub(super) fn flows(sheet: &mut Sheet, flows: &[Flows]) {
    for Flows { table, flows, most } in flows {
        sheet.set_of(Metric::Flows, [*table], *flows);
        sheet.set_of(Metric::FlowsMost, [*table], *most);
    }
}
