//! Plain framing: a length before each message, or a line feed behind it.
//!
//! A [`Decoder`] is fed what a connection received, cut anywhere, and emits whole messages; what it
//! emits does not depend on the cuts. [`Framing::encode`] is its inverse.

mod decoder;
mod framed;

use serde::{Deserialize, Serialize};

pub use decoder::{DecodeError, Decoder};
pub use framed::Framed;

/// How the bytes of a connection become messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
#[serde(expecting = "`{ type = \"lines\" }`, or `{ type = \"length\", bytes = 4 }`")]
pub enum Framing {
    /// A length, then so many bytes; the length does not count itself.
    Length {
        /// Bytes of the length: 1, 2 or 4.
        bytes: u8,
        /// Byte order of the length.
        #[serde(default)]
        order: ByteOrder,
    },
    /// Messages end with a line feed; a carriage return before it is removed. The last one may end
    /// with the stream.
    Lines,
}

/// Byte order of a length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ByteOrder {
    /// Network byte order.
    #[default]
    Big,
    /// Least significant byte first.
    Little,
}

/// Why a payload cannot be written in a framing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// Longer than the service allows or the length can say.
    #[error("the payload is longer than a message may be")]
    TooLong,
    /// A line feed inside, or a carriage return at the end, of what should be one line.
    #[error("the payload does not survive as one line")]
    NotALine,
}

impl Framing {
    /// All that there are; of the length of one byte, which has no order, once.
    pub const ALL: [Self; 6] = [
        Self::Lines,
        Self::Length { bytes: 1, order: ByteOrder::Big },
        Self::Length { bytes: 2, order: ByteOrder::Big },
        Self::Length { bytes: 2, order: ByteOrder::Little },
        Self::Length { bytes: 4, order: ByteOrder::Big },
        Self::Length { bytes: 4, order: ByteOrder::Little },
    ];

    /// How records name it (`protocol` header).
    pub const fn name(self) -> &'static str {
        match self {
            Self::Length { .. } => "length",
            Self::Lines => "lines",
        }
    }

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

    /// Whether `payload` can be one message.
    pub fn check_payload(self, max_message_bytes: u32, payload: &[u8]) -> Result<(), EncodeError> {
        if payload.len() > max_message_bytes as usize {
            return Err(EncodeError::TooLong);
        }
        if self == Self::Lines && (payload.contains(&b'\n') || payload.ends_with(b"\r")) {
            return Err(EncodeError::NotALine);
        }
        Ok(())
    }

    /// Appends `payload` as one message to `output`; on error nothing is appended.
    pub fn encode(
        self,
        max_message_bytes: u32,
        payload: &[u8],
        output: &mut Vec<u8>,
    ) -> Result<(), EncodeError> {
        self.check_payload(max_message_bytes, payload)?;
        let length = u32::try_from(payload.len()).expect("just checked");
        match self {
            Self::Length { bytes, order } => {
                let (big, little) = (length.to_be_bytes(), length.to_le_bytes());
                let width = usize::from(bytes);
                output.extend_from_slice(match order {
                    ByteOrder::Big => &big[4 - width..],
                    ByteOrder::Little => &little[..width],
                });
                output.extend_from_slice(payload);
            }
            Self::Lines => {
                output.extend_from_slice(payload);
                output.push(b'\n');
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
