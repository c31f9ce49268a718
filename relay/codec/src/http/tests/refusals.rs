//! What is refused, and what is not.

use super::Line;

/// The status of what a client gets that sends nothing else; none if its request is taken.
fn refusal(input: &[u8]) -> Option<String> {
    let mut line = Line::new();
    line.receive(input);
    let sent = line.sent();
    assert_eq!(line.closed().is_some(), !sent.is_empty(), "{}", input.escape_ascii());
    (!sent.is_empty()).then(|| sent["HTTP/1.1 ".len()..][..3].to_owned())
}

#[test]
fn what_two_might_read_differently_is_refused() {
    let with = |field: &str| format!("POST / HTTP/1.1\r\nHost: h\r\n{field}\r\n\r\nabc");
    for field in [
        "Content-Length: 3\r\nTransfer-Encoding: chunked",
        "Content-Length: 3\r\nContent-Length: 4",
        "Content-Length: 3\r\nContent-Length: 3",
        "Content-Length: 3, 3",
        "Content-Length: +3",
        "Content-Length: -3",
        "Content-Length: 0x3",
        "Content-Length:",
        "Content-Length: 18446744073709551619",
        "Transfer-Encoding: identity",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding: chunked, gzip",
        "Transfer-Encoding: , chunked",
        "Transfer-Encoding: chunked,",
        "Transfer-Encoding: gzip,, chunked",
        "Transfer-Encoding: \u{b}chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Content-Length : 3",
        " Content-Length: 3",
        "X: a\r\n b",
        "X: a\nY: b",
        "X: a\rY: b",
        "X\u{0}: a",
        "X: a\u{0}",
        "X: a\u{7f}",
        "X",
        ": a",
        "Host: h",
        "Connection: close, content-length",
        "Connection: \u{a0}close",
    ] {
        assert_eq!(refusal(with(field).as_bytes()).as_deref(), Some("400"), "{field:?}");
    }
    for (line, status) in [
        ("GET / HTTP/1.1\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost:\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: a@b\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", "400"),
        ("GET / HTTP/1.1\nHost: h\n\n", "400"),
        ("GET  / HTTP/1.1\r\nHost: h\r\n\r\n", "400"),
        ("GET /  HTTP/1.1\r\nHost: h\r\n\r\n", "400"),
        ("GET /a b HTTP/1.1\r\nHost: h\r\n\r\n", "400"),
        ("GET /#a HTTP/1.1\r\nHost: h\r\n\r\n", "400"),
        ("GET /\u{e9} HTTP/1.1\r\nHost: h\r\n\r\n", "400"),
        ("GET a HTTP/1.1\r\nHost: h\r\n\r\n", "400"),
        ("GET * HTTP/1.1\r\nHost: h\r\n\r\n", "400"),
        ("GET http://g/ HTTP/1.1\r\nHost: h\r\n\r\n", "400"),
        ("GET http://a@h/ HTTP/1.1\r\nHost: h\r\n\r\n", "400"),
        ("GET https://h/ HTTP/1.1\r\nHost: h\r\n\r\n", "400"),
        ("G(T / HTTP/1.1\r\nHost: h\r\n\r\n", "400"),
        ("GET /\r\n\r\n", "400"),
        ("GET / HTTP/1.10\r\nHost: h\r\n\r\n", "400"),
        ("GET / http/1.1\r\nHost: h\r\n\r\n", "400"),
        ("GET / HTTP/1.2\r\nHost: h\r\n\r\n", "505"),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "505"),
        ("CONNECT h:80 HTTP/1.1\r\nHost: h:80\r\n\r\n", "501"),
        ("PUT / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", "501"),
        ("PUT / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", "400"),
        ("PUT / HTTP/1.1\r\nHost: h\r\nExpect: 200-ok\r\n\r\n", "417"),
        ("PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 21\r\n\r\n", "413"),
        ("\r\n\r\n", "400"),
    ] {
        assert_eq!(refusal(line.as_bytes()).as_deref(), Some(status), "{line:?}");
    }
}

#[test]
fn what_is_usual_is_taken() {
    for line in [
        "\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n",
        "GET HTTP://H:80/a HTTP/1.1\r\nHost: h:80\r\n\r\n",
        "GET /|{}^ HTTP/1.1\r\nHost: [::1]:80\r\n\r\n",
        "GET / HTTP/1.0\r\n\r\n",
        "PURGE / HTTP/1.1\r\nHost: h\r\nX:\ta \u{e9}\t\r\n\r\n",
    ] {
        assert_eq!(refusal(line.as_bytes()), None, "{line:?}");
    }
}

#[test]
fn chunks_that_are_none_are_refused() {
    let chunked = |body: &str| {
        format!("PUT / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n{body}")
    };
    let zeros = "0".repeat(17);
    let extension = format!("1;{}\r\na\r\n0\r\n\r\n", "a".repeat(4097));
    for (body, status) in [
        ("g\r\n", "400"),
        ("-1\r\n", "400"),
        ("0x1\r\n", "400"),
        ("\r\n", "400"),
        (" 1\r\n", "400"),
        ("1 \r\n", "400"),
        ("1\n", "400"),
        ("1\ra", "400"),
        ("1;a\nb\r\n", "400"),
        ("1;\r\n", "400"),
        ("1; \r\n", "400"),
        ("1;a;\r\n", "400"),
        ("1;a \r\n", "400"),
        ("1;a=\r\n", "400"),
        ("1;=a\r\n", "400"),
        ("1;a b\r\n", "400"),
        ("1;a=b c\r\n", "400"),
        ("1;a=b=c\r\n", "400"),
        ("1;a=\"b\r\n", "400"),
        ("1;a=\"b\"c\r\n", "400"),
        ("1;a=b\"\r\n", "400"),
        ("1;a=\"\\\r\n", "400"),
        ("1;a/b\r\n", "400"),
        ("1\r\nab\r\n", "400"),
        ("1\r\na\n0\r\n\r\n", "400"),
        ("1\r\na0\r\n\r\n", "400"),
        (&zeros, "400"),
        (&extension, "400"),
        ("0\r\nX : a\r\n\r\n", "400"),
        ("0\r\nX\r\n\r\n", "400"),
        ("0\r\nX: a\n\r\n", "400"),
        ("15\r\n", "413"),
        ("ffffffffffffffff\r\n", "413"),
        ("14\r\n01234567890123456789\r\n1\r\n", "413"),
    ] {
        assert_eq!(refusal(chunked(body).as_bytes()).as_deref(), Some(status), "{body:?}");
    }
    for extensions in
        [";a", ";a=b", "; a = b ; c", ";a=\"b;c\\\"\\\\d\"", ";a=\"\"", ";\ta=\"\u{e9}\"\t;b"]
    {
        let body = format!("1{extensions}\r\na\r\n0{extensions}\r\n\r\n");
        assert_eq!(refusal(chunked(&body).as_bytes()), None, "{extensions:?}");
    }
    let trailers = format!("0\r\nX: {}\r\n\r\n", "a".repeat(260));
    assert_eq!(refusal(chunked(&trailers).as_bytes()).as_deref(), Some("431"));
}

#[test]
fn a_refusal_of_head_has_no_body() {
    for (request, status) in [
        ("HEAD / HTTP/1.1\r\n\r\n", "400"),
        ("HEAD / HTTP/1.2\r\nHost: h\r\n\r\n", "505"),
        ("HEAD / HTTP/1.1\r\nHost: h\r\nContent-Length: 21\r\n\r\n", "413"),
        ("HEAD / HTTP/1.1\r\nHost: h\r\nX: \0", "400"),
    ] {
        let mut line = Line::new();
        line.receive(request.as_bytes());
        let sent = line.sent();
        assert!(sent.starts_with(&format!("HTTP/1.1 {status} ")), "{sent}");
        assert!(sent.contains("|content-length: ") && sent.ends_with("||"), "{sent}");
    }
    let mut line = Line::new();
    line.receive(b"HEAD / HTTP/1.1\r\nHo");
    line.after(10_000);
    let sent = line.sent();
    assert!(sent.starts_with("HTTP/1.1 408 ") && sent.ends_with("||"), "{sent}");
}

#[test]
fn heads_have_a_limit() {
    let line = |length| format!("GET /{} HTTP/1.1\r\n", "a".repeat(length));
    assert_eq!(refusal(line(300).as_bytes()).as_deref(), Some("414"));
    assert_eq!(
        refusal(format!("{}X: {}", line(100), "a".repeat(200)).as_bytes()).as_deref(),
        Some("431")
    );
    let many = |count| format!("GET / HTTP/1.1\r\nHost: h\r\n{}\r\n", "a:b\r\n".repeat(count));
    assert_eq!(refusal(many(9).as_bytes()), None);
    assert_eq!(refusal(many(10).as_bytes()).as_deref(), Some("431"));
}
