//! What cannot be delivered is among the dead letters, as it was, with the reason; each once.

use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use millrace_harness::relay::dead_letters::Letters;
use millrace_harness::relay::direct::Direct;
use millrace_harness::servers::by_hand::{HandServer, Record};
use millrace_harness::system::process::wait_until;
use millrace_relay::kafka::look_at_topics;
use millrace_relay::model::{ConnectionKey, Incarnation, Partition};
use millrace_relay::undelivered::{CUT_BYTES, Undertaker};

const PATIENCE: Duration = Duration::from_secs(30);

/// A connection with another generation, of another run, of another relay.
fn other_key(record: &Record, change: impl FnOnce(&mut ConnectionKey)) -> Record {
    let mut key = ConnectionKey::parse(record.key.as_bytes()).unwrap();
    change(&mut key);
    Record { key: String::from_utf8(key.print().to_vec()).unwrap(), ..record.clone() }
}

#[test]
fn replies_to_nobody_become_dead_letters_once_and_the_others_go_on() {
    let mut relay = Direct::build("letters", |_| {}).unwrap();
    relay.instance.start().unwrap();
    let server = HandServer::on(&relay.brokers, relay.topics.prefix(), &[0]).unwrap();
    let mut client = relay.connect().unwrap();
    let open = server.next("open", |record| record.kind() == "open").unwrap();
    let malformed = Record { key: "no key at all".to_owned(), ..open.clone() };
    let stale = other_key(&open, |key| key.generation += 1);
    let former = other_key(&open, |key| {
        key.incarnation = Incarnation::new(1);
    });
    let other = other_key(&open, |key| key.relay.0 += 1);
    let cases = [
        (&malformed, "malformed_key", &b"to nobody"[..]),
        (&stale, "stale", b"too late"),
        (&former, "former_run", b"much too late"),
        (&other, "other_relay", b"astray"),
        (&open, "unencodable", &[b'x'; 300]),
    ];
    for (to, _, value) in cases {
        server.reply_with(to, Some(value), &[("note", b"mine"), ("raw", &[0xff, 0])]).unwrap();
    }
    server.reply(&open, b"to the client").unwrap();
    assert_eq!(client.receive().unwrap(), b"to the client");

    let letters = Letters::read(&relay, cases.len()).unwrap();
    for (to, reason, value) in cases {
        let found: Vec<_> = letters.iter().filter(|letter| letter.reason() == reason).collect();
        assert_eq!(found.len(), 1, "{reason}: {letters:?}");
        let letter = found[0];
        assert_eq!((&*letter.key, &*letter.value), (to.key.as_bytes(), value));
        assert_eq!(letter.header("note"), Some(&b"mine"[..]));
        assert_eq!(letter.header("raw"), Some(&[0xff, 0][..]));
        assert_eq!(letter.text("millrace.topic"), format!("{}downlink", relay.topics.prefix()));
        assert_eq!(letter.text("millrace.partition"), "0");
        assert!(letter.text("millrace.relay").starts_with("0-"));
    }
    let mut offsets: Vec<u64> =
        letters.iter().map(|letter| letter.text("millrace.offset").parse().unwrap()).collect();
    offsets.sort_unstable();
    assert_eq!(offsets, [0, 1, 2, 3, 4]);
    wait_until(PATIENCE, "the downlink's offset to pass all of them", || {
        Ok(relay.committed_downlink()? == Some(6))
    })
    .unwrap();

    // A second run finds nothing to do.
    relay.instance.stop().unwrap();
    relay.instance.start().unwrap();
    let stats = relay.instance.stop().unwrap();
    assert_eq!((&stats["replies_received"], &stats["downlink_start"]), (&0.into(), &6.into()));
    assert_eq!(relay.record_count("deadletter").unwrap(), cases.len() as u64);
}

#[test]
fn what_a_lost_connection_had_not_taken_becomes_dead_letters() {
    let mut relay = Direct::build("lost", |config| {
        config.relay.reply_timeout_ms = 1500;
        config.relay.reply_limit_bytes = 64 << 20;
        config.relay.max_connection_bytes = 64 << 20;
        config.services[0].max_message_bytes = 1 << 20;
    })
    .unwrap();
    relay.instance.start().unwrap();
    let server = HandServer::on(&relay.brokers, relay.topics.prefix(), &[0]).unwrap();
    let mut client = relay.connect().unwrap();
    let open = server.next("open", |record| record.kind() == "open").unwrap();
    // More than sockets hold, and less than makes the relay close at once: it waits for the client,
    // and the downlink's offset with it.
    let reply = vec![b'x'; 256 << 10];
    let replies = 60;
    for _ in 0..replies {
        server.reply(&open, &reply).unwrap();
    }
    let close = server.next("close", |record| record.kind() == "close").unwrap();
    assert_eq!(close.header("reason"), "slow_reader");
    wait_until(PATIENCE, "the relay to read every reply", || {
        Ok(relay.instance.stats()?.count("replies_received")? == replies)
    })
    .unwrap();
    let sent = relay.instance.stats().unwrap().count("replies_sent").unwrap();
    assert!(sent < replies, "the sockets held everything");
    let letters = Letters::read(&relay, usize::try_from(replies - sent).unwrap()).unwrap();
    let mut letters: Vec<(u64, String)> = letters
        .iter()
        .map(|letter| (letter.text("millrace.offset").parse().unwrap(), letter.reason()))
        .collect();
    // The worker's letters and those of the thread that reads the downlink come in any order.
    letters.sort_unstable();
    assert!(
        letters.iter().map(|(offset, _)| *offset).eq(sent..replies),
        "{letters:?} after {sent}"
    );
    let lost = letters.iter().take_while(|(_, reason)| reason == "connection_lost").count();
    assert!(lost > 0, "{letters:?}");
    // What the relay read after it had closed the connection.
    assert!(letters[lost..].iter().all(|(_, reason)| reason == "stale"), "{letters:?}");
    client.wait_end().unwrap();
}

#[test]
fn a_topic_of_letters_that_refuses_keeps_the_offset_and_nobody_else_waiting() {
    const BAD: usize = 20;
    let mut relay = Direct::build("mended", |_| {}).unwrap();
    // Not even a letter that is cut is so small.
    relay.topics.create_with("deadletter", 1, &[("max.message.bytes", "100")]).unwrap();
    relay.instance.start().unwrap();
    let server = HandServer::on(&relay.brokers, relay.topics.prefix(), &[0]).unwrap();
    let mut client = relay.connect().unwrap();
    let open = server.next("open", |record| record.kind() == "open").unwrap();
    server.reply(&open, b"before").unwrap();
    let stale = other_key(&open, |key| key.generation += 1);
    let letter = |number: usize| format!("letter {number}").into_bytes();
    server.reply_many(&stale, (0..BAD).map(letter)).unwrap();

    let begun = Instant::now();
    let complaints = || {
        let said = relay.instance.relay_stderr();
        said.lines().filter(|line| line.contains("refuses records")).count()
    };
    wait_until(PATIENCE, "the third complaint", || Ok(complaints() >= 3)).unwrap();
    let most = usize::try_from(begun.elapsed().as_secs()).unwrap() + 2;
    assert!(complaints() <= most, "{} in {:?}", complaints(), begun.elapsed());
    // Clients come and are served meanwhile, behind what waits in the log.
    assert_eq!(client.receive().unwrap(), b"before");
    server.reply(&open, b"meanwhile").unwrap();
    assert_eq!(client.receive().unwrap(), b"meanwhile");
    let mut other = relay.connect().unwrap();
    other.send(b"new").unwrap();
    let new = server.next("a message", |record| record.value == b"new").unwrap();
    server.reply(&new, b"answer").unwrap();
    assert_eq!(other.receive().unwrap(), b"answer");
    wait_until(PATIENCE, "what comes before them to be committed", || {
        Ok(relay.committed_downlink()? == Some(1))
    })
    .unwrap();
    assert_eq!(relay.record_count("deadletter").unwrap(), 0);

    relay.topics.set("deadletter", &[("max.message.bytes", "100000")]).unwrap();
    let mut letters: Vec<_> = Letters::read(&relay, BAD)
        .unwrap()
        .iter()
        .map(|letter| {
            (letter.text("millrace.offset").parse::<u64>().unwrap(), letter.value.clone())
        })
        .collect();
    letters.sort_unstable();
    let expected: Vec<_> = (0..BAD).map(|number| (number as u64 + 1, letter(number))).collect();
    assert_eq!(letters, expected);
    let all = i64::try_from(BAD).unwrap() + 3;
    wait_until(PATIENCE, "the downlink's offset to pass all", || {
        Ok(relay.committed_downlink()? == Some(all))
    })
    .unwrap();
    let before = complaints();
    let stats = relay.instance.stats().unwrap();
    assert_eq!(stats.count_by("replies_dead_lettered", "stale").unwrap(), BAD as u64);
    assert_eq!(complaints(), before, "there is nothing to complain about any more");
}

#[test]
fn messages_that_kafka_refuses_become_dead_letters_and_are_cut_where_they_must_be() {
    let mut relay = Direct::build("refused", |config| {
        config.services[0].max_message_bytes = 1 << 20;
    })
    .unwrap();
    relay.topics.create_with("uplink", 1, &[("max.message.bytes", "2000")]).unwrap();
    relay.topics.create_with("deadletter", 1, &[("max.message.bytes", "200000")]).unwrap();
    relay.instance.start().unwrap();
    for (length, cut) in [(100_000, None), (300_000, Some("300000"))] {
        let mut client = relay.connect().unwrap();
        client.send(&vec![b'y'; length]).unwrap();
        client.wait_end().unwrap();
        let before = usize::from(cut.is_some());
        let letters = Letters::read(&relay, before + 1).unwrap();
        let letter = &letters[before];
        assert_eq!(letter.reason(), "too_large");
        assert_eq!(letter.value.len(), if cut.is_some() { CUT_BYTES } else { length });
        assert_eq!(letter.header("millrace.length").map(<[u8]>::to_vec), cut.map(Into::into));
        assert_eq!((letter.header("kind"), &*letter.text("sequence")), (None, "1"));
        assert_eq!(letter.text("millrace.topic"), format!("{}uplink", relay.topics.prefix()));
        assert_eq!(letter.header("millrace.offset"), Some(&b""[..]), "it never had one");
    }
    let stats = relay.instance.stats().unwrap();
    assert_eq!(stats.count_by("messages_refused", "too_large").unwrap(), 2);
    assert_eq!(stats.count_by("messages_dead_lettered", "too_large").unwrap(), 2);
}

#[test]
fn what_waits_for_a_gone_server_becomes_dead_letters_from_its_committed_offset_on() {
    let mut relay = Direct::build("gone", |_| {}).unwrap();
    relay.instance.start().unwrap();
    let server = HandServer::on(&relay.brokers, relay.topics.prefix(), &[0]).unwrap();
    let mut client = relay.connect().unwrap();
    for message in [b"one", b"two", b"six"] {
        client.send(message).unwrap();
        server.next("message", |record| record.value == message).unwrap();
    }
    let config = &relay.instance.config;
    // `open` and the first message.
    relay.commit_uplink(0, 2).unwrap();
    let undertaker = Undertaker::new(config, Incarnation::new(7), None);
    let bury = || undertaker.bury(Partition(0), &AtomicBool::new(false), || true).unwrap();
    assert_eq!(bury(), 2);
    let letters = Letters::read(&relay, 2).unwrap();
    let seen: Vec<_> = letters
        .iter()
        .map(|letter| (letter.reason(), &*letter.value, letter.text("sequence")))
        .collect();
    let reason = "server_gone".to_owned();
    let expected: [(_, &[u8], _); 2] =
        [(reason.clone(), b"two", "2".to_owned()), (reason, b"six", "3".to_owned())];
    assert_eq!(seen, expected);
    assert_eq!(bury(), 0, "the partition is free");
}

#[test]
fn letters_for_a_gone_server_are_whole_where_the_topic_takes_each_and_not_all_in_one_batch() {
    const MESSAGES: usize = 100;
    let mut relay = Direct::build("batches", |config| {
        config.services[0].max_message_bytes = 1 << 20;
    })
    .unwrap();
    relay.topics.create_with("deadletter", 1, &[("max.message.bytes", "20000")]).unwrap();
    relay.instance.start().unwrap();
    let mut client = relay.connect().unwrap();
    for _ in 0..MESSAGES {
        client.send(&[b'y'; 1000]).unwrap();
    }
    wait_until(PATIENCE, "the messages to be acknowledged", || {
        Ok(relay.instance.stats()?.count("messages_acknowledged")? == MESSAGES as u64)
    })
    .unwrap();
    let config = &relay.instance.config;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let limits = runtime.block_on(look_at_topics(config)).unwrap().batch_limits;
    let undertaker = Undertaker::new(config, Incarnation::new(7), limits.kept);
    let records = undertaker.bury(Partition(0), &AtomicBool::new(false), || true).unwrap();
    // `open` is one too.
    assert_eq!(records, MESSAGES as u64 + 1);
    let letters = Letters::read(&relay, MESSAGES + 1).unwrap();
    let whole = letters
        .iter()
        .filter(|letter| letter.value.len() == 1000 && letter.header("millrace.length").is_none());
    assert_eq!(whole.count(), MESSAGES);
}
