//! Clients that leave before they are answered.

use super::*;

fn part(line: &mut Line, number: &str) -> Result<Sending, Unencodable> {
    line.reply(&[("http.request", "1"), ("http.part", number)], "a")
}

#[test]
fn who_is_answered_is_read_from_so_that_it_is_seen_to_leave() {
    let close = b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
    for (requests, taken) in [(GET.to_vec(), 1), (close.to_vec(), 1), (GET.repeat(20), 3)] {
        let mut line = Line::new();
        line.receive(&requests);
        part(&mut line, "0").unwrap();
        assert_eq!(line.records().len(), taken);
        assert!(line.http.reads(), "{}", requests.escape_ascii());
    }
    // What it may not ask for yet is kept up to a bound, what it may not ask for at all is not.
    let (mut many, mut last) = (Line::new(), Line::new());
    last.receive(close);
    for line in [&mut many, &mut last] {
        line.receive(&GET.repeat(3));
        line.receive(&[b'x'; READ_AHEAD_BYTES - 1]);
        assert!(line.http.reads());
        line.receive(b"x");
    }
    assert!(!many.http.reads());
    assert!(last.http.reads());
    assert_eq!(last.http.kept_bytes(), 0);
}

#[test]
fn a_response_goes_on_in_time_for_who_has_ended_its_side() {
    let mut line = Line::new();
    line.receive(GET);
    part(&mut line, "0").unwrap();
    line.after(3_600_000);
    assert!(line.http.end_of_stream(line.now, &mut line.script));
    line.after(29_999);
    part(&mut line, "1").unwrap();
    line.after(29_999);
    assert_eq!(line.closed(), None);
    line.http.not_read(line.now);
    line.after(29_999);
    assert_eq!(line.closed(), None, "the time in which it could not read does not count");
    line.after(1);
    assert_eq!(line.closed(), Some(CloseReason::EndOfStream));

    // One that has not begun has its own time, and its own answer.
    let mut line = Line::new();
    line.receive(GET);
    assert!(line.http.end_of_stream(line.now, &mut line.script));
    line.after(30_000);
    assert!(line.sent().starts_with("HTTP/1.1 504 "));
    assert_eq!(line.closed(), Some(CloseReason::ServerFailed));
}
