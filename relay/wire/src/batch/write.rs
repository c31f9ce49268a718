//! How a record is written: its size is known before, because it stands before it.

use super::chunks::{CHUNK_BYTES, Chunk};
use super::{Constant, Headers};
use crate::primitive::{MOST_VARINT_BYTES, zigzag};

/// Of a length below 4 GiB.
const MOST_LENGTH_BYTES: usize = 5;
/// Of the record's length, its attributes, its time and its place.
const MOST_HEAD_BYTES: usize = 2 * MOST_LENGTH_BYTES + 1 + MOST_VARINT_BYTES;

/// What is known of a record before it is written.
pub(super) struct Sizes {
    head: Small<MOST_HEAD_BYTES>,
    /// Of what is behind the head.
    body: usize,
    /// Number of its headers.
    headers: usize,
}

impl Sizes {
    /// Of a record with this time and this number, counted from the batch's first one.
    #[inline]
    pub(super) fn new(
        (time_delta, place): (i64, u32),
        constant: Constant<'_>,
        value: &[u8],
        headers: &impl Headers,
    ) -> Self {
        let mut body = constant.key.len() + size(value) + constant.headers.len();
        let mut count = constant.count;
        headers.each(|name, value| {
            body += size(name) + size(value);
            count += 1;
        });
        body += length_bytes(count);
        let time_delta = zigzag(time_delta);
        let behind_length = 1 + varint_bytes(time_delta) + length_bytes(place as usize) + body;
        let mut head = Small::new();
        head.put_length(behind_length);
        // Attributes: there are none.
        head.put(&[0]);
        head.put_varint(time_delta);
        head.put_length(place as usize);
        Self { head, body, headers: count }
    }

    /// Of the whole record.
    #[inline]
    pub(super) fn bytes(&self) -> usize {
        self.head.length + self.body
    }

    /// Writes the record into chunks in which there is room for it, from this byte of theirs on.
    #[inline]
    pub(super) fn write(
        &self,
        (chunks, at): (&mut [Chunk], usize),
        constant: Constant<'_>,
        value: &[u8],
        headers: &impl Headers,
    ) {
        let (chunk, place) = (at / CHUNK_BYTES, at % CHUNK_BYTES);
        if let Some(room) = chunks[chunk].get_mut(place..place + self.bytes()) {
            self.write_to(&mut Within(room), constant, value, headers);
        } else {
            self.write_to(&mut Across { chunks, at }, constant, value, headers);
        }
    }

    #[inline]
    fn write_to(
        &self,
        out: &mut impl Sink,
        constant: Constant<'_>,
        value: &[u8],
        headers: &impl Headers,
    ) {
        out.put(self.head.as_bytes());
        out.put(constant.key);
        out.put_with_length(value);
        out.put_length(self.headers);
        out.put(constant.headers);
        headers.each(|name, value| {
            out.put_with_length(name);
            out.put_with_length(value);
        });
    }
}

/// What takes bytes one behind the other.
trait Sink {
    fn put(&mut self, bytes: &[u8]);

    #[inline]
    fn put_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.put(&[value.to_le_bytes()[0] | 0x80]);
            value >>= 7;
        }
        self.put(&[value.to_le_bytes()[0]]);
    }

    #[inline]
    fn put_length(&mut self, length: usize) {
        self.put_varint((length as u64) << 1);
    }

    #[inline]
    fn put_with_length(&mut self, bytes: &[u8]) {
        self.put_length(bytes.len());
        self.put(bytes);
    }
}

/// A few bytes.
struct Small<const N: usize> {
    bytes: [u8; N],
    length: usize,
}

impl<const N: usize> Small<N> {
    const fn new() -> Self {
        Self { bytes: [0; N], length: 0 }
    }

    #[inline]
    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl<const N: usize> Sink for Small<N> {
    #[inline]
    fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.length..self.length + bytes.len()].copy_from_slice(bytes);
        self.length += bytes.len();
    }
}

/// Within one chunk: the room that is left for the record.
struct Within<'a>(&'a mut [u8]);

impl Sink for Within<'_> {
    #[inline]
    fn put(&mut self, bytes: &[u8]) {
        let (room, rest) = std::mem::take(&mut self.0).split_at_mut(bytes.len());
        room.copy_from_slice(bytes);
        self.0 = rest;
    }
}

/// From one chunk to the next.
struct Across<'a> {
    chunks: &'a mut [Chunk],
    at: usize,
}

impl Sink for Across<'_> {
    fn put(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = &mut self.chunks[self.at / CHUNK_BYTES][self.at % CHUNK_BYTES..];
            let (part, rest) = bytes.split_at(bytes.len().min(room.len()));
            room[..part.len()].copy_from_slice(part);
            self.at += part.len();
            bytes = rest;
        }
    }
}

/// Appends bytes and, before them, their length.
pub(super) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    crate::primitive::put_unsigned(out, (bytes.len() as u64) << 1);
    out.extend_from_slice(bytes);
}

#[inline]
fn varint_bytes(value: u64) -> usize {
    (u64::BITS - (value | 1).leading_zeros()).div_ceil(7) as usize
}

#[inline]
fn length_bytes(length: usize) -> usize {
    varint_bytes((length as u64) << 1)
}

/// Of bytes with their length.
#[inline]
fn size(bytes: &[u8]) -> usize {
    length_bytes(bytes.len()) + bytes.len()
}
