mod leaving;
mod pipelined;
mod refusals;

use proptest::prelude::*;

use crate::ProtocolKind;
use crate::script::{Action, Script};
use millrace_model::{Refusal, RelayId, ReplyOrigin};

use super::*;

/// A connection, and what it has asked for.
struct Line {
    http: Http,
    script: Script,
    now: Instant,
    offset: i64,
}

impl Line {
    /// Parts have 8 bytes, bodies 20, heads 256; three requests wait.
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(adjust: impl FnOnce(&mut Settings)) -> Self {
        let mut service = Settings::new(ProtocolKind::Http);
        service.max_message_bytes = 8;
        service.http.max_body_bytes = 20;
        service.http.max_head_bytes = 256;
        service.http.max_fields = 10;
        service.http.max_pipelined = 3;
        service.http.max_kept_bytes = 1000;
        adjust(&mut service);
        let now = Instant::now();
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let settings = Arc::new(HttpSettings::new(&service, now, time));
        Self { http: Http::new(settings, now), script: Script::default(), now, offset: 0 }
    }

    fn receive(&mut self, input: &[u8]) {
        if !self.script.is_closed() {
            self.http.receive(input, self.now, &mut self.script);
        }
    }

    fn reply(&mut self, headers: &[(&str, &str)], payload: &str) -> Result<Sending, Unencodable> {
        let mut list = HeaderList::default();
        for (name, value) in headers {
            assert!(list.push(name.as_bytes(), value.as_bytes()));
        }
        let origin = ReplyOrigin { relay: RelayId(0), offset: self.offset };
        self.offset += 1;
        let reply = Reply {
            origin,
            headers: list.headers(),
            payload: payload.as_bytes(),
            waited: Duration::ZERO,
            held: false,
        };
        self.http.reply(reply, self.now, &mut self.script)
    }

    fn after(&mut self, milliseconds: u64) {
        self.now += Duration::from_millis(milliseconds);
        if self.http.deadline().is_some_and(|deadline| deadline <= self.now) {
            self.http.elapsed(self.now, &mut self.script);
        }
    }

    /// What was sent since the last time, without the date, and with `|` for the ends of lines.
    fn sent(&mut self) -> String {
        let sent = String::from_utf8(std::mem::take(&mut self.script.output)).unwrap();
        sent.replace("date: Sun, 06 Nov 1994 08:49:37 GMT\r\n", "").replace("\r\n", "|")
    }

    /// The records since the last time: headers without their prefix, and the value.
    fn records(&mut self) -> Vec<String> {
        let actions = self.script.take().0.into_iter();
        let messages = actions.filter_map(|action| match action {
            Action::Message { headers, payload } => Some((headers, payload)),
            _ => None,
        });
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        messages
            .map(|(headers, payload)| {
                let headers = headers.iter().map(|(name, value)| {
                    format!("{}={} ", name.strip_prefix("http.").unwrap(), text(value))
                });
                headers.collect::<String>() + &text(&payload)
            })
            .collect()
    }

    fn closed(&self) -> Option<CloseReason> {
        self.script.actions.iter().find_map(|action| match action {
            Action::Close(reason) => Some(*reason),
            _ => None,
        })
    }
}

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n";

#[test]
fn a_request_is_a_record_and_a_reply_a_response() {
    let mut line = Line::new();
    line.receive(
        b"POST /a?b HTTP/1.1\r\nHost: h:80\r\nX-One:  a \r\nx-one: b\r\nContent-Length: 3\r\n\
          Connection: keep-alive, x-hop\r\nX-Hop: 1\r\nTE: trailers\r\n\r\nabc",
    );
    assert_eq!(
        line.records(),
        ["request=1 method=POST target=/a?b version=1.1 header.host=h:80 header.x-one=a \
          header.x-one=b header.content-length=3 abc"]
    );
    let headers =
        [("http.request", "1"), ("http.header.X-Two", "c"), ("http.header.connection", "close")];
    assert_eq!(line.reply(&headers, "fine"), Ok(Sending::WithOutput));
    assert_eq!(line.sent(), "HTTP/1.1 200 OK|X-Two: c|content-length: 4||fine");
    assert_eq!(line.closed(), None);
    line.receive(GET);
    assert_eq!(line.records(), ["request=2 method=GET target=/ version=1.1 header.host=h "]);
    assert_eq!(line.reply(&[("http.request", "1")], "again"), Err(Unencodable));
    assert_eq!(line.reply(&[("http.request", "3")], "early"), Err(Unencodable));
    assert_eq!(line.reply(&[], "to none"), Err(Unencodable));
    let headers = [("http.request", "2"), ("http.status", "404"), ("close", "1")];
    assert_eq!(line.reply(&headers, ""), Ok(Sending::WithOutput));
    assert_eq!(line.sent(), "HTTP/1.1 404 Not Found|content-length: 0|connection: close||");
    assert_eq!(line.closed(), Some(CloseReason::ClosedByServer));
}

#[test]
fn the_values_of_fields_are_text_and_none_is_left_out() {
    let mut line = Line::new();
    line.receive(b"GET / HTTP/1.1\r\nHost: h\r\nX: caf\xe9\r\nY: caf\xc3\xa9\r\n\r\n");
    let records = line.script.take().0;
    let Action::Message { headers, .. } = &records[1] else { panic!("{records:?}") };
    for name in ["http.header.x", "http.header.y"] {
        let value = headers.iter().find(|(other, _)| other == name).map(|(_, value)| &value[..]);
        assert_eq!(value, Some("caf\u{e9}".as_bytes()), "{name}");
    }
    let cookies: Vec<_> = (0..140).map(|number| format!("c={number}")).collect();
    let mut reply = vec![("http.request", "1")];
    reply.extend(cookies.iter().map(|cookie| ("http.header.set-cookie", &cookie[..])));
    line.reply(&reply, "").unwrap();
    let sent = line.sent();
    assert!(cookies.iter().all(|cookie| sent.contains(&format!("|set-cookie: {cookie}|"))));
}

#[test]
fn large_bodies_come_in_parts() {
    let first = "request=1 method=PUT target=/ version=1.1 header.host=h ";
    for (body, records) in [
        ("8\r\n12345678\r\n0\r\n\r\n", vec![format!("{first}12345678")]),
        (
            "5;a=\"b\"\r\n12345\r\n00A\r\n6789abcdef\r\n2\r\ngh\r\n0\r\nX-Sum: 1\r\n\r\n",
            vec![
                format!("{first}part=0 12345678"),
                "request=1 part=1 9abcdefg".to_owned(),
                "request=1 part=2 last=1 h".to_owned(),
            ],
        ),
    ] {
        let mut line = Line::new();
        line.receive(b"PUT / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: Chunked\r\n\r\n");
        line.receive(body.as_bytes());
        assert_eq!(line.records(), records);
        assert!(line.http.kept_bytes() < 8);
    }
}

#[test]
fn replies_are_sent_in_the_order_of_the_requests() {
    let mut line = Line::new();
    line.receive(&GET.repeat(5));
    assert_eq!(line.records().len(), 3, "as many as may wait");
    assert_eq!(line.http.kept_bytes(), 2 * GET.len(), "the others are read ahead");
    assert_eq!(line.reply(&[("http.request", "3")], "c"), Ok(Sending::Kept));
    assert_eq!(line.reply(&[("http.request", "2")], "b"), Ok(Sending::Kept));
    assert_eq!(line.sent(), "");
    assert_eq!(line.reply(&[("http.request", "1")], "a"), Ok(Sending::WithOutput));
    let one = |letter| format!("HTTP/1.1 200 OK|content-length: 1||{letter}");
    assert_eq!(line.sent(), one("a") + &one("b") + &one("c"));
    let settled: Vec<_> =
        line.script.actions.iter().filter(|action| matches!(action, Action::Release(_))).collect();
    let origin = |offset| Action::Release(ReplyOrigin { relay: RelayId(0), offset });
    assert_eq!(settled, [&origin(1), &origin(0)]);
    assert_eq!(line.records().len(), 2, "the backlog");
    assert_eq!(line.http.kept_bytes(), 0);
    line.reply(&[("http.request", "5")], &"x".repeat(1000)).unwrap();
    assert_eq!(line.closed(), Some(CloseReason::SlowReader), "too much is kept");
}

#[test]
fn a_reply_in_parts_is_a_stream() {
    let part = |line: &mut Line, number: &str, last: bool, payload: &str| {
        let headers = [("http.request", "1"), ("http.part", number), ("http.last", "")];
        line.reply(&headers[..2 + usize::from(last)], payload)
    };
    let mut line = Line::new();
    line.receive(GET);
    for (number, payload) in [("0", "abc"), ("0", "abc"), ("1", ""), ("2", "0123456789")] {
        part(&mut line, number, false, payload).unwrap();
    }
    part(&mut line, "3", true, "d").unwrap();
    assert_eq!(
        line.sent(),
        "HTTP/1.1 200 OK|transfer-encoding: chunked||3|abc|a|0123456789|1|d|0||"
    );
    assert_eq!(line.closed(), None);

    let mut old = Line::new();
    old.receive(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    part(&mut old, "0", false, "abc").unwrap();
    part(&mut old, "1", true, "d").unwrap();
    assert_eq!(old.sent(), "HTTP/1.1 200 OK|connection: close||abcd");
    assert!(old.closed().is_some());

    let mut gap = Line::new();
    gap.receive(GET);
    part(&mut gap, "0", false, "abc").unwrap();
    assert_eq!(part(&mut gap, "2", true, "d"), Err(Unencodable));
    assert!(gap.sent().ends_with("abc|"), "the client learns that it is not whole");
    assert_eq!(gap.closed(), Some(CloseReason::ServerFailed));
}

#[test]
fn a_stream_of_known_length_is_watched() {
    for (second, sent, end) in [
        ("def", "def", None),
        ("de", "de", Some(CloseReason::ServerFailed)),
        ("defg", "", Some(CloseReason::ServerFailed)),
    ] {
        let mut line = Line::new();
        line.receive(GET);
        let length = ("http.header.Content-Length", "6");
        line.reply(&[("http.request", "1"), ("http.part", "0"), length], "abc").unwrap();
        let last = [("http.request", "1"), ("http.part", "1"), ("http.last", "1")];
        assert_eq!(line.reply(&last, second).is_ok(), second.len() <= 3);
        assert_eq!(line.sent(), format!("HTTP/1.1 200 OK|content-length: 6||abc{sent}"));
        assert_eq!(line.closed(), end);
    }
}

#[test]
fn responses_without_body_have_none() {
    let request = ("http.request", "1");
    for (method, headers, payload, sent) in [
        ("HEAD", vec![], "page", "200 OK|content-length: 4||"),
        ("HEAD", vec![("http.header.content-length", "9")], "", "200 OK|content-length: 9||"),
        ("HEAD", vec![], "", "200 OK||"),
        ("GET", vec![("http.status", "204")], "", "204 No Content||"),
        ("GET", vec![("http.status", "304")], "", "304 Not Modified||"),
        (
            "GET",
            vec![("http.status", "103"), ("http.header.link", "a")],
            "",
            "103 Early Hints|link: a||",
        ),
    ] {
        let mut line = Line::new();
        line.receive(format!("{method} / HTTP/1.1\r\nHost: h\r\n\r\n").as_bytes());
        line.reply(&[&[request], headers.as_slice()].concat(), payload).unwrap();
        assert_eq!(line.sent(), format!("HTTP/1.1 {sent}"));
        assert_eq!(line.closed(), None);
    }
}

#[test]
fn a_reply_that_is_none_of_http_is_a_bad_gateway() {
    for header in [
        ("http.status", "99"),
        ("http.status", "2000"),
        ("http.status", "101"),
        ("http.status", "204"),
        ("http.header.a b", "c"),
        ("http.header.", "c"),
        ("http.header.a", "b\r\nc: d"),
        ("http.header.a", "\u{0}"),
        ("http.header.content-length", "2"),
        ("http.header.content-length", "+4"),
    ] {
        let mut line = Line::new();
        line.receive(GET);
        assert_eq!(line.reply(&[("http.request", "1"), header], "page"), Err(Unencodable));
        assert!(line.sent().starts_with("HTTP/1.1 502 Bad Gateway|"), "{header:?}");
        assert_eq!(line.closed(), Some(CloseReason::ServerFailed));
    }
}

#[test]
fn an_error_waits_for_the_replies_before_it() {
    let mut line = Line::new();
    line.receive(GET);
    line.receive(b"nonsense\r\n\r\n");
    let held = line.http.kept_bytes();
    line.receive(GET);
    assert_eq!(line.http.kept_bytes(), held, "what follows it is thrown away");
    assert_eq!(line.sent(), "");
    line.reply(&[("http.request", "1")], "a").unwrap();
    let sent = line.sent();
    assert!(sent.starts_with("HTTP/1.1 200 OK|content-length: 1||aHTTP/1.1 400 Bad"), "{sent}");
    assert_eq!(line.closed(), Some(CloseReason::Malformed));
    assert_eq!(line.records().len(), 1);
}

#[test]
fn leave_to_go_on_is_given_in_order() {
    let mut line = Line::new();
    line.receive(GET);
    line.receive(b"PUT / HTTP/1.1\r\nHost: h\r\nExpect: 100-Continue\r\nContent-Length: 2\r\n\r\n");
    assert_eq!(line.sent(), "");
    line.reply(&[("http.request", "1")], "a").unwrap();
    assert_eq!(line.sent(), "HTTP/1.1 200 OK|content-length: 1||aHTTP/1.1 100 Continue||");
    line.receive(b"ab");
    assert_eq!(line.records().len(), 2);
    line.reply(&[("http.request", "2")], "").unwrap();
    assert_eq!(line.sent(), "HTTP/1.1 200 OK|content-length: 0||");
}

#[test]
fn a_request_may_be_answered_before_it_is_whole() {
    let mut line = Line::new();
    line.receive(b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 20\r\n\r\n0123456789");
    assert_eq!(line.records().len(), 1, "a part");
    line.reply(&[("http.request", "1"), ("http.status", "401")], "").unwrap();
    assert_eq!(line.sent(), "HTTP/1.1 401 Unauthorized|content-length: 0|connection: close||");
    assert!(line.closed().is_some());
}

#[test]
fn connections_stay_as_long_as_the_client_wants() {
    for (request, kept) in [
        ("GET / HTTP/1.1\r\nHost: h\r\n\r\n", true),
        ("GET / HTTP/1.1\r\nHost: h\r\nConnection: x, Close\r\n\r\n", false),
        ("GET / HTTP/1.0\r\n\r\n", false),
        ("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", true),
    ] {
        let mut line = Line::new();
        line.receive(request.as_bytes());
        line.receive(GET);
        assert_eq!(line.records().len(), 1 + usize::from(kept), "{request:?}");
        line.reply(&[("http.request", "1")], "").unwrap();
        assert_eq!(line.closed(), (!kept).then_some(CloseReason::ClientClosed));
        let sent = line.sent();
        assert_eq!(sent.contains("connection: close"), !kept);
        assert_eq!(sent.contains("connection: keep-alive"), kept && request.contains("1.0"));
    }
}

#[test]
fn time_runs_out() {
    let mut quiet = Line::new();
    quiet.after(9999);
    assert_eq!(quiet.closed(), None);
    quiet.after(1);
    assert_eq!(quiet.closed(), Some(CloseReason::HandshakeTimeout));
    assert_eq!(quiet.sent(), "");

    let mut slow = Line::new();
    for byte in b"GET / HT" {
        slow.after(2000);
        slow.receive(&[*byte]);
    }
    assert_eq!(slow.closed(), Some(CloseReason::HandshakeTimeout), "from the first byte");
    assert!(slow.sent().starts_with("HTTP/1.1 408 "));

    let mut body = Line::new();
    body.receive(b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n");
    body.after(9000);
    body.receive(b"a");
    body.after(9000);
    assert_eq!(body.closed(), None);
    body.after(1000);
    assert_eq!(body.closed(), Some(CloseReason::IdleTimeout));
    assert!(body.sent().starts_with("HTTP/1.1 408 "));

    let mut held = Line::new();
    held.receive(b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n");
    held.now += Duration::from_mins(1);
    held.http.not_read(held.now);
    held.after(9999);
    assert_eq!(held.closed(), None, "the time in which nothing was read does not count");
    held.after(1);
    assert_eq!(held.closed(), Some(CloseReason::IdleTimeout));

    let mut server = Line::new();
    server.receive(GET);
    server.after(29_999);
    assert_eq!(server.closed(), None);
    server.after(1);
    assert_eq!(server.closed(), Some(CloseReason::ServerFailed));
    assert!(server.sent().starts_with("HTTP/1.1 504 "));
    assert_eq!(server.reply(&[("http.request", "1")], "late"), Err(Unencodable));

    let mut idle = Line::new();
    idle.receive(GET);
    idle.after(20_000);
    idle.reply(&[("http.request", "1"), ("http.part", "0")], "a").unwrap();
    idle.after(3_600_000);
    assert_eq!(idle.closed(), None, "a reply that has begun may take its time");
    let last = [("http.request", "1"), ("http.part", "1"), ("http.last", "1")];
    idle.reply(&last, "").unwrap();
    idle.after(59_999);
    assert_eq!(idle.closed(), None);
    idle.after(1);
    assert_eq!(idle.closed(), Some(CloseReason::IdleTimeout));
}

#[test]
fn without_a_server_there_is_no_service() {
    let mut line = Line::new();
    line.script.refusal = Some(Refusal::NoServer);
    line.receive(GET);
    let sent = line.sent();
    assert!(sent.starts_with("HTTP/1.1 503 Service Unavailable|"), "{sent}");
    assert!(sent.contains("|retry-after: "), "{sent}");
    assert_eq!(line.closed(), Some(CloseReason::NoServer));
    assert!(line.records().is_empty());

    let mut stopped = Line::new();
    stopped.receive(GET);
    stopped.http.farewell(CloseReason::RelayStop, stopped.now, &mut stopped.script);
    assert!(stopped.sent().starts_with("HTTP/1.1 503 "));
}

#[test]
fn the_end_of_a_stream_is_the_end_of_requests() {
    let end = |line: &mut Line| line.http.end_of_stream(line.now, &mut line.script);
    let mut line = Line::new();
    line.receive(&GET.repeat(4));
    assert!(end(&mut line));
    for number in ["1", "2", "3", "4"] {
        assert_eq!(line.closed(), None);
        assert!(line.http.owes(), "an answer");
        line.reply(&[("http.request", number)], "a").unwrap();
    }
    assert_eq!(line.closed(), Some(CloseReason::ClientClosed));
    for (input, messages) in [(&GET[..20], 0), (b"PUT / HTTP/1.0\r\nContent-Length: 9\r\n\r\na", 0)]
    {
        let mut line = Line::new();
        line.receive(input);
        assert!(!end(&mut line));
        assert_eq!(line.closed(), Some(CloseReason::EndOfStream));
        assert_eq!(line.records().len(), messages);
    }
}

/// Pieces that make requests, and what breaks them.
fn pieces() -> impl Strategy<Value = Vec<u8>> {
    let known = prop::sample::select(vec![
        "GET / HTTP/1.1\r\n",
        "PUT /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n",
        "PUT /a HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\n0123456789",
        "GET / HTTP/1.1\r\nHost: h\r\n\r\n",
        "HEAD / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
        "Host: h\r\n",
        "Expect: 100-continue\r\n",
        "Connection: close\r\n",
        "Content-Length: 3\r\n",
        "5\r\n01234\r\n",
        "9;a\r\n012345678\r\n",
        "0\r\n\r\n",
        "0\r\nX: y\r\n\r\n",
        "\r\n",
        "\r",
        "\n",
        ":",
    ]);
    prop_oneof![
        8 => known.prop_map(|text| text.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..5),
    ]
}

/// Everything that a stream leads to, replies included, which come in another order.
fn outcome<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<Action>, Vec<u8>) {
    let mut line = Line::new();
    for piece in pieces {
        line.receive(piece);
        let bound = 256 + 8 + line.http.backlog.len() + 1000;
        assert!(line.http.kept_bytes() <= bound, "{} bytes are held", line.http.kept_bytes());
    }
    if !line.script.is_closed() {
        line.http.end_of_stream(line.now, &mut line.script);
    }
    for number in ["2", "1", "3", "5", "4", "7", "6"] {
        if !line.script.is_closed() {
            let _ = line.reply(&[("http.request", number)], number);
        }
    }
    line.script.take()
}

proptest! {
    #[test]
    fn cuts_do_not_matter(
        stream in prop::collection::vec(pieces(), 0..12).prop_map(|pieces| pieces.concat()),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
    ) {
        let whole = outcome([stream.as_slice()]);
        prop_assert_eq!(&whole, &outcome(stream.chunks(1)));
        let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
        places.extend([0, stream.len()]);
        places.sort_unstable();
        prop_assert_eq!(&whole, &outcome(places.windows(2).map(|pair| &stream[pair[0]..pair[1]])));
    }

    #[test]
    fn any_bytes_are_survived(stream in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert_eq!(outcome([stream.as_slice()]), outcome(stream.chunks(1)));
    }
}
