//! Connections that are paused, and what is bounded while Kafka does not answer.

use std::sync::atomic::Ordering;
use std::time::Instant;

use crate::model::Partition;

use super::stage::StagedRecord;
use super::*;

const FIRST: Partition = Partition(0);
const SECOND: Partition = Partition(1);

#[test]
fn each_goes_on_when_what_it_waits_for_is_there() {
    let mut stage = Stage::new(&config("", PLAIN));
    let limit = 16 << 20;
    let (one, other) = (stage.accept(LINES, "192.0.2.1:1"), stage.accept(OTHER, "192.0.2.1:2"));
    stage.shared.credit.book(FIRST, limit);
    stage.shared.credit.book(SECOND, limit);
    for socket in [one, other] {
        stage.bring(socket, b"a line\n");
        stage.settle();
        assert!(!stage.worker.engine().is_read(socket));
    }
    assert_eq!(stage.worker.paused(), 2);
    assert!(stage.worker.prepare_wait() > std::time::Duration::ZERO, "there is nothing to do");
    stage.shared.credit.release(SECOND, limit);
    assert!(stage.worker.prepare_wait().is_zero(), "one may go on");
    stage.settle();
    assert!(stage.worker.engine().is_read(other) && !stage.worker.engine().is_read(one));
    stage.shared.credit.release(FIRST, limit);
    stage.settle();
    assert!(stage.worker.engine().is_read(one));
    assert_eq!(stage.worker.paused(), 0);
}

/// A client that had much on its way was ended when a pause came too late for it: with the defaults, one
/// turn can bring as much as a connection may keep.
#[test]
fn what_came_before_a_pause_took_effect_ends_nobody() {
    const LINE: &[u8] = &[b'x'; 999];
    let mut config = config("", PLAIN);
    let relay = &mut config.relay;
    (relay.reply_pause_bytes, relay.reply_limit_bytes, relay.max_connection_bytes) =
        (1000, 2000, 4000);
    config.check().expect("valid");
    let mut stage = Stage::new(&config);
    let socket = stage.accept(LINES, "192.0.2.1:1");
    let limit = 16 << 20;
    stage.shared.credit.book(FIRST, limit);
    for _ in 0..10 {
        stage.worker.engine().bring(socket, &[LINE, b"\n"].concat());
    }
    stage.settle();
    assert!(stage.worker.engine().is_open(socket) && !stage.worker.engine().is_read(socket));
    assert_eq!(stage.stats.connection_bytes.get(), 9000, "it is counted");
    // What it is to be sent is bounded beside that.
    stage.reply(key(socket, 1), &[0], LINE);
    assert!(stage.worker.engine().is_open(socket));
    stage.shared.credit.release(FIRST, limit);
    stage.settle();
    assert!(stage.worker.engine().is_read(socket));
    assert_eq!(stage.closed(CloseReason::MemoryLimit), 0);
    let messages = stage.records().into_iter().filter(|record| record.kind.is_message());
    assert_eq!(messages.count(), 10);
}

/// Large pieces stay in the buffers they came in, up to all but one of those; what follows a copy is copied.
#[test]
fn what_came_before_a_pause_took_effect_keeps_its_order_and_gives_its_buffers_back() {
    let pieces = |round: usize| -> Vec<Vec<u8>> {
        let lengths = [3000, 5000, 10, 3000, 4000, 5000];
        let fill =
            |(at, length): (usize, usize)| vec![b'a' + u8::try_from(at + round).unwrap(); length];
        lengths.into_iter().enumerate().map(fill).collect()
    };
    let mut stage = Stage::new(&config("receive_buffers = 4", PLAIN));
    let [one, other] = ["192.0.2.1:1", "192.0.2.1:2"].map(|client| stage.accept(LINES, client));
    let limit = 16 << 20;
    for round in 0..3 {
        stage.shared.credit.book(FIRST, limit);
        let sent = pieces(round);
        // No credit is left with these, so that both are paused.
        stage.worker.engine().bring(one, b"first\n");
        stage.worker.engine().bring(other, b"first\n");
        for (piece, other_piece) in sent.iter().zip(sent.iter().rev()) {
            stage.worker.engine().bring(one, piece);
            stage.worker.engine().bring(other, other_piece);
        }
        for socket in [one, other] {
            stage.worker.engine().bring(socket, b"\n");
        }
        stage.settle();
        assert_eq!(stage.worker.engine().lent(), 3, "all but one");
        stage.shared.credit.release(FIRST, limit);
        stage.settle();
        assert_eq!(stage.worker.engine().lent(), 0);
        let lines: Vec<_> =
            stage.records().into_iter().filter(|one| one.kind.is_message()).collect();
        let of = |number: u32| {
            let of_it = |line: &&StagedRecord| line.key == key(SocketId(number - 1), number);
            lines.iter().filter(of_it).nth(1).expect("two lines").payload.clone()
        };
        assert!(of(1) == sent.concat(), "round {round}");
        assert!(of(2) == sent.iter().rev().flatten().copied().collect::<Vec<_>>(), "round {round}");
        let credit = &stage.shared.credit;
        credit.release(FIRST, credit.used());
    }
}

#[test]
fn whoever_ends_a_paused_connection_gets_its_buffers_back() {
    let mut stage = Stage::new(&config("", PLAIN));
    for left in [Left::Ended, Left::Reset] {
        let socket = stage.accept(LINES, "192.0.2.1:1");
        stage.shared.credit.book(FIRST, 16 << 20);
        stage.worker.engine().bring(socket, b"a line\n");
        stage.worker.engine().bring(socket, &[b'x'; 5000]);
        stage.worker.engine().bring(socket, &[b'y'; 5000]);
        stage.step();
        assert_eq!(stage.worker.engine().lent(), 2);
        stage.worker.engine().leave(socket, b"", left);
        stage.settle();
        if stage.worker.engine().is_open(socket) {
            stage.worker.close(socket, CloseReason::ServerAway);
            stage.settle();
        }
        assert_eq!(stage.worker.engine().lent(), 0, "{left:?}");
        let credit = &stage.shared.credit;
        credit.release(FIRST, credit.used());
    }
}

/// What follows bytes for which a codec ends its connection is not decoded, in whatever buffers they came.
#[test]
fn what_a_pause_has_kept_back_ends_where_its_codec_ends_it() {
    let plain = format!("max_message_bytes = 100\n{PLAIN}");
    let mut stage = Stage::new(&config("", &plain));
    let socket = stage.accept(OTHER, "192.0.2.1:1");
    stage.shared.credit.book(SECOND, 16 << 20);
    let lines = b"a line\n".repeat(1000);
    for bytes in [&b"first\n"[..], &[b'x'; 5000], &lines] {
        stage.worker.engine().bring(socket, bytes);
    }
    stage.step();
    assert_eq!(stage.worker.engine().lent(), 2);
    stage.worker.give_up(socket);
    stage.settle();
    assert_eq!(stage.worker.engine().lent(), 0);
    let messages = stage.records().into_iter().filter(|record| record.kind.is_message());
    assert_eq!(messages.map(|message| message.payload).collect::<Vec<_>>(), [b"first"]);
}

#[test]
fn who_waits_for_its_own_output_goes_on_when_that_is_sent() {
    let mut config = config("", PLAIN);
    config.relay.reply_pause_bytes = 100;
    let mut stage = Stage::new(&config);
    let socket = stage.accept(LINES, "192.0.2.1:1");
    stage.worker.engine().set_peer(socket, Peer::Stalls);
    stage.reply(key(socket, 1), &[0], &[b'x'; 200]);
    stage.settle();
    assert!(!stage.worker.engine().is_read(socket));
    assert!(stage.worker.prepare_wait() > std::time::Duration::ZERO, "there is nothing to do");
    stage.worker.engine().set_peer(socket, Peer::Takes);
    stage.settle();
    assert!(stage.worker.engine().is_read(socket));
}

#[test]
fn who_sends_too_fast_goes_on_when_its_time_has_come() {
    let plain = format!("max_messages_per_second = 20\n{PLAIN}");
    let mut stage = Stage::new(&config("", &plain));
    let socket = stage.accept(OTHER, "192.0.2.1:1");
    stage.bring(socket, &b"\n".repeat(22));
    stage.step();
    assert!(!stage.worker.engine().is_read(socket));
    let wait = stage.worker.prepare_wait();
    assert!(!wait.is_zero() && wait.as_millis() <= 100, "{wait:?}");
    stage.wait_for("it is read from", |stage| stage.worker.engine().is_read(socket));
}

#[test]
fn who_is_moved_goes_on_by_the_credit_of_its_new_partition() {
    let mut config = config("", PLAIN);
    let mut server = config.services[1].servers[0].clone();
    (server.id, server.partition) = ("c".to_owned(), Partition(2));
    config.services[0].servers.push(server);
    config.check().expect("valid");
    let mut stage = Stage::new(&config);
    let socket = stage.accept(LINES, "192.0.2.1:1");
    let partition = stage.records()[0].partition;
    stage.shared.credit.book(partition, 16 << 20);
    stage.bring(socket, b"a line\n");
    stage.settle();
    assert!(!stage.worker.engine().is_read(socket));
    let server = crate::model::ServerId(u16::from(partition != FIRST));
    let declared = &config.services[0].servers[usize::from(server.0)];
    let mut link = crate::route::ServerLink::declared(crate::model::ServiceId(0), declared);
    link.state = crate::route::ServerState::Draining;
    stage.shared.associations.set_server(link);
    for task in [crate::worker::Task::Quiesce, crate::worker::Task::Move] {
        stage.orders.give(server, task).expect("room");
        stage.settle();
    }
    assert!(stage.worker.engine().is_read(socket), "its new partition has room");
}

#[test]
fn thousands_that_are_paused_cost_the_others_nothing() {
    let turns = |paused: u32| {
        let mut stage = Stage::new(&config("max_connections = 10000", PLAIN));
        stage.shared.credit.book(FIRST, 16 << 20);
        for number in 0..paused {
            let socket = stage.accept(LINES, &format!("192.0.2.1:{}", number + 1));
            stage.bring(socket, b"a line\n");
        }
        let busy = stage.accept(OTHER, "192.0.2.2:1");
        stage.settle();
        stage.records();
        assert_eq!(stage.worker.paused(), paused as usize);
        let mut best = std::time::Duration::MAX;
        for _ in 0..20 {
            let mut sum = std::time::Duration::ZERO;
            for _ in 0..200 {
                stage.worker.engine().bring(busy, b"a line\n");
                let start = Instant::now();
                stage.worker.step();
                stage.worker.prepare_wait();
                sum += start.elapsed();
                stage.worker.wake.awake();
            }
            stage.shared.credit.release(SECOND, 200 * 518);
            stage.records();
            best = best.min(sum / 200);
        }
        let start = Instant::now();
        let sockets = (0..paused).map(SocketId);
        let blocked =
            sockets.filter(|socket| !stage.worker.reasons_left(*socket).is_empty()).count();
        assert_eq!(blocked, paused as usize);
        (best, start.elapsed())
    };
    let ((alone, _), (among, look)) = (turns(0), turns(4000));
    println!(
        "a turn with one message: {alone:?} alone, {among:?} among 4000 that are paused; {look:?} to look \
         at all of those once"
    );
    assert!(among < alone + look / 4, "{among:?} instead of {alone:?}; all together {look:?}");
}

#[test]
fn connections_are_refused_while_as_much_waits_for_kafka_about_others_as_may() {
    let mut config = config("", PLAIN);
    config.kafka.partition_in_flight_bytes = 100_000;
    let mut stage = Stage::new(&config);
    for number in 0..5000 {
        let socket = stage.accept(LINES, &format!("192.0.2.1:{}", number + 1));
        stage.settle();
        if stage.worker.engine().is_open(socket) {
            stage
                .worker
                .engine()
                .end(socket, ReceiveEnd::Failed(std::io::ErrorKind::ConnectionReset.into()));
            stage.settle();
        }
        // Kafka answers nothing; the ring itself has room.
        stage.records();
    }
    let used = stage.shared.credit.control_used();
    assert!((100_000..102_000).contains(&used), "{used}");
    let refused = stage.closed(CloseReason::KafkaBehind);
    assert!(refused > 4800, "{refused}");
    assert_eq!(stage.shared.associations.clients(), 0, "nobody is left of those who were refused");
    let other = stage.accept(OTHER, "192.0.2.1:1");
    stage.settle();
    assert!(stage.worker.engine().is_open(other), "another partition is not concerned");
    stage.shared.credit.release_control(FIRST, 1024);
    let socket = stage.accept(LINES, "192.0.2.1:1");
    stage.settle();
    assert!(stage.worker.engine().is_open(socket));
}

#[test]
fn times_of_connections_that_have_ended_do_not_pile_up() {
    let plain = format!("idle_timeout_ms = 3600000\n{PLAIN}");
    let mut stage = Stage::new(&config("", &plain));
    for number in 0..10_000_u32 {
        let socket = stage.accept(OTHER, &format!("192.0.2.1:{}", number + 1));
        stage.worker.engine().end(socket, ReceiveEnd::EndOfStream);
        stage.step();
        let reset = crate::model::CloseReason::ConnectionFailed;
        stage.worker.close(socket, reset);
        stage.settle();
        stage.records();
    }
    let (timers, lingering) = (stage.worker.timers.len(), stage.worker.lingering.len());
    assert!(timers <= 1024 && lingering <= 1024, "{timers} and {lingering}");
}

#[test]
fn a_worker_that_nobody_listens_to_takes_no_more_replies() {
    let mut stage = Stage::new(&config("", PLAIN));
    let (gone, mut offset) = (key(SocketId(7), 9), 0);
    for _ in 0..200 {
        if let Some(mut batch) = stage.downlink.take_empty() {
            for _ in 0..1000 {
                let receipt = Receipt::Offset(ReplyOffset(offset));
                batch.push(gone, Command::Reply, receipt, Reply::plain(RelayId(0), offset, b"x"));
                offset += 1;
            }
            stage.downlink.hand_over(batch);
        }
        stage.step();
    }
    let unsaid = stage.worker.settlement.unsaid();
    assert!(unsaid < 70_000, "{unsaid} of {offset}");
    assert!(stage.downlink.take_empty().is_none(), "the reader waits");
    assert!(stage.worker.prepare_wait() > std::time::Duration::ZERO, "until somebody listens");
    let mut returned = 0;
    for _ in 0..200 {
        returned += stage.returned().len();
        stage.step();
    }
    assert_eq!(i64::try_from(returned).expect("few"), offset, "then it goes on");
    assert_eq!(stage.downlink.settled(), ReplyOffset(offset));
}

#[test]
fn one_client_that_reads_nothing_leaves_room_for_what_waits_for_others() {
    let mut config = config("", PLAIN);
    (config.relay.reply_pause_bytes, config.relay.reply_limit_bytes) = (10, 20);
    let mut stage = Stage::new(&config);
    let clients = ["192.0.2.1:1", "192.0.2.2:1", "192.0.2.3:1"];
    let sockets = clients.map(|client| stage.accept(LINES, client));
    for socket in sockets {
        stage.worker.engine().set_peer(socket, Peer::Stalls);
    }
    // Of the relay's million so many are left.
    stage.shared.postponed.store(1_000_000 - 20, Ordering::Relaxed);
    let mut offsets = 0..;
    let mut send = |stage: &mut Stage, client: u32, replies: usize| {
        let socket = sockets[client as usize];
        let offsets: Vec<i64> = offsets.by_ref().take(replies).collect();
        stage.reply(key(socket, client + 1), &offsets, &[b'x'; 30]);
        stage.settle();
        stage.worker.engine().is_open(socket)
    };
    assert!(!send(&mut stage, 0, 30), "one wants everything, and is closed");
    assert!(send(&mut stage, 1, 4), "others have their part");
    assert!(send(&mut stage, 2, 3));
    assert_eq!(stage.closed(CloseReason::SlowReader), 1);
}
