//! Settings that change while connections are open.

use std::sync::Arc;

use super::*;
use crate::worker::LiveSettings;

/// Puts another configuration into force.
fn put_into_force(stage: &mut Stage, config: &Config) {
    let former = stage.worker.shared.services.clone();
    let services = former.iter().zip(&config.services).map(|(served, now)| served.with(now));
    let settings = LiveSettings { limits: config.relay.clone(), services: services.collect() };
    let answer = stage.orders.settings(Arc::new(settings)).expect("room");
    assert_eq!(answer.connections(), None, "not yet");
    stage.step();
    assert_eq!(answer.connections(), Some(0), "it has taken them over");
}

#[test]
fn a_service_takes_no_new_clients_and_keeps_those_that_it_has() {
    let mut config = config("", PLAIN);
    let mut stage = Stage::new(&config);
    let former = stage.accept(LINES, "192.0.2.1:1");
    config.services[0].accept = false;
    put_into_force(&mut stage, &config);
    let refused = stage.accept(LINES, "192.0.2.1:2");
    let other = stage.accept(OTHER, "192.0.2.1:3");
    stage.settle();
    let open = [former, refused, other].map(|socket| stage.worker.engine().is_open(socket));
    assert_eq!(open, [true, false, true]);
    assert_eq!(stage.closed(CloseReason::NotAccepted), 1);
    config.services[0].accept = true;
    put_into_force(&mut stage, &config);
    let again = stage.accept(LINES, "192.0.2.1:4");
    stage.settle();
    assert!(stage.worker.engine().is_open(again));
}

#[test]
fn the_longest_message_is_that_of_when_a_client_came() {
    let mut config = config("", PLAIN);
    let mut stage = Stage::new(&config);
    let former = stage.accept(LINES, "192.0.2.1:1");
    config.services[0].max_message_bytes = 4;
    put_into_force(&mut stage, &config);
    let next = stage.accept(LINES, "192.0.2.1:2");
    for socket in [former, next] {
        stage.bring(socket, b"12345\n");
        stage.records();
    }
    stage.settle();
    let open = [former, next].map(|socket| stage.worker.engine().is_open(socket));
    assert_eq!(open, [true, false]);
    assert_eq!(stage.closed(CloseReason::OversizedMessage), 1);
}

#[test]
fn a_shorter_time_ends_connections_whose_time_is_over_by_it() {
    let mut config = config("", PLAIN);
    config.services[0].idle_timeout_ms = 3_600_000;
    let mut stage = Stage::new(&config);
    let idle = stage.accept(LINES, "192.0.2.1:1");
    let other = stage.accept(OTHER, "192.0.2.1:2");
    stage.settle();
    config.services[0].idle_timeout_ms = 1;
    put_into_force(&mut stage, &config);
    stage.wait_for("it is closed", |stage| stage.closed(CloseReason::IdleTimeout) == 1);
    stage.settle();
    let open = [idle, other].map(|socket| stage.worker.engine().is_open(socket));
    assert_eq!(open, [false, true]);
}

#[test]
fn a_connection_leaves_an_address_whose_bound_was_taken_away_or_came_later() {
    let mut config = config("", PLAIN);
    let mut stage = Stage::new(&config);
    let uncounted = stage.accept(LINES, "192.0.2.1:1");
    config.services[0].max_connections_per_address = 1;
    put_into_force(&mut stage, &config);
    let counted = stage.accept(LINES, "192.0.2.1:2");
    let refused = stage.accept(LINES, "192.0.2.1:3");
    stage.settle();
    assert!(stage.worker.engine().is_open(counted) && !stage.worker.engine().is_open(refused));
    config.services[0].max_connections_per_address = 0;
    put_into_force(&mut stage, &config);
    for socket in [uncounted, counted] {
        stage.worker.engine().end(socket, ReceiveEnd::EndOfStream);
    }
    stage.wait_for("both are closed", |stage| stage.worker.open == 0);
    config.services[0].max_connections_per_address = 1;
    put_into_force(&mut stage, &config);
    let next = stage.accept(LINES, "192.0.2.1:4");
    stage.settle();
    assert!(stage.worker.engine().is_open(next), "nobody is counted any more");
}
