//! What grows with names and with time is given back.

use crate::model::{Partition, ServerId, ServiceId};

use super::*;

const MINUTE: u64 = 60_000;

fn set(table: &mut Table, number: u32, state: ServerState, now: u64) -> Option<ServerId> {
    let server = Server::new(format!("s-{number}"), Ipv4Addr::LOCALHOST.into(), Partition(1));
    let link = ServerLink { state, ..ServerLink::declared(ServiceId(0), &server) };
    let id = table.server_named(&link.name, link.service, now)?;
    table.servers.set(id, link, &policies(0), now);
    Some(id)
}

#[test]
fn numbers_of_servers_that_are_gone_are_given_to_others() {
    let mut table = Table::new(holder(0, 1), policies(0));
    let kept = set(&mut table, 0, ServerState::Live, 0).unwrap();
    assert_eq!(table.connect(key(1), 0, |_| true), Ok(kept));
    for number in 1..=u32::from(u16::MAX) {
        set(&mut table, number, ServerState::Live, 0).unwrap();
        set(&mut table, number, ServerState::Gone, 0).unwrap();
    }
    assert_eq!(set(&mut table, 70_000, ServerState::Live, MINUTE / 2), None, "gone only just");
    let new = set(&mut table, 70_000, ServerState::Live, MINUTE).unwrap();
    assert_ne!(new, kept);
    assert_eq!(table.connect(key(2), MINUTE, |_| true), Ok(new), "it gets clients");
    assert_eq!(table.connect(key(1), MINUTE, |_| true), Ok(kept), "as it was");
    // For ever: one a millisecond, of which some come back.
    for number in 100_000..400_000 {
        let now = MINUTE + u64::from(number);
        let id = set(&mut table, number, ServerState::Live, now).unwrap();
        assert!(id != new && id != kept);
        set(&mut table, number, ServerState::Gone, now).unwrap();
        if number % 1000 == 0 {
            set(&mut table, number - 90_000, ServerState::Live, now).unwrap();
            set(&mut table, number - 90_000, ServerState::Gone, now).unwrap();
        }
    }
    let names: Vec<_> = [kept, new].map(|id| table.servers.get(id).name.to_string()).into();
    assert_eq!(names, ["s-0", "s-70000"]);
}

#[test]
fn a_client_that_comes_and_goes_leaves_one_note_behind() {
    let keep = 100_000;
    let mut table = Table::new(holder(0, 1), policies(keep));
    let server = set(&mut table, 0, ServerState::Live, 0).unwrap();
    for now in 0..1000 {
        assert_eq!(table.connect(key(1), now, |_| true), Ok(server));
        table.disconnect(&key(1), server, now);
        assert_eq!(table.expiries(), 1);
    }
    let end = 999 + u64::from(keep);
    table.expire(end - 1);
    assert_eq!((table.len(), table.expiries()), (1, 1), "it is kept from when it left last");
    table.expire(end);
    assert_eq!((table.len(), table.expiries()), (0, 0));
}
