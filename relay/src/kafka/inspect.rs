//! What the ledger reads in records.

use std::ffi::{CStr, CString};

use rdkafka::message::{BorrowedMessage, Message as _};

use crate::model::{Headers, header, split_reply_key};
use crate::ring::Command;

use super::ffi::header as header_of;

/// Which message of which run of which relay an uplink record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordOrigin {
    /// The relay.
    pub relay: u16,
    /// Its run.
    pub incarnation: u64,
    /// The message's number on its connection.
    pub sequence: u64,
}

/// None for a record that is no client's message.
pub fn record_origin(message: &BorrowedMessage<'_>) -> Option<RecordOrigin> {
    let (key, _) = split_reply_key(message.key()?).ok()?;
    let text = |name: &CStr| std::str::from_utf8(header_of(message, name)?).ok();
    let sequence = text(header::SEQUENCE)?.parse().ok()?;
    Some(RecordOrigin { relay: key.relay.0, incarnation: key.incarnation.value(), sequence })
}

/// A header's value, if it is text.
pub fn header_text<'a>(message: &'a BorrowedMessage<'_>, name: &str) -> Option<&'a str> {
    let name = CString::new(name).ok()?;
    std::str::from_utf8(header_of(message, &name)?).ok()
}

/// What a record asks for.
pub(crate) fn command(message: &BorrowedMessage<'_>, headers: Headers<'_>) -> Command {
    command_of(message.payload().unwrap_or_default(), headers)
}

/// An order to close has no payload or an empty one, and nothing that makes it a reply all the same.
fn command_of(payload: &[u8], headers: Headers<'_>) -> Command {
    let close = headers.get(header::CLOSE).is_some();
    let empty = payload.is_empty() && headers.weight() == 0;
    match (close, empty) {
        (false, _) => Command::Reply,
        (true, true) => Command::Close,
        (true, false) => Command::ReplyAndClose,
    }
}

#[cfg(test)]
mod tests {
    use crate::model::HeaderList;

    use super::*;

    #[test]
    fn an_empty_value_with_close_sends_nothing() {
        let list = |names: &[&str]| {
            let mut list = HeaderList::default();
            for name in names {
                assert!(list.push(name.as_bytes(), b"1000 bye"));
            }
            list
        };
        let (none, close) = (list(&[]), list(&["close"]));
        let response = list(&["close", "http.status"]);
        let of = |payload: &[u8], list: &HeaderList| command_of(payload, list.headers());
        assert_eq!(of(b"", &close), Command::Close);
        assert_eq!(of(b"bye", &close), Command::ReplyAndClose);
        assert_eq!(of(b"", &response), Command::ReplyAndClose);
        assert_eq!(of(b"", &none), Command::Reply);
    }
}
