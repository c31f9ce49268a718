//! What a broker knows.

use crate::message::{Api, put_header, set_length};
use crate::primitive::{Malformed, NO_TAGS, Reader, put_str};

/// A broker's answer to a version of `ApiVersions` that it does not know, in the format of version 0.
const UNSUPPORTED_VERSION: i16 = 35;

/// How the question is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VersionsFormat {
    /// Version 3, which says who asks.
    Usual,
    /// Version 0, for a broker that does not know the other one.
    Oldest,
}

/// Asks for the versions.
pub fn put_versions_request(
    out: &mut Vec<u8>,
    format: VersionsFormat,
    correlation: i32,
    client: &str,
) {
    match format {
        VersionsFormat::Usual => {
            put_header(out, Api::ApiVersions, 3, correlation, client);
            put_str(out, "millrace");
            put_str(out, env!("CARGO_PKG_VERSION"));
            out.push(NO_TAGS);
        }
        VersionsFormat::Oldest => {
            put_header(out, Api::ApiVersions, 0, correlation, client);
            // The header of old requests ends without tags, and there is nothing behind it.
            out.pop();
        }
    }
    set_length(out, 0);
}

/// The versions to speak with a broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Versions {
    /// Of Produce.
    pub produce: i16,
}

/// Why we cannot speak with a broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// Its answer cannot be read.
    #[error("the answer about its versions cannot be read: {0}")]
    Malformed(#[from] Malformed),
    /// It has to be asked in the oldest format.
    #[error("it does not know the question about its versions")]
    Format,
    /// It refuses to tell.
    #[error("it refuses to tell its versions, with error {0}")]
    Refused(i16),
    /// It has no such request.
    #[error("it does not know {0} at all: it is no broker, or older than Kafka 3.6")]
    Missing(&'static str),
    /// It knows none of our versions.
    #[error(
        "it knows {name} {least} to {most}, and {ours_least} to {ours_most} are needed (Kafka 3.6 and newer)"
    )]
    Versions {
        /// The request.
        name: &'static str,
        /// Its oldest.
        least: i16,
        /// Its newest.
        most: i16,
        /// Our oldest.
        ours_least: i16,
        /// Our newest.
        ours_most: i16,
    },
}

impl Versions {
    /// Reads an answer.
    pub fn read(mut reader: Reader<'_>, format: VersionsFormat) -> Result<Self, Unusable> {
        const NEEDED: [Api; 3] = [Api::Produce, Api::Metadata, Api::InitProducerId];
        let error = reader.i16()?;
        if error != 0 {
            let is_unknown = error == UNSUPPORTED_VERSION && format == VersionsFormat::Usual;
            return Err(if is_unknown { Unusable::Format } else { Unusable::Refused(error) });
        }
        let mut found = [None; NEEDED.len()];
        let count = match format {
            VersionsFormat::Usual => reader.array_length()?,
            VersionsFormat::Oldest => reader.u32()?,
        };
        for _ in 0..count {
            let (key, least, most) = (reader.i16()?, reader.i16()?, reader.i16()?);
            if format == VersionsFormat::Usual {
                reader.skip_tags()?;
            }
            if let Some(index) = NEEDED.iter().position(|api| api.key() == key) {
                found[index] = Some((least, most));
            }
        }
        if format == VersionsFormat::Usual {
            // For how long it wants no more requests; if that goes on the next answer says it too.
            reader.i32()?;
            reader.skip_tags()?;
        }
        let mut newest = [0; NEEDED.len()];
        for ((api, found), newest) in NEEDED.iter().zip(found).zip(&mut newest) {
            let name = api.name();
            let (least, most) = found.ok_or(Unusable::Missing(name))?;
            let (ours_least, ours_most) = api.versions();
            if most < ours_least || least > ours_most {
                return Err(Unusable::Versions { name, least, most, ours_least, ours_most });
            }
            *newest = most.min(ours_most);
        }
        Ok(Self { produce: newest[0] })
    }
}
