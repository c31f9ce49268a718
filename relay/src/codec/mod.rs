//! Codecs: bytes to messages and back, without I/O.

use serde::{Deserialize, Serialize};

/// How the bytes of a connection become messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
pub enum Framing {
    /// A length, then so many bytes; the length does not count itself.
    Length {
        /// Bytes of the length: 1, 2 or 4.
        bytes: u8,
        /// Byte order of the length.
        #[serde(default)]
        order: ByteOrder,
    },
    /// Messages end with a line feed; a carriage return before it is removed.
    Lines,
}

/// Byte order of a length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ByteOrder {
    /// Network byte order.
    #[default]
    Big,
    /// Intel's.
    Little,
}

impl Framing {
    /// Refuses a framing that cannot carry messages up to `max_message_bytes`.
    pub fn check(self, max_message_bytes: u32) -> Result<(), String> {
        let Self::Length { bytes, .. } = self else { return Ok(()) };
        let limit = match bytes {
            1 => u32::from(u8::MAX),
            2 => u32::from(u16::MAX),
            4 => u32::MAX,
            _ => return Err(format!("framing.bytes is {bytes}, but must be 1, 2 or 4")),
        };
        if max_message_bytes > limit {
            return Err(format!(
                "max_message_bytes is {max_message_bytes}, but {bytes} length byte(s) reach only to {limit}"
            ));
        }
        Ok(())
    }
}
