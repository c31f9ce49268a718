//! Lines up to an empty one: the head of a request, or the trailer section of a chunked body.

use super::refused::Refused;

/// Collects lines until an empty one, and refuses the bytes that no line may have. It looks at each
/// byte in turn, so that where a stream was cut makes no difference.
#[derive(Debug)]
pub(super) struct Lines {
    bytes: Vec<u8>,
    /// Where the line that is being read begins.
    line: usize,
    /// An empty line was skipped already.
    skipped: bool,
}

/// What an idle connection keeps allocated.
const KEPT_BYTES: usize = 1024;

impl Lines {
    pub(super) const fn new() -> Self {
        Self { bytes: Vec::new(), line: 0, skipped: false }
    }

    /// True if nothing of a line has come.
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Bytes in memory.
    pub(super) fn kept_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// All lines, the empty one included.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Begins anew.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(KEPT_BYTES);
        self.line = 0;
        self.skipped = false;
    }

    /// Takes a request's line and fields: how many bytes belong to them, and whether that is all.
    ///
    /// One empty line before them is skipped (RFC 9112 section 2.2), no second one.
    pub(super) fn head(&mut self, input: &[u8], limit: usize) -> Result<(usize, bool), Refused> {
        for (index, byte) in input.iter().enumerate() {
            let ended = self.push(*byte, limit).map_err(|error| match error {
                Refused::TOO_LONG if self.line == 0 => Refused::TARGET_TOO_LONG,
                error => error,
            })?;
            if !ended {
                continue;
            }
            if self.bytes.len() > 2 {
                return Ok((index + 1, true));
            }
            if self.skipped {
                return Err(Refused::bad("there are empty lines before the request"));
            }
            self.clear();
            self.skipped = true;
        }
        Ok((input.len(), false))
    }

    /// Takes fields alone, which may be none.
    pub(super) fn fields(&mut self, input: &[u8], limit: usize) -> Result<(usize, bool), Refused> {
        for (index, byte) in input.iter().enumerate() {
            if self.push(*byte, limit)? {
                return Ok((index + 1, true));
            }
        }
        Ok((input.len(), false))
    }

    /// Takes a byte; true if it ends an empty line.
    fn push(&mut self, byte: u8, limit: usize) -> Result<bool, Refused> {
        let after_return = self.bytes.last() == Some(&b'\r');
        match byte {
            b'\n' if after_return => {
                self.bytes.push(byte);
                let empty = self.bytes.len() - self.line == 2;
                self.line = self.bytes.len();
                return Ok(empty);
            }
            b'\n' => return Err(Refused::bad("a line ends without a carriage return")),
            _ if after_return => return Err(Refused::bad("a carriage return ends no line")),
            b'\r' | b'\t' | b' '..=b'~' | 0x80.. => {}
            _ => return Err(Refused::bad("there is a control character")),
        }
        if self.bytes.len() >= limit {
            return Err(Refused::TOO_LONG);
        }
        self.bytes.push(byte);
        Ok(false)
    }
}
