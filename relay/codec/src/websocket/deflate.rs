//! Compressed messages (RFC 7692).
//!
//! Without context takeover in either direction: each message stands for itself, so that an idle
//! connection keeps no window (32 KiB) and no compressor (above 200 KiB), and all connections of a
//! thread share one of each.

use std::cell::RefCell;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// What ends every message and is not sent (section 7.2.1).
const TAIL: [u8; 4] = [0, 0, 0xff, 0xff];
/// Between the end of a stream that says it is the last one, and the end of the message
/// (section 7.2.3.4).
const MAX_REST: usize = 1 + TAIL.len();
/// Output is made room for in steps of at least so many bytes.
const STEP: usize = 4096;
/// What a thread keeps of its buffers between messages.
const KEPT_BYTES: usize = 256 << 10;

/// That messages may be compressed, and what was agreed of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Deflate {
    /// The window that the client has for our messages, if it has said so, as the power of two that it
    /// is in bytes (section 7.1.2.1).
    pub(super) window_bits: Option<u8>,
}

impl Deflate {
    /// Without context takeover nothing in a message refers to what is before it, so one that is no
    /// longer than the window does with it, whatever the compressor's own is.
    pub(super) fn allows(self, bytes: usize) -> bool {
        self.window_bits.is_none_or(|bits| bits == MAX_WINDOW_BITS || bytes <= 1 << bits)
    }
}

/// The window of the format itself: 32 KiB.
pub(super) const MAX_WINDOW_BITS: u8 = 15;

/// Why a message could not be decompressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InflateError {
    /// It is longer than it may be; nothing beyond that was decompressed.
    TooLong,
    /// It is no such stream.
    Corrupt,
}

/// A thread's.
struct Scratch {
    inflater: Decompress,
    deflater: Compress,
    output: Vec<u8>,
}

impl Scratch {
    fn new() -> Self {
        Self {
            inflater: Decompress::new(false),
            deflater: Compress::new(Compression::default(), false),
            output: Vec::new(),
        }
    }

    fn inflate(&mut self, compressed: &[u8], limit: usize) -> Result<(), InflateError> {
        let Self { inflater, output, .. } = self;
        inflater.reset(false);
        output.clear();
        for (part, after) in [(compressed, TAIL.len()), (&TAIL, 0)] {
            let mut rest = part;
            loop {
                if output.len() > limit {
                    return Err(InflateError::TooLong);
                }
                // One byte more than the limit tells a message that is too long.
                output.reserve(STEP.max(output.len()).min(limit + 1 - output.len()));
                let before = inflater.total_in();
                let status = inflater
                    .decompress_vec(rest, output, FlushDecompress::Sync)
                    .map_err(|_| InflateError::Corrupt)?;
                let taken = usize::try_from(inflater.total_in() - before).expect("of a slice");
                rest = &rest[taken..];
                match status {
                    Status::StreamEnd if output.len() > limit => return Err(InflateError::TooLong),
                    Status::StreamEnd if rest.len() + after > MAX_REST => {
                        return Err(InflateError::Corrupt);
                    }
                    Status::StreamEnd => return Ok(()),
                    // There may be more output than there was room for.
                    _ if output.len() == output.capacity() => {}
                    _ if rest.is_empty() => break,
                    _ if taken == 0 => return Err(InflateError::Corrupt),
                    _ => {}
                }
            }
        }
        if output.len() > limit { Err(InflateError::TooLong) } else { Ok(()) }
    }

    fn deflate(&mut self, payload: &[u8]) -> Option<()> {
        let Self { deflater, output, .. } = self;
        deflater.reset();
        output.clear();
        let mut rest = payload;
        loop {
            output.reserve(STEP.max(rest.len() / 2));
            let before = deflater.total_in();
            deflater.compress_vec(rest, output, FlushCompress::Sync).ok()?;
            rest = &rest[usize::try_from(deflater.total_in() - before).expect("of a slice")..];
            if rest.is_empty() && output.len() < output.capacity() {
                break;
            }
        }
        output.truncate(output.strip_suffix(&TAIL)?.len());
        (output.len() < payload.len()).then_some(())
    }
}

fn with_scratch<T>(work: impl FnOnce(&mut Scratch) -> T) -> T {
    thread_local! {
        static SCRATCH: RefCell<Option<Box<Scratch>>> = const { RefCell::new(None) };
    }
    SCRATCH.with_borrow_mut(|scratch| {
        let scratch = scratch.get_or_insert_with(|| Box::new(Scratch::new()));
        let result = work(scratch);
        scratch.output.clear();
        scratch.output.shrink_to(KEPT_BYTES);
        result
    })
}

/// Gives `read` what a message of at most `limit` bytes was before it was compressed.
pub(super) fn inflate<T>(
    compressed: &[u8],
    limit: usize,
    read: impl FnOnce(&[u8]) -> T,
) -> Result<T, InflateError> {
    with_scratch(|scratch| {
        scratch.inflate(compressed, limit)?;
        Ok(read(&scratch.output))
    })
}

/// Gives `write` a message as it is sent, if that is shorter.
pub(super) fn deflate(payload: &[u8], write: impl FnOnce(&[u8])) -> Option<()> {
    with_scratch(|scratch| {
        scratch.deflate(payload)?;
        write(&scratch.output);
        Some(())
    })
}

/// The longest that a message of so many bytes is after compression: what zlib says of itself at its
/// worst (`deflateBound` for any `memLevel` and window: codes of nine bits a byte, or stored blocks of
/// 127 bytes with five before each), and a few empty blocks.
pub(super) const fn longest_compressed(limit: usize) -> usize {
    limit + limit / 8 + limit / 64 + 64
}
