//! Services that share a port.

use super::*;
use crate::model::ServiceId;

/// The other service is at the port of the first, for one address.
fn shared(other: &str) -> Config {
    let mut config = config("", other);
    config.services[1].port = config.services[0].port;
    config.services[1].destinations = vec!["198.51.100.7".parse().expect("a prefix")];
    config.check().expect("they differ in their destinations");
    config
}

#[test]
fn a_connection_is_the_service_s_whose_destination_is_closest() {
    let mut config = shared(PLAIN);
    config.services[1].tcp.keepalive_idle_s = 7;
    let options = config.services[1].tcp.options();
    let mut stage = Stage::new(&config);
    stage.accept_for(LINES, "192.0.2.1:1", "198.51.100.1:7000");
    let other = stage.accept_for(LINES, "192.0.2.1:2", "198.51.100.7:7000");
    stage.settle();
    let accepted = [LINES, OTHER].map(|id| stage.stats.of(ServiceId(id)).accepted.get());
    assert_eq!(accepted, [1, 1]);
    assert_eq!(stage.worker.engine().options, [(other, options)], "the listener has others");
    stage.bring(other, b"hello\n");
    let messages: Vec<_> = stage
        .records()
        .into_iter()
        .filter(|record| matches!(record.kind, Kind::Message { .. }))
        .collect();
    assert_eq!(messages[0].partition.0, 1, "that of the other service's server");
}

#[test]
fn a_destination_of_no_service_is_turned_away_and_counted() {
    let mut stage = Stage::new(&shared(PLAIN));
    let socket = stage.accept_for(LINES, "192.0.2.1:1", "203.0.113.1:7000");
    stage.settle();
    assert!(!stage.worker.engine().is_open(socket));
    assert_eq!(stage.stats.no_service.get(), 1);
    let accepted = [LINES, OTHER].map(|id| stage.stats.of(ServiceId(id)).accepted.get());
    assert_eq!(accepted, [0, 0]);
    // Its place is the next one's.
    let next = stage.accept(LINES, "192.0.2.1:2");
    assert_eq!(next, socket);
    stage.settle();
    assert!(stage.worker.engine().is_open(next));
}
