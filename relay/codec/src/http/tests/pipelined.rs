//! Requests that are sent before the replies to those before them.

use super::*;

impl Line {
    fn refuse(&mut self, failure: DeliveryFailure, message: u64) {
        assert!(self.http.refused(failure, message, self.now, &mut self.script), "it sees to it");
    }

    fn answer(&mut self, number: &str) -> Result<Sending, Unencodable> {
        self.reply(&[("http.request", number)], "a")
    }
}

const OK: &str = "HTTP/1.1 200 OK|content-length: 1||a";

/// Three requests; the second one has three messages.
fn three() -> Line {
    let mut line = Line::new();
    line.receive(GET);
    line.receive(b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 20\r\n\r\n01234567890123456789");
    line.receive(GET);
    assert_eq!(line.records().len(), 5);
    line
}

#[test]
fn the_request_that_kafka_refuses_is_told_so_and_no_other() {
    for message in 2..=4 {
        let mut line = three();
        line.refuse(DeliveryFailure::TooLarge, message);
        assert_eq!(
            (line.sent().as_str(), line.closed()),
            ("", None),
            "the first one is waited for"
        );
        assert!(line.http.owes(), "a client that has ended its side is still answered");
        line.receive(GET);
        assert!(line.records().is_empty(), "nothing more is taken");
        assert_eq!(line.answer("1"), Ok(Sending::WithOutput));
        let sent = line.sent();
        let refusal = sent.strip_prefix(OK).expect("its own reply");
        assert!(refusal.starts_with("HTTP/1.1 413 "), "{sent}");
        assert_eq!(line.closed(), Some(CloseReason::RefusedByKafka));
    }
    let mut line = three();
    line.refuse(DeliveryFailure::Other, 1);
    let sent = line.sent();
    assert!(sent.starts_with("HTTP/1.1 503 "), "{sent}");
    assert_eq!(sent.matches("HTTP/1.1").count(), 1);
    assert_eq!(line.closed(), Some(CloseReason::RefusedByKafka));
}

#[test]
fn replies_that_came_early_go_before_the_refusal_of_a_later_request() {
    let mut line = three();
    line.answer("2").unwrap();
    line.refuse(DeliveryFailure::Other, 5);
    line.answer("1").unwrap();
    let sent = line.sent();
    let refusal = sent.strip_prefix(&OK.repeat(2)).expect("both replies");
    assert!(refusal.starts_with("HTTP/1.1 503 "), "{sent}");
    assert_eq!(line.closed(), Some(CloseReason::RefusedByKafka));
}

#[test]
fn a_refusal_of_what_was_answered_before_is_no_answer_to_another() {
    let mut line = three();
    line.answer("1").unwrap();
    assert_eq!(line.sent(), OK);
    line.refuse(DeliveryFailure::TooLarge, 1);
    assert_eq!((line.sent().as_str(), line.closed()), ("", Some(CloseReason::RefusedByKafka)));
}

#[test]
fn a_request_that_is_refused_within_its_body_is_answered() {
    let mut line = Line::new();
    line.receive(b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 20\r\n\r\n0123456789");
    assert_eq!(line.records().len(), 1);
    line.refuse(DeliveryFailure::TooLarge, 1);
    assert!(line.sent().starts_with("HTTP/1.1 413 "));
    assert_eq!(line.closed(), Some(CloseReason::RefusedByKafka));
}

#[test]
fn time_for_a_reply_begins_when_its_turn_does() {
    let mut line = Line::new();
    line.receive(&GET.repeat(2));
    line.after(29_999);
    line.reply(&[("http.request", "1"), ("http.part", "0")], "a").unwrap();
    line.after(600_000);
    let last = [("http.request", "1"), ("http.part", "1"), ("http.last", "1")];
    line.reply(&last, "").unwrap();
    line.sent();
    line.after(29_999);
    assert_eq!((line.sent().as_str(), line.closed()), ("", None), "it has its own time");
    line.after(1);
    assert!(line.sent().starts_with("HTTP/1.1 504 "));
    assert_eq!(line.closed(), Some(CloseReason::ServerFailed));
}
