//! Record batches of format 2 (<https://kafka.apache.org/documentation/#recordbatch>), uncompressed.
//!
//! A record is written once, behind room for the batch's header; the header is written when the batch is to
//! be sent, and again if its sequence number has to change. The memory is [chunks], which batches share one
//! after another: a batch takes as much as it is long, and nothing is moved when it grows.
//!
//! [chunks]: Chunks

mod chunks;
mod constant;
mod write;

use crate::primitive::{Malformed, Reader};
use write::Sizes;

use chunks::Chunk;
pub use chunks::{CHUNK_BYTES, Chunks};
pub use constant::Constant;

/// Bytes of a batch's header, with the offset and the length before it.
pub const HEADER_BYTES: usize = 61;
/// Where the fields of the header are.
mod place {
    pub(super) const LENGTH: usize = 8;
    pub(super) const LEADER_EPOCH: usize = 12;
    pub(super) const MAGIC: usize = 16;
    pub(super) const CRC: usize = 17;
    pub(super) const ATTRIBUTES: usize = 21;
    pub(super) const LAST_OFFSET_DELTA: usize = 23;
    pub(super) const BASE_TIME: usize = 27;
    pub(super) const MOST_TIME: usize = 35;
    pub(super) const PRODUCER_ID: usize = 43;
    pub(super) const PRODUCER_EPOCH: usize = 51;
    pub(super) const BASE_SEQUENCE: usize = 53;
    pub(super) const COUNT: usize = 57;
}

/// By whom and as the how-many-eth a batch is written (KIP-98).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// The producer's id, given by a broker.
    pub producer_id: i64,
    /// Its epoch.
    pub epoch: i16,
    /// The number of the batch's first record in its partition, below 2^31.
    pub first: i32,
}

/// The sequence number `count` records after `first`: after 2^31 - 1 comes 0.
pub const fn sequence_after(first: i32, count: u32) -> i32 {
    (first.cast_unsigned().wrapping_add(count) & i32::MAX.cast_unsigned()).cast_signed()
}

/// Headers of a record: name and value.
///
/// They are gone through more than once for a record, and that is on the hot path: the state of a chain of
/// iterators, copied each time, costs as much as to write them.
pub trait Headers {
    /// All of them, in order.
    fn each(&self, each: impl FnMut(&[u8], &[u8]));
}

impl<'a, I: Iterator<Item = (&'a [u8], &'a [u8])> + Clone> Headers for I {
    fn each(&self, mut each: impl FnMut(&[u8], &[u8])) {
        self.clone().for_each(|(name, value)| each(name, value));
    }
}

/// What a record's writer wants to know of it when its fate is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// Whose it is, or whatever else the writer chooses. Records that follow each other with the same token are
    /// told of together.
    pub token: u64,
    /// The bytes that it has booked for the record.
    pub booked_bytes: u32,
}

/// Records that follow each other with the same token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Their token.
    pub token: u64,
    /// The bytes booked for all of them.
    pub booked_bytes: u64,
    /// How many they are.
    pub records: u32,
}

/// Records of one partition in wire format, and whose they are.
#[derive(Clone, Debug)]
pub struct Batch {
    /// All full but the last.
    chunks: Vec<Chunk>,
    /// Bytes in them.
    size: usize,
    runs: Vec<Run>,
    count: u32,
    base_time: i64,
    most_time: i64,
    /// Up to where the CRC of the records is known, and what it is. It is calculated while they are in the
    /// processor's cache, and not when the batch is sent, which may be much later.
    summed: (usize, u32),
}

/// Nothing but the header, which comes last.
const NOT_SUMMED: (usize, u32) = (HEADER_BYTES, 0);
/// Bytes whose CRC is calculated at once.
const SUM_BYTES: usize = 8 << 10;

impl Default for Batch {
    fn default() -> Self {
        Self {
            chunks: Vec::new(),
            size: 0,
            runs: Vec::new(),
            count: 0,
            base_time: 0,
            most_time: 0,
            summed: NOT_SUMMED,
        }
    }
}

impl Batch {
    /// Without records.
    pub fn new() -> Self {
        Self::default()
    }

    /// Calculates the CRC of what was written since the last time.
    fn sum(&mut self) {
        let (from, mut crc) = self.summed;
        let starts = (0..self.size).step_by(CHUNK_BYTES);
        for (at, piece) in starts.zip(self.pieces()).skip(from / CHUNK_BYTES) {
            crc = crc32c::crc32c_append(crc, &piece[from.saturating_sub(at)..]);
        }
        self.summed = (self.size, crc);
    }

    /// Takes all records out.
    pub fn clear(&mut self, chunks: &mut Chunks) {
        self.chunks.drain(..).for_each(|chunk| chunks.put(chunk));
        self.runs.clear();
        (self.size, self.count, self.summed) = (0, 0, NOT_SUMMED);
    }

    /// The memory that it keeps when it is cleared.
    pub(crate) fn kept_memory(&self) -> usize {
        self.chunks.capacity() * size_of::<Chunk>() + self.runs.capacity() * size_of::<Run>()
    }

    /// Appends a record; its time is in Unix milliseconds, or -1. Its headers follow the constant ones. False
    /// if the batch would have more than `most_bytes` with it; one that is alone may.
    #[inline]
    pub fn push(
        &mut self,
        (chunks, most_bytes): (&mut Chunks, usize),
        (time, constant, value): (i64, Constant<'_>, &[u8]),
        headers: &impl Headers,
        tag: Tag,
    ) -> bool {
        let is_first = self.count == 0;
        if is_first {
            (self.base_time, self.most_time) = (time, time);
        }
        let time_delta = time.wrapping_sub(self.base_time);
        let sizes = Sizes::new((time_delta, self.count), constant, value, headers);
        let start = if is_first { HEADER_BYTES } else { self.size };
        let end = start + sizes.bytes();
        if end > most_bytes && !is_first {
            return false;
        }
        while self.chunks.len() * CHUNK_BYTES < end {
            self.chunks.push(chunks.take());
        }
        sizes.write((&mut self.chunks, start), constant, value, headers);
        (self.size, self.count) = (end, self.count + 1);
        self.most_time = self.most_time.max(time);
        if end - self.summed.0 >= SUM_BYTES {
            self.sum();
        }
        match self.runs.last_mut() {
            Some(run) if run.token == tag.token => {
                run.records += 1;
                run.booked_bytes += u64::from(tag.booked_bytes);
            }
            _ => {
                let Tag { token, booked_bytes } = tag;
                self.runs.push(Run { token, booked_bytes: booked_bytes.into(), records: 1 });
            }
        }
        true
    }

    /// Number of records.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// True if there is no record.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes on the wire.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Writes the header. After this the batch can be sent.
    pub fn seal(&mut self, sequence: Sequence) {
        let (count, size) = (self.count, self.size);
        let Some(first) = self.chunks.first_mut().filter(|_| count > 0) else { return };
        let mut put = |place: usize, value: &[u8]| {
            first[place..place + value.len()].copy_from_slice(value);
        };
        let length = u32::try_from(size - place::LEADER_EPOCH).unwrap_or(u32::MAX);
        put(0, &0_i64.to_be_bytes());
        put(place::LENGTH, &length.to_be_bytes());
        put(place::LEADER_EPOCH, &(-1_i32).to_be_bytes());
        put(place::MAGIC, &[2]);
        put(place::ATTRIBUTES, &[0, 0]);
        put(place::LAST_OFFSET_DELTA, &(count - 1).to_be_bytes());
        put(place::BASE_TIME, &self.base_time.to_be_bytes());
        put(place::MOST_TIME, &self.most_time.to_be_bytes());
        put(place::PRODUCER_ID, &sequence.producer_id.to_be_bytes());
        put(place::PRODUCER_EPOCH, &sequence.epoch.to_be_bytes());
        put(place::BASE_SEQUENCE, &sequence.first.to_be_bytes());
        put(place::COUNT, &count.to_be_bytes());
        let of_header = crc32c::crc32c(&first[place::ATTRIBUTES..HEADER_BYTES]);
        let crc = if self.summed == NOT_SUMMED {
            // All of it is in the first chunk: that is quicker than to join two.
            crc32c::crc32c_append(of_header, &first[HEADER_BYTES..size])
        } else {
            self.sum();
            crc32c::crc32c_combine(of_header, self.summed.1, size - HEADER_BYTES)
        };
        self.chunks[0][place::CRC..place::ATTRIBUTES].copy_from_slice(&crc.to_be_bytes());
    }

    /// Header and records, as they go over the wire one behind the other.
    pub fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        let starts = (0..self.size).step_by(CHUNK_BYTES);
        starts.zip(&self.chunks).map(|(at, chunk)| &chunk[..CHUNK_BYTES.min(self.size - at)])
    }

    /// The same, copied.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.size);
        self.pieces().for_each(|piece| bytes.extend_from_slice(piece));
        bytes
    }

    /// A copy of the records, to be looked at one by one.
    pub fn records(&self) -> Records {
        Records { bytes: self.to_vec(), taken: HEADER_BYTES, runs: self.runs.clone(), run: 0 }
    }

    /// Whose the records are, in order.
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }
}

/// Records of a batch.
#[derive(Debug)]
pub struct Records {
    bytes: Vec<u8>,
    /// Those of them that are read.
    taken: usize,
    /// Each with those of its records that are not.
    runs: Vec<Run>,
    /// The first that has any.
    run: usize,
}

impl Records {
    /// The next one, and its token.
    pub fn read(&mut self) -> Option<(Record<'_>, u64)> {
        let run = self.runs.get_mut(self.run)?;
        let token = run.token;
        run.records -= 1;
        if run.records == 0 {
            self.run += 1;
        }
        let mut reader = Reader::new(&self.bytes[self.taken..]);
        // They are our own: each can be read.
        let record = Record::read(&mut reader).ok()?;
        self.taken = self.bytes.len() - reader.rest().len();
        Some((record, token))
    }

    /// True if all were read.
    pub fn is_empty(&self) -> bool {
        self.run == self.runs.len()
    }
}

/// A record of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// Its time, from the batch's first record on, in milliseconds.
    pub time_delta: i64,
    /// Its place, from the batch's first record on.
    pub offset_delta: i32,
    /// Its key.
    pub key: Option<&'a [u8]>,
    /// Its value.
    pub value: Option<&'a [u8]>,
    headers: Reader<'a>,
}

impl<'a> Record<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        let mut fields = Reader::new(reader.varint_bytes()?.ok_or(Malformed::Length)?);
        fields.i8()?;
        Ok(Self {
            time_delta: fields.varlong()?,
            offset_delta: fields.varint()?,
            key: fields.varint_bytes()?,
            value: fields.varint_bytes()?,
            headers: fields,
        })
    }

    /// Its headers: name and value.
    pub fn headers(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        let mut reader = self.headers;
        let count = reader.varint().unwrap_or_default();
        (0..count).map_while(move |_| {
            let name = reader.varint_bytes().ok()??;
            Some((name, reader.varint_bytes().ok()?.unwrap_or_default()))
        })
    }
}

#[cfg(test)]
mod tests;
