//! Requests and answers, in the one version of each that every broker from Kafka 3.6 to 4.x knows, and
//! newer ones of Produce.
//!
//! | request | versions | from |
//! |---|---|---|
//! | ApiVersions | 3, and 0 where that is not known | KIP-511 |
//! | Metadata | 12 | KIP-516: topics by name, and their ids |
//! | InitProducerId | 4 | KIP-360 |
//! | SaslHandshake | 1 | KIP-43; KIP-152: messages in requests |
//! | SaslAuthenticate | 2 | KIP-368: for how long |
//! | Produce | 9 to 12 (topics by name), 13 (by id) | KIP-482, KIP-516 |

mod metadata;
mod produce;
mod sasl;
mod versions;

pub use metadata::{Broker, Metadata, PartitionMetadata, put_metadata_request};
pub use produce::{ProduceRequest, ProduceResult, read_produce_response};
pub use sasl::{
    SaslAuthenticate, SaslHandshake, put_sasl_authenticate_request, put_sasl_handshake_request,
    read_sasl_authenticate_response, read_sasl_handshake_response,
};
pub use versions::{Unusable, Versions, VersionsFormat, put_versions_request};

use crate::primitive::{Malformed, NO_TAGS, Reader, put_short_str, put_unsigned};

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Api {
    /// Records to be written.
    Produce,
    /// Brokers, and leaders of partitions.
    Metadata,
    /// A mechanism to say who we are.
    SaslHandshake,
    /// What versions a broker knows.
    ApiVersions,
    /// An id for an idempotent producer.
    InitProducerId,
    /// A message of that mechanism.
    SaslAuthenticate,
}

impl Api {
    /// The number of the request.
    pub const fn key(self) -> i16 {
        match self {
            Self::Produce => 0,
            Self::Metadata => 3,
            Self::SaslHandshake => 17,
            Self::ApiVersions => 18,
            Self::InitProducerId => 22,
            Self::SaslAuthenticate => 36,
        }
    }

    /// The versions that we know, from and to.
    pub const fn versions(self) -> (i16, i16) {
        match self {
            Self::Produce => (9, 13),
            Self::Metadata => (12, 12),
            Self::SaslHandshake => (1, 1),
            Self::ApiVersions => (0, 3),
            Self::InitProducerId => (4, 4),
            Self::SaslAuthenticate => (2, 2),
        }
    }

    /// The name in Kafka's documentation.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Produce => "Produce",
            Self::Metadata => "Metadata",
            Self::SaslHandshake => "SaslHandshake",
            Self::ApiVersions => "ApiVersions",
            Self::InitProducerId => "InitProducerId",
            Self::SaslAuthenticate => "SaslAuthenticate",
        }
    }
}

/// Appends the length, to be [set](set_length) later, and the header of a request (version 2).
pub fn put_header(out: &mut Vec<u8>, api: Api, version: i16, correlation: i32, client: &str) {
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&api.key().to_be_bytes());
    out.extend_from_slice(&version.to_be_bytes());
    out.extend_from_slice(&correlation.to_be_bytes());
    put_short_str(out, client);
    out.push(NO_TAGS);
}

/// Writes the length of a request that begins `out`, and of which `more` bytes stand elsewhere.
pub fn set_length(out: &mut [u8], more: usize) {
    let length = u32::try_from((out.len() + more).saturating_sub(4)).unwrap_or(u32::MAX);
    if let Some(place) = out.first_chunk_mut::<4>() {
        *place = length.to_be_bytes();
    }
}

/// Reads the header of an answer: the request's number, and where the body begins. `ApiVersions` answers
/// with version 0, so that who does not know its versions can read it, and `SaslHandshake` has nothing newer;
/// all others here with version 1.
pub fn read_header(frame: &[u8], api: Api) -> Result<(i32, Reader<'_>), Malformed> {
    let mut reader = Reader::new(frame);
    let correlation = reader.i32()?;
    if !matches!(api, Api::ApiVersions | Api::SaslHandshake) {
        reader.skip_tags()?;
    }
    Ok((correlation, reader))
}

/// A producer's id and epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProducerIdentity {
    /// The id.
    pub id: i64,
    /// The epoch.
    pub epoch: i16,
}

/// Asks for a new id, for a producer without transactions.
pub fn put_init_producer_request(out: &mut Vec<u8>, correlation: i32, client: &str) {
    put_header(out, Api::InitProducerId, 4, correlation, client);
    // No transactional id, whose timeout then means nothing; and no id yet.
    put_unsigned(out, 0);
    out.extend_from_slice(&i32::MAX.to_be_bytes());
    out.extend_from_slice(&(-1_i64).to_be_bytes());
    out.extend_from_slice(&(-1_i16).to_be_bytes());
    out.push(NO_TAGS);
    set_length(out, 0);
}

/// The answer's throttle time in milliseconds, and the identity or the error's code.
pub fn read_init_producer_response(
    mut reader: Reader<'_>,
) -> Result<(i32, Result<ProducerIdentity, i16>), Malformed> {
    let throttle_ms = reader.i32()?;
    let error = reader.i16()?;
    let identity = ProducerIdentity { id: reader.i64()?, epoch: reader.i16()? };
    reader.skip_tags()?;
    Ok((throttle_ms, if error == 0 { Ok(identity) } else { Err(error) }))
}

#[cfg(test)]
mod tests;
