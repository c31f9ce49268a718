//! Which brokers there are, and which of them leads which partition.

use crate::message::{Api, put_header, set_length};
use crate::primitive::{Malformed, NO_TAGS, Reader, put_str, put_unsigned};

/// Asks about one topic, which is not made by the question.
pub fn put_metadata_request(out: &mut Vec<u8>, correlation: i32, client: &str, topic: &str) {
    put_header(out, Api::Metadata, 12, correlation, client);
    put_unsigned(out, 1 + 1);
    out.extend_from_slice(&[0; 16]);
    put_str(out, topic);
    out.push(NO_TAGS);
    // No creation of topics, no list of rights.
    out.extend_from_slice(&[0, 0]);
    out.push(NO_TAGS);
    set_length(out, 0);
}

/// A broker's id, and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broker {
    /// Its `node.id`.
    pub node: i32,
    /// A name or an address.
    pub host: String,
    /// The port.
    pub port: u16,
}

/// A partition and its leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionMetadata {
    /// Its number.
    pub partition: i32,
    /// The leader's `node.id`; none while there is no leader.
    pub leader: Option<i32>,
    /// How many leaders there were before.
    pub leader_epoch: i32,
}

/// What a broker knows of the cluster and the topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// For how many milliseconds the broker wants no more requests.
    pub throttle_ms: i32,
    /// All brokers.
    pub brokers: Vec<Broker>,
    /// The topic's id and partitions, or the code of the error about it.
    pub topic: Result<([u8; 16], Vec<PartitionMetadata>), i16>,
}

impl Metadata {
    /// Reads an answer to a question about the topic of this name.
    pub fn read(mut reader: Reader<'_>, topic: &str) -> Result<Self, Malformed> {
        const UNKNOWN_TOPIC_OR_PARTITION: i16 = 3;
        let throttle_ms = reader.i32()?;
        let mut brokers = Vec::new();
        for _ in 0..reader.array_length()? {
            let (node, host) = (reader.i32()?, reader.compact_str()?.ok_or(Malformed::Length)?);
            let port = u16::try_from(reader.i32()?).map_err(|_| Malformed::Length)?;
            // Its rack.
            reader.compact_bytes()?;
            reader.skip_tags()?;
            brokers.push(Broker { node, host: host.to_owned(), port });
        }
        // The cluster's id, and the controller.
        reader.compact_bytes()?;
        reader.i32()?;
        let mut found = Err(UNKNOWN_TOPIC_OR_PARTITION);
        for _ in 0..reader.array_length()? {
            let (error, name, id) = (reader.i16()?, reader.compact_str()?, reader.uuid()?);
            // Whether it is one of Kafka's own.
            reader.bool()?;
            let mut partitions = Vec::new();
            for _ in 0..reader.array_length()? {
                partitions.push(partition(&mut reader)?);
            }
            // Rights, which were not asked for.
            reader.i32()?;
            reader.skip_tags()?;
            if name == Some(topic) {
                found = if error == 0 { Ok((id, partitions)) } else { Err(error) };
            }
        }
        reader.skip_tags()?;
        Ok(Self { throttle_ms, brokers, topic: found })
    }
}

fn partition(reader: &mut Reader<'_>) -> Result<PartitionMetadata, Malformed> {
    // The error: that there is no leader, or that a replica is not there, is seen in what follows.
    reader.i16()?;
    let (partition, leader, leader_epoch) = (reader.i32()?, reader.i32()?, reader.i32()?);
    // Replicas: all, those in sync, those that are not there.
    for _ in 0..3 {
        let count = reader.array_length()? as usize;
        reader.bytes(count.checked_mul(4).ok_or(Malformed::Length)?)?;
    }
    reader.skip_tags()?;
    Ok(PartitionMetadata { partition, leader: (leader >= 0).then_some(leader), leader_epoch })
}
