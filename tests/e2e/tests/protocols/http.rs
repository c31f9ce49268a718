//! HTTP by way of Kafka, with clients that know nothing of it: curl, wrk, sockets.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use millrace_harness::clients::web::{Site, curl, speak_http};
use millrace_harness::net::uninterrupted;
use millrace_harness::relay::direct::Direct;
use millrace_harness::relay::instance::Stats;
use millrace_harness::servers::by_hand::HandServer;
use millrace_harness::system::process::{Process, run_ok, wait_until};
use millrace_relay::config::Config;

const PATIENCE: Duration = Duration::from_secs(20);

/// A relay with a site behind it.
struct Web {
    direct: Direct,
    site: Site,
    at: SocketAddr,
}

impl Web {
    fn start(name: &str, adjust: impl FnOnce(&mut Config)) -> Self {
        let mut direct = Direct::build(name, |config| {
            speak_http(&mut config.services[0]);
            adjust(config);
        })
        .unwrap();
        direct.instance.start().unwrap();
        let at =
            SocketAddr::from((Ipv4Addr::LOCALHOST, direct.instance.config.services[0].port.first));
        Self { site: Site::new(name).unwrap(), direct, at }
    }

    fn serve(&self) -> Process {
        self.site.serve(&self.direct.brokers, 0, self.direct.topics.prefix()).unwrap()
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.at).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// All that comes for some bytes until the relay ends the connection.
    fn exchange(&self, request: &[u8]) -> String {
        let mut stream = self.connect();
        stream.write_all(request).unwrap();
        read_to_end(&mut stream)
    }

    fn closed(&self, reason: &str) -> u64 {
        self.direct.instance.stats().unwrap().count_by("connections_closed", reason).unwrap()
    }
}

fn read_to_end(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn a_site_is_served_byte_for_byte() {
    let web = Web::start("site", |_| {});
    let _server = web.serve();
    web.site.check_with_curl(Command::new("curl"), web.at).unwrap();

    let url = |path: &str| format!("http://{}/{path}", web.at);
    assert_eq!(curl(&["--range", "0-14", &url("index.html")]).unwrap(), "<!DOCTYPE html>");
    assert_eq!(curl(&["--range", "-8", &url("index.html")]).unwrap().trim(), "</html>");
    let head = curl(&["--head", &url("size-1048576")]).unwrap().to_lowercase();
    assert!(head.starts_with("http/1.1 200 ok"), "{head}");
    assert!(head.contains("content-length: 1048576\r\n") && head.contains("date: "), "{head}");
    let status = ["-o", "/dev/null", "-w", "%{http_code}"];
    let small = url("size-1");
    let args = [&["--range", "5-9"][..], &status, &[&small]].concat();
    assert!(curl(&args).unwrap_err().to_string().contains("416"));
    assert!(curl(&[&url("none")]).unwrap_err().to_string().contains("404"));
    for version in ["--http1.1", "--http1.0"] {
        let events = curl(&[version, &url("events")]).unwrap();
        assert_eq!(events.trim_end(), "data: 0\n\ndata: 1\n\ndata: 2", "{version}");
    }

    // There and back: in one record and in parts, by length and in chunks, with and without leave.
    let got = web.site.path("echo.got");
    for size in ["size-4095", "size-65536", "size-10485760"] {
        for header in ["X: y", "Transfer-Encoding: chunked", "Expect: 100-continue", "Expect:"] {
            let body = format!("@{}", web.site.path(size).display());
            let args = ["-o", got.to_str().unwrap(), "-H", header, "--data-binary", &body];
            curl(&[&args[..], &[&url("echo")]].concat()).unwrap();
            assert!(std::fs::read(&got).unwrap() == web.site.files[size], "{size}, {header}");
        }
    }
    let counted = web.direct.instance.stats().unwrap();
    assert_eq!(counted.total("replies_undelivered").unwrap(), 0, "{:?}", counted.0);
}

#[test]
fn who_reads_slowly_gets_large_files_one_after_the_other() {
    const FILE: &str = "size-10485760";
    const FILES: usize = 3;
    let web = Web::start("slowly", |config| {
        // The later requests wait for longer, which is not their server's fault.
        config.services[0].http.request_timeout_ms = 3000;
    });
    let _server = web.serve();
    let mut stream = web.connect();
    for _ in 0..FILES {
        write!(stream, "GET /{FILE} HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    }
    let counted = || web.direct.instance.stats().unwrap().count("replies_backlog").unwrap();
    wait_until(PATIENCE, "a part of them to wait in Kafka", || Ok(counted() > 0)).unwrap();
    thread::sleep(Duration::from_secs(4));
    let (mut answer, mut buffer) = (Vec::new(), vec![0; 256 << 10]);
    let head_end = |answer: &[u8]| answer.windows(4).position(|end| end == b"\r\n\r\n");
    for number in 0..FILES {
        let content = &web.site.files[FILE];
        while head_end(&answer).is_none_or(|at| answer.len() < at + 4 + content.len()) {
            let count = uninterrupted(|| stream.read(&mut buffer)).unwrap();
            assert!(count > 0, "file {number}: {} bytes came", answer.len());
            answer.extend_from_slice(&buffer[..count]);
            thread::sleep(Duration::from_millis(10));
        }
        let body = head_end(&answer).expect("just seen") + 4;
        assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"), "file {number}");
        assert!(answer[body..].starts_with(content), "file {number} is another");
        answer.drain(..body + content.len());
    }
    wait_until(PATIENCE, "nothing to wait", || Ok(counted() == 0)).unwrap();
}

#[test]
fn requests_in_one_segment_are_answered_in_order() {
    let web = Web::start("pipeline", |_| {});
    let _server = web.serve();
    let mut requests = String::new();
    for number in 0..40 {
        let body = format!("number {number}");
        let length = body.len();
        let head = format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\n");
        requests.extend([head.as_str(), body.as_str()]);
    }
    requests += "GET /none HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
    let answer = web.exchange(requests.as_bytes());
    let mut places = (0..40).map(|number| answer.find(&format!("\r\n\r\nnumber {number}")));
    assert!(places.all(|place| place.is_some()), "{answer}");
    let order: Vec<_> = (0..40).map(|number| answer.find(&format!("\nnumber {number}"))).collect();
    assert!(order.is_sorted(), "{answer}");
    assert!(answer.contains("404 Not Found") && answer.contains("connection: close"), "{answer}");
}

#[test]
fn many_clients_are_served() {
    let web = Web::start("wrk", |_| {});
    let _server = web.serve();
    let mut wrk = Command::new("wrk");
    wrk.args(["--threads", "1", "--connections", "50", "--duration", "3s", "--timeout", "20s"]);
    let report = run_ok("wrk", wrk.arg(format!("http://{}/style.css", web.at)), PATIENCE).unwrap();
    let requests = report.stdout.lines().find_map(|line| line.trim().split_once(" requests in "));
    let requests: u64 = requests.expect("a report").0.parse().unwrap();
    assert!(requests > 50, "{}", report.stdout);
    assert!(
        !report.stdout.contains("errors") && !report.stdout.contains("Non-2xx"),
        "{}",
        report.stdout
    );
}

#[test]
fn errors_are_told_and_reach_their_clients() {
    let web = Web::start("errors", |config| {
        config.services[0].handshake_timeout_ms = 1000;
        config.services[0].http.request_timeout_ms = 1000;
        config.services[0].http.body_timeout_ms = 1000;
        config.services[0].http.max_body_bytes = 1000;
        config.relay.reply_timeout_ms = 5000;
    });
    // Nobody serves.
    for (request, status, reason) in [
        ("GET / HTTP/1.1\r\nHost: h\r\n\r\n", "504 Gateway Timeout", "server_failed"),
        ("GET / HTTP/1.1\r\nHo", "408 Request Timeout", "handshake_timeout"),
        (
            "PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nabc",
            "408 Request Timeout",
            "idle_timeout",
        ),
        ("GET / HTTP/1.1\r\nX: y\r\n\r\n", "400 Bad Request", "malformed"),
        ("GET / HTTP/3.0\r\nX: y\r\n\r\n", "505 HTTP Version", "unsupported"),
    ] {
        let before = web.closed(reason);
        let answer = web.exchange(request.as_bytes());
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{request:?}: {answer}");
        assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
        assert_eq!(web.closed(reason), before + 1, "{request:?}");
    }
    // A client that goes on sending is not reset before it has read why not.
    for _ in 0..5 {
        let mut stream = web.connect();
        stream.write_all(b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 1001\r\n\r\n").unwrap();
        for _ in 0..32 {
            stream.write_all(&vec![b'x'; 65_536]).unwrap();
        }
        let answer = read_to_end(&mut stream);
        assert!(answer.starts_with("HTTP/1.1 413 Content Too Large"), "{answer}");
    }
    // Its connection is given up even if it never ends.
    let mut stream = web.connect();
    stream.write_all(b"nonsense\r\n\r\n").unwrap();
    assert!(read_to_end(&mut stream).starts_with("HTTP/1.1 400 "));
    let begun = Instant::now();
    wait_until(PATIENCE, "the connection to be given up", || Ok(stream.write_all(b"x").is_err()))
        .unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(1), "it is given some time");
}

#[test]
fn who_sends_for_long_what_is_not_read_gets_its_answer() {
    let web = Web::start("sender", |config| {
        config.services[0].http.max_body_bytes = 1000;
        config.relay.half_close_ms = 500;
    });
    let mut stream = web.connect();
    stream.write_all(b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999\r\n\r\n").unwrap();
    let (begun, piece) = (Instant::now(), vec![b'x'; 65_536]);
    while begun.elapsed() < Duration::from_secs(3) {
        stream.write_all(&piece).unwrap();
        thread::sleep(Duration::from_millis(50));
    }
    let answer = read_to_end(&mut stream);
    assert!(answer.starts_with("HTTP/1.1 413 Content Too Large"), "{answer}");
}

#[test]
fn what_heads_say_reaches_the_other_side_whole() {
    let web = Web::start("fields", |_| {});
    let (brokers, prefix) = (&web.direct.brokers, web.direct.topics.prefix());
    let server = HandServer::on(brokers, prefix, &[0]).unwrap();
    let mut stream = web.connect();
    let name = "x-".to_owned() + &"long".repeat(100);
    let head = format!("GET / HTTP/1.1\r\nHost: h\r\n{name}: y\r\nConnection: close\r\nX-Old: caf");
    stream.write_all(&[head.as_bytes(), b"\xe9\r\n\r\n"].concat()).unwrap();
    // It reads nothing but text.
    let request = server.next("the request", |record| record.kind() == "message").unwrap();
    assert_eq!(request.header("http.header.x-old"), "caf\u{e9}");
    assert_eq!(request.header(&format!("http.header.{name}")), "y");
    let cookies: Vec<_> = (0..140).map(|number| format!("c={number}")).collect();
    let mut headers = vec![("http.request", &b"1"[..])];
    headers.extend(cookies.iter().map(|one| ("http.header.set-cookie", one.as_bytes())));
    server.reply_with(&request, Some(b"body"), &headers).unwrap();
    let answer = read_to_end(&mut stream);
    for cookie in &cookies {
        assert!(answer.contains(&format!("\r\nset-cookie: {cookie}\r\n")), "{cookie}: {answer}");
    }
}

#[test]
fn a_response_that_is_not_read_is_cut_off_at_the_bound_and_stops_nobody() {
    const PARTS: usize = 40;
    const LIMIT: usize = 1 << 20;
    let part = vec![b'p'; 256 << 10];
    let web = Web::start("large", |config| {
        config.relay.reply_limit_bytes = LIMIT;
        config.relay.reply_backlog_bytes = 0;
    });
    let (brokers, prefix) = (&web.direct.brokers, web.direct.topics.prefix());
    let server = HandServer::on(brokers, prefix, &[0]).unwrap();
    let mut slow = web.connect();
    slow.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    let request = server.next("the request", |record| record.kind() == "message").unwrap();
    for number in 0..PARTS {
        server.reply_part(&request, (number, PARTS), &part).unwrap();
        if number == 0 {
            // All at once would be cut before anything of it was sent.
            assert!(uninterrupted(|| slow.peek(&mut [0])).unwrap() > 0, "it has the head");
        }
    }
    let mut other = web.connect();
    other.write_all(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").unwrap();
    let request = server.next("the other", |record| record.kind() == "message").unwrap();
    server.reply_with(&request, Some(b"at once"), &[("http.request", b"1")]).unwrap();
    assert!(read_to_end(&mut other).ends_with("at once"));

    wait_until(PATIENCE, "the slow one to be ended", || Ok(web.closed("slow_reader") == 1))
        .unwrap();
    let stats = web.direct.instance.stats().unwrap();
    assert_eq!(stats.count("connection_bytes").unwrap(), 0, "{:?}", stats.0);
    // It has a part, and is told by its length that it is not all.
    let mut answer = Vec::new();
    let end = slow.read_to_end(&mut answer);
    let got = answer.windows(4).position(|end| end == b"\r\n\r\n").map(|at| answer.len() - at - 4);
    assert!(got.unwrap() < PARTS * part.len(), "{end:?}");
}

#[test]
fn who_has_ended_its_side_is_answered_in_the_time_that_others_are() {
    let web = Web::start("halfclosed", |config| config.relay.half_close_ms = 100);
    let mut stream = web.connect();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let (brokers, prefix) = (&web.direct.brokers, web.direct.topics.prefix());
    let server = HandServer::on(brokers, prefix, &[0]).unwrap();
    let request = server.next("the request", |record| record.kind() == "message").unwrap();
    // Much longer than replies are sent to who waits for none.
    thread::sleep(Duration::from_secs(1));
    server.reply_with(&request, Some(b"late"), &[("http.request", b"1")]).unwrap();
    let answer = read_to_end(&mut stream);
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("late"), "{answer}");
    wait_until(PATIENCE, "the end to be counted", || Ok(web.closed("client_closed") == 1)).unwrap();
}

#[test]
fn a_client_that_leaves_a_response_is_noticed() {
    let web = Web::start("leaving", |config| {
        config.services[0].http.request_timeout_ms = 2000;
        config.services[0].http.max_pipelined = 2;
    });
    let (brokers, prefix) = (&web.direct.brokers, web.direct.topics.prefix());
    let server = HandServer::on(brokers, prefix, &[0]).unwrap();
    let events = "GET /events HTTP/1.1\r\nHost: h\r\n";
    // As browsers leave it, and others: by FIN, by RST; with more requests under way.
    for (request, resets, reason) in [
        (format!("{events}\r\n"), false, "end_of_stream"),
        (format!("{events}Connection: close\r\n\r\n"), false, "end_of_stream"),
        (format!("{events}\r\n").repeat(5), false, "end_of_stream"),
        (format!("{events}\r\n"), true, "connection_failed"),
        (format!("{events}Connection: close\r\n\r\n"), true, "connection_failed"),
        (format!("{events}\r\n").repeat(5), true, "connection_failed"),
    ] {
        let before = web.closed(reason);
        let mut stream = web.connect();
        stream.write_all(request.as_bytes()).unwrap();
        let record = server.next("the request", |record| record.kind() == "message").unwrap();
        let part = [("http.request", &b"1"[..]), ("http.part", b"0")];
        server.reply_with(&record, Some(b"data: 1\n\n"), &part).unwrap();
        let mut answer = [0; 4096];
        let length = uninterrupted(|| stream.read(&mut answer)).unwrap();
        assert!(answer[..length].starts_with(b"HTTP/1.1 200 OK"));
        if resets {
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
        }
        drop(stream);
        let close = server
            .next("the record of its end", |end| end.kind() == "close" && end.key == record.key)
            .unwrap();
        assert_eq!(close.header("reason"), reason, "{request:?}, {resets}");
        assert_eq!(web.closed(reason), before + 1);
        assert_eq!(web.direct.instance.stats().unwrap().count("connections").unwrap(), 0);
    }
}

#[test]
fn without_a_server_and_at_a_stop_clients_are_told() {
    let web = Web::start("nobody", |config| {
        config.kafka.uplink_partitions = 2;
        config.services[0].servers.clear();
    });
    let answer = web.exchange(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 503 Service Unavailable"), "{answer}");
    assert!(answer.contains("\r\nretry-after: "), "{answer}");

    let mut web = Web::start("stopped", |_| {});
    let mut stream = web.connect();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    wait_until(PATIENCE, "the request to be read", || {
        Ok(web.direct.instance.stats()?.count("messages_received")? == 1)
    })
    .unwrap();
    let _idle = web.connect();
    wait_until(PATIENCE, "both connections", || {
        Ok(web.direct.instance.stats()?.count("connections")? == 2)
    })
    .unwrap();
    let stopped = Stats(web.direct.instance.stop().unwrap());
    assert!(read_to_end(&mut stream).starts_with("HTTP/1.1 503 "));
    let count = stopped.count_by("connections_closed", "relay_stop").unwrap();
    assert_eq!(count, 2, "{:?}", stopped.0);
}
