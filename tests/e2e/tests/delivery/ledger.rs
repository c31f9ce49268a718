//! The ledger balances after every kind of traffic, and says what is wrong when something is.

use std::time::Duration;

use millrace_harness::relay::direct::Direct;
use millrace_harness::servers::by_hand::{HandServer, Record};
use millrace_harness::system::process::{run, wait_until};
use millrace_relay::model::{ConnectionKey, IdentityKind};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(30);

/// The ledger, and whether the command succeeded.
fn ledger(relay: &Direct) -> (Value, bool) {
    let mut command = relay.instance.command("ledger", false);
    let finished = run("relay ledger", command.arg("--json"), PATIENCE).unwrap();
    let ledger = serde_json::from_str(finished.stdout.trim());
    let ledger = ledger.unwrap_or_else(|_| panic!("no JSON: {finished:?}"));
    (ledger, finished.status.success())
}

#[test]
fn it_balances_after_traffic_and_not_with_a_record_too_many() {
    let mut relay = Direct::build("ledger", |config| {
        config.services[0].identity = IdentityKind::Address;
    })
    .unwrap();
    relay.instance.start().unwrap();
    let server = HandServer::on(&relay.brokers, relay.topics.prefix(), &[0]).unwrap();
    let mut client = relay.connect().unwrap();
    for number in 0..50 {
        client.send(format!("message {number}").as_bytes()).unwrap();
    }
    let last = server.next("the last", |record| record.value == b"message 49").unwrap();
    server.reply_many(&last, (0..20).map(|_| b"sent".to_vec())).unwrap();
    for _ in 0..20 {
        client.receive().unwrap();
    }
    let malformed = Record { key: "nobody".to_owned(), ..last.clone() };
    server.reply(&malformed, b"a dead letter").unwrap();
    drop(client);
    server.next("close", |record| record.kind() == "close").unwrap();
    server.reply_many(&last, (0..5).map(|_| b"held".to_vec())).unwrap();
    wait_until(PATIENCE, "everything to be settled", || {
        let (ledger, _) = ledger(&relay);
        Ok(ledger["downlink"]["waiting"] == 0)
    })
    .unwrap();
    relay.commit_uplink(0, 11).unwrap();

    let (found, success) = ledger(&relay);
    assert_eq!((&found["balanced"], success), (&true.into(), true), "{found}");
    for (term, count) in
        [("received", 50), ("acknowledged", 50), ("waiting", 0), ("in_partitions", 50)]
    {
        assert_eq!(found["uplink"][term], count, "{term}: {found}");
    }
    let terms =
        [("produced", 26), ("sent", 20), ("held", 5), ("dead_lettered", 1), ("vanished", 0)];
    for (term, count) in terms {
        assert_eq!(found["downlink"][term], count, "{term}: {found}");
    }
    assert_eq!((&found["letters_in_topic"], &found["held_in_topic"]), (&1.into(), &5.into()));
    let expected = [("in_partition", 52), ("committed", 11), ("waiting", 41)];
    for (term, count) in expected {
        assert_eq!(found["servers"]["server"][term], count, "{term}: {found}");
    }

    // A message that no client has sent: the relay has not counted it.
    let mut forged = last.clone();
    forged.headers.insert("sequence".to_owned(), "51".to_owned());
    server.forge(&forged).unwrap();
    let (found, success) = ledger(&relay);
    assert_eq!((&found["balanced"], success), (&false.into(), false), "{found}");
    let problems = found["problems"].to_string();
    assert!(problems.contains("uplink: messages of this run in the partitions: 51"), "{problems}");
    assert!(!problems.contains("more than once"), "{problems}");
    // And one that stands there already.
    server.forge(&last).unwrap();
    let (found, _) = ledger(&relay);
    assert_eq!(found["uplink"]["repeated"], 1, "{found}");

    // Another run's records are not this one's.
    let mut key = ConnectionKey::parse(&last.key.as_bytes()[..ConnectionKey::LENGTH]).unwrap();
    key.incarnation = millrace_relay::model::Incarnation::new(5);
    let former = Record { key: String::from_utf8(key.print().to_vec()).unwrap(), ..last };
    server.forge(&former).unwrap();
    let (found, _) = ledger(&relay);
    assert_eq!(found["uplink"]["in_partitions"], 52, "{found}");
}

#[test]
fn without_a_relay_it_says_so() {
    let relay = Direct::build("noledger", |_| {}).unwrap();
    let mut command = relay.instance.command("ledger", false);
    let finished = run("relay ledger", &mut command, PATIENCE).unwrap();
    assert!(!finished.status.success());
    assert!(finished.stderr.contains("relay run"), "{}", finished.stderr);
}

#[test]
fn a_relay_without_a_gateway_has_a_status() {
    let mut relay = Direct::build("ungated", |_| {}).unwrap();
    let status = |relay: &Direct| {
        run("relay status", &mut relay.instance.command("status", false), PATIENCE).unwrap()
    };
    let finished = status(&relay);
    assert!(finished.stderr.contains("is not loaded; load it with `relay load`"), "{finished:?}");
    relay.instance.start().unwrap();
    let finished = status(&relay);
    assert!(finished.status.success(), "{finished:?}");
    assert!(finished.stdout.starts_with("gateway: not loaded"), "{}", finished.stdout);
    assert!(finished.stdout.contains("relay 0"), "{}", finished.stdout);
}
