//! Records to be written, and what became of them.

use crate::message::{Api, put_header, set_length};
use crate::primitive::{Malformed, NO_TAGS, Reader, put_str, put_unsigned};

/// The first version that names topics by their ids.
const BY_ID: i16 = 13;
/// To be acknowledged by all replicas that are in sync.
const ALL: i16 = -1;

/// A request about one topic, written piece by piece, because the batches stand elsewhere: call
/// [`partition`](Self::partition) before each batch and [`end`](Self::end) after the last one.
#[derive(Debug)]
pub struct ProduceRequest {
    head: Vec<u8>,
    elsewhere: usize,
}

impl ProduceRequest {
    /// Begins a request with so many batches, in memory that is empty; the broker may take `timeout_ms` for
    /// it.
    pub fn new(
        mut head: Vec<u8>,
        version: i16,
        (correlation, client): (i32, &str),
        (topic, topic_id): (&str, [u8; 16]),
        timeout_ms: i32,
        batches: usize,
    ) -> Self {
        put_header(&mut head, Api::Produce, version, correlation, client);
        // No transactional id.
        put_unsigned(&mut head, 0);
        head.extend_from_slice(&ALL.to_be_bytes());
        head.extend_from_slice(&timeout_ms.to_be_bytes());
        put_unsigned(&mut head, 1 + 1);
        if version >= BY_ID {
            head.extend_from_slice(&topic_id);
        } else {
            put_str(&mut head, topic);
        }
        put_unsigned(&mut head, batches as u64 + 1);
        Self { head, elsewhere: 0 }
    }

    /// What stands before a batch of so many bytes: after the request's head if it is the first, else after
    /// the batch before.
    pub fn partition(&mut self, out: &mut Vec<u8>, partition: i32, batch_bytes: usize) {
        let before = out.len();
        if self.elsewhere > 0 {
            out.push(NO_TAGS);
        }
        out.extend_from_slice(&partition.to_be_bytes());
        put_unsigned(out, batch_bytes as u64 + 1);
        self.elsewhere += out.len() - before + batch_bytes;
    }

    /// What stands after the last batch, and the head, which stands before everything.
    pub fn end(mut self, out: &mut Vec<u8>) -> Vec<u8> {
        let end = [NO_TAGS; 3];
        out.extend_from_slice(&end);
        set_length(&mut self.head, self.elsewhere + end.len());
        self.head
    }
}

/// What became of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProduceResult {
    /// Its partition.
    pub partition: i32,
    /// The error's code; 0 if it was written.
    pub error: i16,
    /// The offset of its first record; below 0 if the broker does not know it.
    pub base_offset: i64,
}

/// Reads an answer about one topic, and passes on what became of each batch. Returns for how many
/// milliseconds the broker wants no more requests.
pub fn read_produce_response(
    mut reader: Reader<'_>,
    version: i16,
    mut each: impl FnMut(ProduceResult),
) -> Result<i32, Malformed> {
    for _ in 0..reader.array_length()? {
        if version >= BY_ID {
            reader.uuid()?;
        } else {
            reader.compact_bytes()?;
        }
        for _ in 0..reader.array_length()? {
            let (partition, error, base_offset) = (reader.i32()?, reader.i16()?, reader.i64()?);
            // The time, if the broker gives it, and where the log begins.
            reader.i64()?;
            reader.i64()?;
            // Which records are the cause: number and text.
            for _ in 0..reader.array_length()? {
                reader.i32()?;
                reader.compact_bytes()?;
                reader.skip_tags()?;
            }
            // The error in words; and hints at the new leader (KIP-951), which only Metadata decides.
            reader.compact_bytes()?;
            reader.skip_tags()?;
            each(ProduceResult { partition, error, base_offset });
        }
        reader.skip_tags()?;
    }
    let throttle_ms = reader.i32()?;
    reader.skip_tags()?;
    Ok(throttle_ms)
}
