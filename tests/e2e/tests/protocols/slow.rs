//! Two thousand clients that are slow on purpose, among honest ones of every protocol.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use millrace_harness::clients::speech::{FRAMES, Speaker, Speech, UPGRADE};
use millrace_harness::net::{free_port, uninterrupted};
use millrace_harness::relay::direct::Direct;
use millrace_harness::servers::by_hand::{HandServer, Record};
use millrace_harness::system::meter::resident_bytes;
use millrace_harness::system::process::wait_until;
use millrace_relay::config::{Config, Server, Service};
use millrace_relay::model::Partition;
use socket2::{Domain, Socket, Type};

const PATIENCE: Duration = Duration::from_mins(1);
/// Slow clients: of each protocol, so many of the kind that sends little, and of the deaf one.
const SENDING: usize = 190;
const DEAF: usize = 60;
/// So often who sends one byte at a time sends one.
const BEAT: Duration = Duration::from_millis(500);
/// Longest reply.
const PIECE_BYTES: usize = 4000;
/// What is asked for by those who read nothing: more than the kernel and the relay keep for one, and
/// more than the kernel keeps.
const FLOODS: [usize; 2] = [280_000, 150_000];
/// Round trips of each honest client before the slow ones come.
const ROUND_TRIPS: usize = 200;
/// No honest client waits longer, and its median grows to no more than `SLOWER` times what it was, or
/// `SLOWER_BY` more.
const LONGEST: Duration = Duration::from_secs(5);
const SLOWER: u32 = 10;
const SLOWER_BY: Duration = Duration::from_millis(100);
/// What may be kept for a connection.
const CONNECTION_BYTES: usize = 256 << 10;
/// Receive buffers (16 MiB), rings, what the Kafka client has fetched, and the little that is kept for
/// those who only send.
const OVERHEAD_BYTES: u64 = 128 << 20;

/// What is slow about a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Sends a byte at a time of what never ends.
    Trickling,
    /// Sends the beginning of something, and nothing more.
    Stalled,
    /// Asks for much and reads none of it.
    Deaf(usize),
}

const KINDS: [Kind; 4] =
    [Kind::Trickling, Kind::Stalled, Kind::Deaf(FLOODS[0]), Kind::Deaf(FLOODS[1])];

impl Kind {
    /// How many there are of each protocol.
    const fn count(self) -> usize {
        match self {
            Self::Trickling | Self::Stalled => SENDING,
            Self::Deaf(_) => DEAF,
        }
    }
}

/// A slow client. Its socket is gone when the relay has ended the connection and it could see that.
struct Slow {
    stream: Option<TcpStream>,
    /// What it will send, a byte at a time.
    rest: std::vec::IntoIter<u8>,
}

impl Slow {
    fn connect(speech: Speech, kind: Kind, target: SocketAddr, name: &str) -> Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        if matches!(kind, Kind::Deaf(_)) {
            // On the loopback a segment is so large that the kernel would take all for its client.
            socket.set_tcp_mss(536)?;
            socket.set_recv_buffer_size(4096)?;
        }
        socket.connect_timeout(&target.into(), PATIENCE)?;
        let mut stream: TcpStream = socket.into();
        let (at_once, rest) = says(speech, kind, name);
        stream.write_all(&at_once)?;
        stream.set_nonblocking(true)?;
        Ok(Self { stream: Some(stream), rest: rest.into_iter() })
    }

    /// Sends its next byte, if it is one that does.
    fn beat(&mut self) {
        let (Some(stream), Some(byte)) = (&mut self.stream, self.rest.next()) else { return };
        // What it is told at the end is read, as somebody would who waits for an answer.
        let ended = match uninterrupted(|| stream.read(&mut [0; 512])) {
            Ok(count) => count == 0,
            Err(error) => error.kind() != ErrorKind::WouldBlock,
        };
        if ended || stream.write(&[byte]).is_err() {
            self.stream = None;
        }
    }
}

/// What a slow client sends at once, and then byte for byte.
fn says(speech: Speech, kind: Kind, name: &str) -> (Vec<u8>, Vec<u8>) {
    let long = [b'x'; 200];
    let head = format!("{UPGRADE}X: ").into_bytes();
    let (mut begun, endless) = match (speech, kind) {
        (_, Kind::Deaf(bytes)) => {
            let flood = speech.message(format!("flood {bytes}").as_bytes());
            return ([speech.greeting(name), flood].concat(), Vec::new());
        }
        (Speech::Framing | Speech::Lines, _) => (FRAMES.framed(&long)[..2].to_vec(), long.to_vec()),
        (Speech::Http, Kind::Stalled) => (
            b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 200\r\n\r\nsome of it".to_vec(),
            Vec::new(),
        ),
        (Speech::Http | Speech::WebSocket, Kind::Trickling) => {
            (Vec::new(), [&head[..], &long].concat())
        }
        (Speech::WebSocket, Kind::Stalled) => (
            [speech.greeting(name), speech.message(&long[..100])[..50].to_vec()].concat(),
            Vec::new(),
        ),
        (Speech::Mqtt | Speech::MqttQos1, _) => {
            (Vec::new(), speech.greeting(&"x".repeat(100))[..100].to_vec())
        }
    };
    if kind == Kind::Trickling {
        return (begun, endless);
    }
    begun.extend(endless.into_iter().take(3));
    (begun, Vec::new())
}

/// All slow clients.
fn slow_clients() -> impl Iterator<Item = (usize, Speech, Kind)> {
    let numbers = (0..SENDING).flat_map(|number| KINDS.map(|kind| (number, kind)));
    numbers
        .filter(|(number, kind)| *number < kind.count())
        .flat_map(|(number, kind)| Speech::ALL.map(|speech| (number, speech, kind)))
}

/// How the relay ends a slow client; not at all while it goes on sending what it may.
const fn ended_as(speech: Speech, kind: Kind) -> Option<&'static str> {
    match (speech, kind) {
        (_, Kind::Deaf(_)) => Some("slow_reader"),
        (Speech::Framing, Kind::Trickling) => None,
        (Speech::Mqtt | Speech::MqttQos1, _) | (_, Kind::Trickling) => Some("handshake_timeout"),
        (_, Kind::Stalled) => Some("idle_timeout"),
    }
}

/// A relay with a service for each protocol.
fn config(config: &mut Config) -> Result<()> {
    let template = config.services.remove(0);
    for (partition, speech) in (0..).zip(Speech::ALL) {
        let server = Server::new(
            format!("{speech:?}").to_lowercase(),
            Ipv4Addr::LOCALHOST.into(),
            Partition(partition),
        );
        let mut service = Service {
            name: format!("{speech:?}").to_lowercase(),
            port: free_port()?.into(),
            max_message_bytes: u32::try_from(PIECE_BYTES)?,
            handshake_timeout_ms: 4000,
            idle_timeout_ms: 10_000,
            servers: vec![server],
            ..template.clone()
        };
        service.http.body_timeout_ms = 4000;
        speech.of(&mut service);
        config.services.push(service);
    }
    config.relay.reply_pause_bytes = 16 << 10;
    config.relay.reply_limit_bytes = 160 << 10;
    config.relay.reply_timeout_ms = 3000;
    config.relay.max_connection_bytes = CONNECTION_BYTES;
    Ok(())
}

/// Sends every message back, or as many bytes as it asks for.
fn answer(server: &HandServer, record: &Record) -> Result<()> {
    let correlation = Speech::ALL.iter().filter_map(|speech| speech.correlation());
    let headers: Vec<_> =
        correlation.filter_map(|name| Some((name, record.headers.get(name)?.as_str()))).collect();
    let text = std::str::from_utf8(&record.value)?;
    let Some(bytes) = text.strip_prefix("flood ") else {
        return server.reply_soon(record, &record.value, &headers);
    };
    let pieces: usize = bytes.parse::<usize>()? / PIECE_BYTES;
    let piece = [b'f'; PIECE_BYTES - 100];
    for number in 0..pieces {
        let number = number.to_string();
        let mut headers = headers.clone();
        if headers.iter().any(|(name, _)| *name == "http.request") {
            headers.push(("http.part", &number));
        }
        server.reply_soon(record, &piece, &headers)?;
    }
    Ok(())
}

/// Round trips of an honest client until `enough` says so of their number.
fn talk(speaker: &mut Speaker, enough: impl Fn(usize) -> bool) -> Result<Vec<Duration>> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let mut times = Vec::new();
    while !enough(times.len()) {
        let payload = format!("message {:09}.", NUMBER.fetch_add(1, Ordering::Relaxed));
        times.push(speaker.round_trip(payload.as_bytes())?);
        // Honest clients are no load test.
        thread::sleep(Duration::from_millis(5));
    }
    times.sort_unstable();
    Ok(times)
}

/// Lets the honest clients talk until told, each on its own thread.
fn talk_all(
    speakers: &mut [Speaker],
    enough: &(impl Fn(usize) -> bool + Sync),
    meanwhile: impl FnOnce() -> Result<()>,
    stop: &AtomicBool,
) -> Result<Vec<Vec<Duration>>> {
    thread::scope(|scope| {
        let talking: Vec<_> =
            speakers.iter_mut().map(|speaker| scope.spawn(move || talk(speaker, enough))).collect();
        let result = meanwhile();
        stop.store(true, Ordering::Relaxed);
        let times = talking.into_iter().map(|one| one.join().expect("no panic")).collect();
        result.and(times)
    })
}

/// The slow clients, and what the relay has kept for its connections at most.
struct Crowd<'a> {
    relay: &'a Direct,
    clients: Vec<Slow>,
    most_kept: u64,
    most_resident: u64,
}

impl<'a> Crowd<'a> {
    fn connect(relay: &'a Direct) -> Result<Self> {
        let services = &relay.instance.config.services;
        let clients = slow_clients().map(|(number, speech, kind)| {
            let target =
                SocketAddr::from((Ipv4Addr::LOCALHOST, services[speech as usize].port.first));
            let client = Slow::connect(speech, kind, target, &format!("slow-{number}-{kind:?}"));
            client.with_context(|| format!("{speech:?}, {kind:?}"))
        });
        let clients = clients.collect::<Result<Vec<_>>>()?;
        ensure!(clients.len() == 2000, "{} slow clients", clients.len());
        Ok(Self { relay, clients, most_kept: 0, most_resident: 0 })
    }

    /// Slow as they are, until the relay has ended all but those who do what they may.
    fn linger(&mut self) -> Result<()> {
        let mut next = Instant::now();
        wait_until(PATIENCE, "the slow clients to be ended", || {
            if Instant::now() >= next {
                next += BEAT;
                self.clients.iter_mut().for_each(Slow::beat);
            }
            let stats = self.relay.instance.stats()?;
            let kept = stats.count("connection_bytes")?;
            let connections = stats.count("connections")?;
            ensure!(kept <= connections * CONNECTION_BYTES as u64, "{kept} bytes are kept");
            self.most_kept = self.most_kept.max(kept);
            let resident = resident_bytes(self.relay.instance.process_id()?)?;
            self.most_resident = self.most_resident.max(resident);
            let ended = slow_clients().filter_map(|(_, speech, kind)| ended_as(speech, kind));
            let ended = ended.count() as u64;
            Ok(stats.total("connections_closed")? >= ended)
        })
        .with_context(|| format!("{:?}", self.relay.instance.stats()))
    }
}

#[test]
fn honest_clients_do_not_notice_two_thousand_slow_ones() {
    let mut relay = Direct::build("slow", |config| self::config(config).unwrap()).unwrap();
    relay.instance.start().unwrap();
    let (done, relay) = (AtomicBool::new(false), &relay);
    thread::scope(|scope| {
        let server = HandServer::on(&relay.brokers, relay.topics.prefix(), &[0, 1, 2, 3]).unwrap();
        let done = &done;
        scope.spawn(move || {
            while !done.load(Ordering::Relaxed) {
                if let Some(record) = server.poll().unwrap().filter(|one| one.kind() == "message") {
                    answer(&server, &record).unwrap();
                }
            }
        });
        let result = compare(relay);
        done.store(true, Ordering::Relaxed);
        result.unwrap();
    });
}

/// Honest clients alone, then among the slow ones.
fn compare(relay: &Direct) -> Result<()> {
    let services = relay.instance.config.services.iter();
    let mut speakers = Speech::ALL
        .into_iter()
        .zip(services)
        .map(|(speech, service)| {
            let target = SocketAddr::from((Ipv4Addr::LOCALHOST, service.port.first));
            Speaker::connect(speech, target, "honest")
        })
        .collect::<Result<Vec<_>>>()?;
    let (stop, process) = (AtomicBool::new(false), relay.instance.process_id()?);
    let alone = talk_all(&mut speakers, &|count| count >= ROUND_TRIPS, || Ok(()), &stop)?;
    let resident = resident_bytes(process)?;

    let mut crowd = Crowd::connect(relay)?;
    let stop = AtomicBool::new(false);
    let stopped = |_| stop.load(Ordering::Relaxed);
    let among = talk_all(&mut speakers, &stopped, || crowd.linger(), &stop)?;

    for ((speech, alone), among) in Speech::ALL.into_iter().zip(&alone).zip(&among) {
        let quantile = |times: &[Duration], part: usize| times[(times.len() - 1) * part / 100];
        let (before, median) = (quantile(alone, 50), quantile(among, 50));
        let longest = quantile(among, 100);
        println!(
            "{speech:?}: alone {} round trips, median {before:?}, p99 {:?}, longest {:?}; among \
             slow ones {}, median {median:?}, p99 {:?}, longest {longest:?}",
            alone.len(),
            quantile(alone, 99),
            quantile(alone, 100),
            among.len(),
            quantile(among, 99),
        );
        ensure!(median <= (before * SLOWER).max(before + SLOWER_BY), "{speech:?}: {median:?}");
        ensure!(longest <= LONGEST, "{speech:?} has waited for {longest:?}");
    }
    let grown = crowd.most_resident.saturating_sub(resident);
    println!(
        "kept for connections at most {} KiB, resident memory {} MiB, grown by {} MiB at most",
        crowd.most_kept >> 10,
        resident >> 20,
        grown >> 20
    );
    let deaf = slow_clients().filter(|(.., kind)| matches!(kind, Kind::Deaf(_))).count();
    let bound = (deaf * CONNECTION_BYTES) as u64 + OVERHEAD_BYTES;
    ensure!(grown <= bound, "resident memory has grown by {grown} bytes, more than {bound}");
    check_ends(relay)
}

/// Each slow client was ended for its own reason, and none of the honest ones.
fn check_ends(relay: &Direct) -> Result<()> {
    let stats = relay.instance.stats()?;
    let mut ended = 0;
    for reason in ["slow_reader", "handshake_timeout", "idle_timeout"] {
        let expected =
            slow_clients().filter(|(_, speech, kind)| ended_as(*speech, *kind) == Some(reason));
        let expected = expected.count() as u64;
        let counted = stats.count_by("connections_closed", reason)?;
        ensure!(counted == expected, "{reason}: {counted}, not {expected}; {:?}", stats.0);
        ended += counted;
    }
    ensure!(stats.total("connections_closed")? == ended, "{:?}", stats.0);
    let open = SENDING + Speech::ALL.len();
    ensure!(stats.count("connections")? == open as u64, "who goes on sending, and the honest");
    Ok(())
}
