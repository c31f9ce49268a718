//! Record batches of format 2 (<https://kafka.apache.org/documentation/#recordbatch>), uncompressed.
//!
//! A record is written once, behind room for the batch's header; the header is written when the batch is to
//! be sent, and again if its sequence number has to change.

use crate::primitive::{Malformed, Reader, put_signed, unsigned_size, zigzag};

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

/// Bytes of a record that are not its key, value and headers, at most: six numbers of variable length, and
/// the attributes.
const MOST_FRAME_BYTES: usize = 5 + 1 + 10 + 5 + 5 + 5 + 5;

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

    /// Appends a record; its time is in Unix milliseconds, or -1.
    pub fn push<'a>(
        &mut self,
        time: i64,
        key: &[u8],
        value: &[u8],
        headers: impl Iterator<Item = (&'a [u8], &'a [u8])> + Clone,
        tag: Tag,
    ) {
        let out = &mut self.bytes;
        if self.tags.is_empty() {
            out.clear();
            out.resize(HEADER_BYTES, 0);
            (self.base_time, self.most_time) = (time, time);
        }
        self.most_time = self.most_time.max(time);
        let (time_delta, offset_delta) = (time - self.base_time, self.tags.len());
        let (count, of_headers) =
            headers.clone().fold((0_u32, 0), |(count, bytes), (name, value)| {
                (count + 1, bytes + bytes_size(name) + bytes_size(value))
            });
        let size = 1
            + signed_size(time_delta)
            + length_size(offset_delta)
            + bytes_size(key)
            + bytes_size(value)
            + length_size(count as usize)
            + of_headers;
        out.reserve(size + MOST_FRAME_BYTES);
        put_length(out, size);
        out.push(0);
        put_signed(out, time_delta);
        put_length(out, offset_delta);
        put_bytes(out, key);
        put_bytes(out, value);
        put_length(out, count as usize);
        headers.for_each(|(name, value)| {
            put_bytes(out, name);
            put_bytes(out, value);
        });
        self.tags.push(tag);
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

    /// About how many bytes the batch would have with this record too, never fewer if `header_bytes` are
    /// those of the headers with the lengths before their names and values.
    pub fn size_with(&self, key: &[u8], value: &[u8], header_bytes: usize) -> usize {
        self.size().max(HEADER_BYTES) + MOST_FRAME_BYTES + key.len() + value.len() + header_bytes
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

const fn signed_size(value: i64) -> usize {
    unsigned_size(zigzag(value))
}

/// Of a length, which is never negative: as a signed number it takes twice its value.
const fn length_size(length: usize) -> usize {
    unsigned_size((length as u64) << 1)
}

const fn bytes_size(bytes: &[u8]) -> usize {
    length_size(bytes.len()) + bytes.len()
}

fn put_length(out: &mut Vec<u8>, length: usize) {
    crate::primitive::put_unsigned(out, (length as u64) << 1);
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_length(out, bytes.len());
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests;
