//! What is served, against the formats and against docs/metrics.md.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::control::{ServiceCounts, Snapshot, WorkerCounts};
use crate::gateway::{Counted, Evidence, Flows, Lost, PathEvidence, RelayStatus};
use crate::measure::{Histogram, Ladder};
use crate::registry::{CoordinatorStatus, RegistryStatus, ServerStatus};
use crate::route::ServerState;

use super::family::{FAMILIES, Family, Kind, Metric};
use super::sheet::{Format, Sheet};
use super::{fill, http};

/// A name that would break a format if it were not escaped.
const NASTY: &str = "a \"b\" \\ c\nd{e=\"f\"} 1";

/// A snapshot of a relay with so many services, each with so many servers, in which everything has happened.
fn busy(services: usize, servers: usize) -> Snapshot {
    let mut snapshot = Snapshot::default();
    let measured = &mut snapshot.measured;
    measured.config.sha1 = "0123456789abcdef".to_owned();
    measured.version = "1.2.3".to_owned();
    let counts =
        ServiceCounts { connections: 150, messages_received: 7, ..ServiceCounts::default() };
    let times = || {
        let histogram = Histogram::new(Ladder::MEDIUM);
        histogram.record(Duration::from_millis(3), 5);
        histogram.record(Duration::from_secs(100), 2);
        histogram.times()
    };
    measured.times.acknowledge = times();
    measured.times.reply = times();
    measured.times.allot = times();
    measured.times.connection_held = times();
    measured.times.held_reply = times();
    measured.each_worker.insert("worker-0".to_owned(), WorkerCounts::default());
    let coordinator = Some(CoordinatorStatus { relay: 0, term: 12 });
    let mut registry = RegistryStatus { coordinator, ..RegistryStatus::default() };
    registry.records_refused.insert("malformed_key".to_owned(), 1);
    for service in 0..services {
        let name = if service == 0 { NASTY.to_owned() } else { format!("service-{service}") };
        measured.services.insert(name.clone(), counts);
        let of_service = snapshot.associations.entry(name.clone()).or_default();
        for server in 0..servers {
            let id = format!("server-{service}-{server}");
            of_service.insert(id.clone(), 150);
            let waiting =
                super::super::Waiting { messages: 3, oldest_ms: 4, retention_ms: Some(5) };
            snapshot.waiting.insert(id.clone(), waiting);
            snapshot.clients_moved.insert(id.clone(), 1);
            registry.servers.push(ServerStatus {
                id,
                service: name.clone(),
                address: [127, 0, 0, 1].into(),
                declared: true,
                state: ServerState::Live,
                partition: crate::model::Partition(0),
                epoch: 0,
                capacity: 1,
                instance: String::new(),
                reason: None,
                renewed_ms_ago: None,
                clients: None,
            });
        }
    }
    snapshot.registry = registry;
    snapshot.devices_reattached.insert("eth1".to_owned(), 1);
    snapshot
}

fn counted() -> Counted {
    let verdicts = BTreeMap::from([("pass/no_rule", 3), ("divert/new", 0)]);
    let relay = RelayStatus {
        alive: true,
        full: false,
        cut: false,
        heartbeat_age_ms: Some(30),
        heartbeat_timeout_ms: 1000,
        configured_heartbeat_timeout_ms: None,
        generation: 1,
    };
    let path = PathEvidence {
        ifindex: 3,
        device: Some("eth1".to_owned()),
        family: 4,
        closed: false,
        answered: 5,
        repeated: 1,
        in_vain: 0,
        sources: 1,
    };
    let lost = Lost {
        ifindex: 3,
        device: None,
        to_relay: true,
        errno: 6,
        error: "ENXIO".to_owned(),
        packets: 2,
    };
    let evidence =
        Evidence { paths: vec![path.clone(), path], losses: vec![lost], ..Evidence::default() };
    Counted { verdicts, relay, evidence }
}

fn sheet(snapshot: &Snapshot) -> Sheet {
    let mut sheet = Sheet::new();
    fill::relay(&mut sheet, snapshot);
    fill::gateway(&mut sheet, &counted(), snapshot);
    fill::flows(&mut sheet, &[Flows { table: "pending", flows: 1, most: 2 }]);
    sheet.set(Metric::GatewayUnreadable, 0);
    sheet
}

/// A family as its text has it.
#[derive(Debug, Default)]
struct Read {
    kind: String,
    unit: Option<String>,
    help: String,
    /// Suffix, labels, value.
    samples: Vec<(String, BTreeMap<String, String>, f64)>,
}

/// Reads labels up to the brace that ends them.
fn labels(mut text: &str) -> (BTreeMap<String, String>, &str) {
    let mut labels = BTreeMap::new();
    loop {
        let (name, rest) = text.split_once("=\"").expect("a label");
        let (mut value, mut characters) = (String::new(), rest.char_indices());
        let end = loop {
            match characters.next().expect("an end of the value") {
                (at, '"') => break at,
                (_, '\\') => value.push(match characters.next().expect("an escape").1 {
                    'n' => '\n',
                    escaped @ ('\\' | '"') => escaped,
                    other => panic!("no escape: {other}"),
                }),
                (_, '\n') => panic!("a line in a label"),
                (_, character) => value.push(character),
            }
        };
        assert!(labels.insert(name.to_owned(), value).is_none(), "{name} is there twice");
        match rest[end + 1..].split_at(1) {
            (",", more) => text = more,
            ("}", more) => return (labels, more),
            (other, _) => panic!("`{other}` behind a label"),
        }
    }
}

/// Reads a text by a strict parser: what it does not expect fails.
fn read(text: &str, format: Format) -> BTreeMap<String, Read> {
    let (mut families, mut name) = (BTreeMap::<String, Read>::new(), String::new());
    let mut lines = text.strip_suffix('\n').expect("it ends with a line").split('\n').peekable();
    if format == Format::OpenMetrics {
        assert!(text.ends_with("\n# EOF\n"));
    }
    while let Some(line) = lines.next() {
        if line == "# EOF" {
            assert!(format == Format::OpenMetrics && lines.peek().is_none());
        } else if let Some(help) = line.strip_prefix("# HELP ") {
            let (of, help) = help.split_once(' ').expect("a help text");
            name = of.to_owned();
            let family = Read { help: help.to_owned(), ..Read::default() };
            assert!(families.insert(name.clone(), family).is_none(), "{name} is there twice");
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let kind = kind.strip_prefix(&format!("{name} ")).expect("the same family");
            families.get_mut(&name).expect("known").kind = kind.to_owned();
        } else if let Some(unit) = line.strip_prefix("# UNIT ") {
            assert_eq!(format, Format::OpenMetrics);
            let unit = unit.strip_prefix(&format!("{name} ")).expect("the same family");
            families.get_mut(&name).expect("known").unit = Some(unit.to_owned());
        } else {
            let rest = line.strip_prefix(&name).unwrap_or_else(|| panic!("{line} is not {name}'s"));
            let (suffix, rest) = rest.split_at(rest.find(['{', ' ']).expect("a value"));
            let (labels, value) = match rest.strip_prefix('{') {
                Some(rest) => labels(rest),
                None => (BTreeMap::new(), rest),
            };
            let value = value.strip_prefix(' ').expect("a space").parse().expect("a number");
            let family = families.get_mut(&name).expect("known");
            family.samples.push((suffix.to_owned(), labels, value));
        }
    }
    families
}

/// The name under which a family is queried, but for what histograms add.
fn queried(family: &Family) -> String {
    let suffix = match family.kind {
        Kind::Counter => "_total",
        Kind::Info => "_info",
        Kind::Gauge | Kind::Histogram => "",
    };
    format!("{}{suffix}", family.name)
}

#[test]
fn names_are_as_prometheus_has_them() {
    let is_name = |name: &str| {
        let legal = |c: char| c.is_ascii_lowercase() || c == '_' || c.is_ascii_digit();
        name.chars().all(legal) && name.starts_with(|c: char| c.is_ascii_lowercase())
    };
    let mut names = BTreeSet::new();
    for family in FAMILIES {
        let Family { name, help, .. } = family;
        assert!(is_name(name) && !name.contains("__"), "{name}");
        assert!(name.starts_with("millrace_") || name.starts_with("process_"), "{name}");
        for suffix in ["_total", "_info", "_bucket", "_sum", "_count", "_created"] {
            assert!(!name.ends_with(suffix), "{name}: the encoder adds that");
        }
        for unit in ["_ms", "_us", "_ns", "_milliseconds", "_kib", "_minutes"] {
            assert!(!name.contains(unit), "{name} has no base unit");
        }
        assert!(family.kind != Kind::Histogram || family.unit() == Some("seconds"), "{name}");
        assert!(help.ends_with('.') && help.len() > 10, "{name}: {help}");
        assert!(!help.contains(['\n', '\\', '|']), "{name}: {help}");
        assert!(family.labels.iter().all(|label| is_name(label) && *label != "le"), "{name}");
        assert!(names.insert(queried(family)), "{name} is there twice");
    }
}

#[test]
fn both_formats_are_well_formed_and_say_the_same() {
    let snapshot = busy(2, 2);
    let [open, text] = [Format::OpenMetrics, Format::Text].map(|format| {
        let mut read = read(&sheet(&snapshot).encode(format).expect("encodes"), format);
        for family in read.values_mut() {
            // The formats have the lines of a histogram in another order, and write bounds differently.
            for (_, labels, _) in &mut family.samples {
                if let Some(bound) = labels.get_mut("le").filter(|bound| *bound != "+Inf") {
                    *bound = bound.parse::<f64>().expect("a number").to_string();
                }
            }
            family.samples.sort_by(|one, other| (&one.0, &one.1).cmp(&(&other.0, &other.1)));
        }
        read
    });
    // Threads of other tests come and go.
    let is_of_threads = |name: &str| name.contains("thread");
    let [in_open, in_text] =
        [&open, &text].map(|read| read.keys().filter(|name| !is_of_threads(name)).count());
    assert_eq!(in_open, in_text);
    for family in FAMILIES {
        let is_of_threads = is_of_threads(family.name);
        if is_of_threads && !(open.contains_key(family.name) && text.contains_key(&queried(family)))
        {
            continue;
        }
        let read = &open[family.name];
        assert_eq!(read.kind, family.kind.name(), "{}", family.name);
        assert_eq!(read.unit.as_deref(), family.unit(), "{}", family.name);
        assert_eq!(read.help, family.help);
        let of_text = &text[&queried(family)];
        let expected = if family.kind == Kind::Info { "gauge" } else { family.kind.name() };
        assert_eq!((&*of_text.kind, &of_text.help), (expected, &read.help), "{}", family.name);
        if !is_of_threads {
            assert_eq!(read.samples.len(), of_text.samples.len());
        }
        let mut seen = BTreeSet::new();
        for ((suffix, labels, value), other) in read.samples.iter().zip(&of_text.samples) {
            if family.name != "process_resident_memory_bytes" && !is_of_threads {
                assert_eq!((labels, value), (&other.1, &other.2), "{}", family.name);
            }
            let allowed: &[&str] = match family.kind {
                Kind::Counter => &["_total"],
                Kind::Info => &["_info"],
                Kind::Gauge => &[""],
                Kind::Histogram => &["_bucket", "_sum", "_count"],
            };
            assert!(allowed.contains(&&**suffix), "{}{suffix}", family.name);
            let names: BTreeSet<_> = labels.keys().map(String::as_str).collect();
            let mut expected: BTreeSet<_> = family.labels.iter().copied().collect();
            expected.extend((suffix == "_bucket").then_some("le"));
            assert_eq!(names, expected, "{}", family.name);
            assert!(seen.insert((suffix, labels)), "{}: {labels:?} is there twice", family.name);
        }
    }
    let accepted = &open["millrace_connections_accepted"].samples;
    assert!(accepted.iter().any(|(_, labels, _)| labels["service"] == NASTY), "{accepted:?}");
}

#[test]
fn buckets_add_up_and_their_bounds_are_written_as_numbers_with_a_point() {
    let text = sheet(&busy(1, 1)).encode(Format::OpenMetrics).expect("encodes");
    let families = read(&text, Format::OpenMetrics);
    let samples = &families["millrace_message_acknowledge_seconds"].samples;
    let value = |wanted: &str| samples.iter().find(|one| one.0 == wanted).expect("there").2;
    assert_eq!((value("_count"), value("_sum")), (7.0, 200.015));
    let buckets: Vec<_> = samples.iter().filter(|one| one.0 == "_bucket").collect();
    assert!(buckets.is_sorted_by(|one, next| one.2 <= next.2));
    for (_, labels, count) in &buckets {
        let bound = &labels["le"];
        let bound: f64 = if bound == "+Inf" {
            f64::INFINITY
        } else {
            assert!(bound.contains('.'), "{bound}");
            bound.parse().expect("a number")
        };
        let expected = [(0.003, 5.0), (100.0, 2.0)];
        let expected = expected.iter().filter(|(took, _)| *took <= bound).map(|one| one.1);
        assert!((expected.sum::<f64>() - count).abs() < 0.1, "{bound} {count}");
    }
    assert_eq!(buckets.last().expect("some").1["le"], "+Inf");
}

#[test]
fn reasons_that_have_not_occurred_have_a_value() {
    let text = sheet(&Snapshot::default()).encode(Format::Text).expect("encodes");
    for line in [
        "millrace_connections_closed_total{reason=\"slow_reader\"} 0",
        "millrace_messages_refused_total{reason=\"too_large\"} 0",
        "millrace_dead_letters_total{kind=\"held_reply\",reason=\"hold_age\"} 0",
        "millrace_replies_undelivered_total{reason=\"former_run\"} 0",
        "millrace_connection_holds_total{bound=\"ring\"} 0",
    ] {
        assert!(text.contains(&format!("\n{line}\n")), "{line}");
    }
}

/// The tables of docs/metrics.md.
fn tables() -> String {
    let mut tables = String::new();
    for family in FAMILIES {
        if let Some((title, _)) = SECTIONS.iter().find(|(_, first)| *first == family.name) {
            let _ = write!(tables, "\n### {title}\n\n| metric | type | labels | meaning |\n");
            tables.push_str("|---|---|---|---|\n");
        }
        let labels: Vec<_> = family.labels.iter().map(|label| format!("`{label}`")).collect();
        let (name, kind) = (queried(family), family.kind.name());
        let _ = writeln!(tables, "| `{name}` | {kind} | {} | {} |", labels.join(", "), family.help);
    }
    tables
}

const SECTIONS: [(&str, &str); 8] = [
    ("The relay and its configuration", "millrace_build"),
    ("Connections", "millrace_connections"),
    ("Messages", "millrace_messages_received"),
    ("Kafka", "millrace_kafka_records_waiting"),
    ("Replies", "millrace_replies_received"),
    ("Servers", "millrace_server_clients"),
    ("Gateway", "millrace_gateway_packets"),
    ("Threads and memory", "millrace_workers"),
];

#[test]
fn each_metric_is_documented_as_it_is_served() {
    let document = include_str!("../../../../docs/metrics.md");
    let tables = tables();
    assert_eq!(tables.matches("\n### ").count(), SECTIONS.len());
    assert!(document.contains(&tables), "docs/metrics.md should have these tables:\n{tables}");
}

/// What dashboard and alert rules ask for is served. A running Prometheus tests their syntax.
#[test]
fn dashboard_and_rules_name_metrics_that_are_there() {
    let served: BTreeSet<String> = FAMILIES
        .iter()
        .flat_map(|family| {
            let suffixes: &[&str] = match family.kind {
                Kind::Histogram => &["_bucket", "_sum", "_count"],
                _ => &[""],
            };
            suffixes.iter().map(|suffix| format!("{}{suffix}", queried(family)))
        })
        .collect();
    for text in [
        include_str!("../../../../dist/grafana/millrace.json"),
        include_str!("../../../../dist/prometheus/millrace.rules.yml"),
    ] {
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        let names: BTreeSet<_> = words
            .filter(|word| word.starts_with("millrace_") || word.starts_with("process_"))
            .collect();
        assert!(names.len() > 15, "{names:?}");
        for name in names {
            assert!(served.contains(name), "{name} is not served");
        }
    }
}

#[test]
fn a_hundred_services_take_little_time_and_space() {
    let snapshot = busy(100, 10);
    let began = Instant::now();
    let text = sheet(&snapshot).encode(Format::OpenMetrics).expect("encodes");
    let took = began.elapsed();
    println!("100 services, 1000 servers: {} bytes in {took:?}", text.len());
    assert!(text.len() < 1 << 20, "{} bytes", text.len());
}

#[derive(Clone)]
struct Stub;

impl http::Source for Stub {
    async fn metrics(&self, format: Format) -> Option<String> {
        Some(format!("{format:?}\n"))
    }
}

async fn ask(address: std::net::SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    stream.write_all(request.as_bytes()).await.expect("it reads");
    let mut answer = String::new();
    // It may be cut short by a reset when the request was not read to its end.
    let _ = stream.read_to_string(&mut answer).await;
    answer
}

#[tokio::test]
async fn a_scraper_gets_its_format_and_everybody_else_words() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let server = tokio::spawn(http::serve(listener, Stub));
    let host = "Host: x\r\n";
    let text = ask(address, &format!("GET /metrics HTTP/1.1\r\n{host}\r\n")).await;
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.ends_with("\r\n\r\nText\n"), "{text}");
    assert!(text.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{text}");
    let accept = "Accept: application/openmetrics-text;version=1.0.0\r\n";
    let open = ask(address, &format!("GET /metrics?x=1 HTTP/1.1\r\n{host}{accept}\r\n")).await;
    assert!(open.contains("content-type: application/openmetrics-text; version=1.0.0"), "{open}");
    assert!(open.ends_with("\r\n\r\nOpenMetrics\n"), "{open}");
    let head = ask(address, &format!("HEAD /metrics HTTP/1.1\r\n{host}\r\n")).await;
    assert!(head.contains("content-length: 5\r\n") && head.ends_with("\r\n\r\n"), "{head}");
    let other = ask(address, &format!("GET / HTTP/1.1\r\n{host}\r\n")).await;
    assert!(other.starts_with("HTTP/1.1 404 ") && other.contains("are at /metrics"), "{other}");
    let post = ask(address, &format!("POST /metrics HTTP/1.1\r\n{host}\r\n")).await;
    assert!(post.starts_with("HTTP/1.1 405 ") && post.contains("use GET"), "{post}");
    assert!(post.contains("allow: GET, HEAD\r\n"), "{post}");
    let long = format!("GET /metrics HTTP/1.1\r\n{host}X: {}\r\n\r\n", "x".repeat(100_000));
    let long = ask(address, &long).await;
    assert!(long.is_empty() || long.starts_with("HTTP/1.1 431 "), "{long}");
    let nonsense = ask(address, "\u{16}\u{3}\u{1} no HTTP\r\n\r\n").await;
    assert!(nonsense.starts_with("HTTP/1.1 400 "), "{nonsense}");
    server.abort();
}

/// More clients than may be served at once, who say nothing, keep nobody from the metrics for long.
#[tokio::test(start_paused = true)]
async fn idle_clients_are_sent_away() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let server = tokio::spawn(http::serve(listener, Stub));
    let mut idle = Vec::new();
    for _ in 0..40 {
        idle.push(TcpStream::connect(address).await.expect("it listens"));
    }
    let text = ask(address, "GET /metrics HTTP/1.0\r\n\r\n").await;
    assert!(text.starts_with("HTTP/1.0 200 OK\r\n"), "{text}");
    server.abort();
}
