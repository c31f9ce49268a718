//! Record batches of format 2 (<https://kafka.apache.org/documentation/#recordbatch>), uncompressed.
//!
//! A record is written once, behind room for the batch's header; the header is written when the batch is to
//! be sent, and again if its sequence number has to change.

mod constant;

use crate::primitive::{MOST_VARINT_BYTES, Malformed, Reader, put_signed, put_unsigned};

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

/// Of the length of a record of 64 bytes to 8 KiB.
const USUAL_LENGTH_BYTES: usize = 2;

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

/// What a record's writer wants to know of it when its fate is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// Whatever the writer chooses.
    pub token: u64,
    /// The bytes that it has booked for the record.
    pub booked_bytes: u32,
}

/// Records of one partition in wire format, and a tag for each.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    tags: Vec<Tag>,
    base_time: i64,
    most_time: i64,
    /// The bytes and the latest time before the last record.
    before_last: (usize, i64),
}

impl Batch {
    /// Without records.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes all records out; the memory stays, up to `most_bytes` for records and as much for tags.
    pub fn clear(&mut self, most_bytes: usize) {
        self.bytes.clear();
        self.bytes.shrink_to(most_bytes);
        self.tags.clear();
        self.tags.shrink_to(most_bytes / size_of::<Tag>());
    }

    /// The memory that it takes, filled or not.
    pub(crate) fn memory(&self) -> usize {
        size_of::<Self>() + self.bytes.capacity() + self.tags.capacity() * size_of::<Tag>()
    }

    /// Appends a record; its time is in Unix milliseconds, or -1. Its headers follow the constant ones.
    pub fn push<'a>(
        &mut self,
        time: i64,
        constant: Constant<'_>,
        value: &[u8],
        headers: impl Iterator<Item = (&'a [u8], &'a [u8])>,
        tag: Tag,
    ) {
        let out = &mut self.bytes;
        if self.tags.is_empty() {
            out.clear();
            out.resize(HEADER_BYTES, 0);
            (self.base_time, self.most_time) = (time, time);
        }
        self.before_last = (out.len(), self.most_time);
        self.most_time = self.most_time.max(time);
        // The lengths of the record and of its headers stand before them. Most take so many bytes.
        let start = out.len();
        out.extend_from_slice(&[0; USUAL_LENGTH_BYTES]);
        out.push(0);
        put_signed(out, time.wrapping_sub(self.base_time));
        put_length(out, self.tags.len());
        out.extend_from_slice(constant.key);
        put_bytes(out, value);
        let place_of_count = out.len();
        out.push(0);
        out.extend_from_slice(constant.headers);
        let mut count = constant.count;
        headers.for_each(|(name, value)| {
            put_bytes(out, name);
            put_bytes(out, value);
            count += 1;
        });
        set_length_at(out, place_of_count, 1, count);
        let size = out.len() - start - USUAL_LENGTH_BYTES;
        set_length_at(out, start, USUAL_LENGTH_BYTES, size);
        self.tags.push(tag);
    }

    /// Takes the record out again that was appended last. Once.
    pub fn take_back(&mut self) {
        let (length, most_time) = self.before_last;
        self.bytes.truncate(length);
        self.most_time = most_time;
        self.tags.pop();
    }

    /// Number of records.
    pub fn count(&self) -> u32 {
        u32::try_from(self.tags.len()).expect("a batch is far below 4 GiB")
    }

    /// True if there is no record.
    pub fn is_empty(&self) -> bool {
        self.tags.is_empty()
    }

    /// Bytes on the wire.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// Writes the header. After this the batch can be sent.
    pub fn seal(&mut self, sequence: Sequence) {
        let count = self.count();
        let Some(header) = self.bytes.first_chunk_mut::<HEADER_BYTES>() else { return };
        let mut put = |place: usize, value: &[u8]| {
            header[place..place + value.len()].copy_from_slice(value);
        };
        put(place::LEADER_EPOCH, &(-1_i32).to_be_bytes());
        put(place::MAGIC, &[2]);
        put(place::ATTRIBUTES, &[0, 0]);
        put(place::LAST_OFFSET_DELTA, &count.saturating_sub(1).to_be_bytes());
        put(place::BASE_TIME, &self.base_time.to_be_bytes());
        put(place::MOST_TIME, &self.most_time.to_be_bytes());
        put(place::PRODUCER_ID, &sequence.producer_id.to_be_bytes());
        put(place::PRODUCER_EPOCH, &sequence.epoch.to_be_bytes());
        put(place::BASE_SEQUENCE, &sequence.first.to_be_bytes());
        put(place::COUNT, &count.to_be_bytes());
        let length = u32::try_from(self.bytes.len() - place::LEADER_EPOCH).unwrap_or(u32::MAX);
        self.bytes[place::LENGTH..place::LEADER_EPOCH].copy_from_slice(&length.to_be_bytes());
        let crc = crc32c::crc32c(&self.bytes[place::ATTRIBUTES..]);
        self.bytes[place::CRC..place::ATTRIBUTES].copy_from_slice(&crc.to_be_bytes());
    }

    /// Header and records, as they go over the wire.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The records, with their tags.
    pub fn records(&self) -> impl Iterator<Item = (Record<'_>, Tag)> {
        let mut reader = Reader::new(self.bytes.get(HEADER_BYTES..).unwrap_or_default());
        // They are our own: each can be read.
        self.tags.iter().map_while(move |tag| Some((Record::read(&mut reader).ok()?, *tag)))
    }

    /// The tags of all records, in order.
    pub fn tags(&self) -> impl Iterator<Item = Tag> {
        self.tags.iter().copied()
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

fn put_length(out: &mut Vec<u8>, length: usize) {
    put_unsigned(out, (length as u64) << 1);
}

/// Writes a length where so many bytes are kept for it. If it takes more or fewer, what follows moves.
fn set_length_at(out: &mut Vec<u8>, place: usize, kept: usize, length: usize) {
    let (mut bytes, mut count, mut rest) = ([0; MOST_VARINT_BYTES], 0, (length as u64) << 1);
    while rest >= 0x80 {
        bytes[count] = rest.to_le_bytes()[0] | 0x80;
        rest >>= 7;
        count += 1;
    }
    bytes[count] = rest.to_le_bytes()[0];
    let bytes = &bytes[..=count];
    if bytes.len() == kept {
        out[place..place + kept].copy_from_slice(bytes);
    } else {
        out.splice(place..place + kept, bytes.iter().copied());
    }
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_length(out, bytes.len());
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests;
