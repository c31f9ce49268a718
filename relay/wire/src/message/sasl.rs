//! Saying who we are.

use crate::message::{Api, put_header, set_length};
use crate::primitive::{Malformed, NO_TAGS, Reader, put_short_str, put_unsigned};

/// Asks for a mechanism. The request has no flexible version, so its header ends without tags.
pub fn put_sasl_handshake_request(
    out: &mut Vec<u8>,
    correlation: i32,
    client: &str,
    mechanism: &str,
) {
    put_header(out, Api::SaslHandshake, 1, correlation, client);
    out.pop();
    put_short_str(out, mechanism);
    set_length(out, 0);
}

/// What a broker says to a mechanism.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SaslHandshake {
    /// 0 if it takes it.
    pub error: i16,
    /// Those that it takes.
    pub mechanisms: Vec<String>,
}

/// Most mechanisms that are told to people.
const MOST_MECHANISMS: u32 = 16;

/// Reads it.
pub fn read_sasl_handshake_response(mut reader: Reader<'_>) -> Result<SaslHandshake, Malformed> {
    let error = reader.i16()?;
    let count = reader.u32()?.min(MOST_MECHANISMS);
    let mechanisms = (0..count).map(|_| reader.short_str().map(str::to_owned));
    Ok(SaslHandshake { error, mechanisms: mechanisms.collect::<Result<_, _>>()? })
}

/// Sends one message of a mechanism.
pub fn put_sasl_authenticate_request(
    out: &mut Vec<u8>,
    correlation: i32,
    client: &str,
    message: &[u8],
) {
    put_header(out, Api::SaslAuthenticate, 2, correlation, client);
    put_unsigned(out, message.len() as u64 + 1);
    out.extend_from_slice(message);
    out.push(NO_TAGS);
    set_length(out, 0);
}

/// What a broker answers to such a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SaslAuthenticate<'a> {
    /// 0 if it goes on.
    pub error: i16,
    /// Why it does not, in the broker's words.
    pub reason: Option<&'a str>,
    /// The mechanism's next message.
    pub message: &'a [u8],
    /// For how many milliseconds the connection may be used, after the last message; 0: for as long as it
    /// lasts (KIP-368).
    pub lifetime_ms: i64,
}

/// Reads it.
pub fn read_sasl_authenticate_response(
    mut reader: Reader<'_>,
) -> Result<SaslAuthenticate<'_>, Malformed> {
    let (error, reason) = (reader.i16()?, reader.compact_str()?);
    let message = reader.compact_bytes()?.unwrap_or_default();
    let lifetime_ms = reader.i64()?;
    reader.skip_tags()?;
    Ok(SaslAuthenticate { error, reason, message, lifetime_ms })
}
