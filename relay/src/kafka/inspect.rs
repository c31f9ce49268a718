//! What the ledger reads in records.

use std::ffi::{CStr, CString};

use rdkafka::message::{BorrowedMessage, Message as _};

use crate::model::{header, split_reply_key};

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
