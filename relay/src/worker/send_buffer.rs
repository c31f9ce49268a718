//! Bytes on their way to a peer.

use std::io;

/// What an idle buffer keeps of its memory.
const KEPT_BYTES: usize = 16 << 10;

/// Two buffers that take turns: while the engine has one for a send, the other collects what follows.
#[derive(Debug, Default)]
pub(super) struct SendBuffer {
    /// Behind the send that is going on.
    pub(super) waiting: Vec<u8>,
    /// Bytes of the send that is going on; 0: none is.
    sending_bytes: usize,
    /// The other buffer, when no send has it.
    spare: Vec<u8>,
}

/// How much of a send the peer's kernel has taken.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// All of it.
    All,
    /// A part. The rest is to be sent next.
    Part(Vec<u8>),
    /// Nothing: the connection has failed.
    Nothing,
}

impl SendBuffer {
    /// All bytes that wait for the peer.
    #[inline]
    pub(super) fn bytes(&self) -> usize {
        self.waiting.len() + self.sending_bytes
    }

    /// True while a send is going on.
    pub(super) fn is_sending(&self) -> bool {
        self.sending_bytes > 0
    }

    /// The buffer of the next send, if one should begin.
    pub(super) fn begin_send(&mut self) -> Option<Vec<u8>> {
        if self.sending_bytes > 0 || self.waiting.is_empty() {
            return None;
        }
        let buffer = std::mem::replace(&mut self.waiting, std::mem::take(&mut self.spare));
        self.sending_bytes = buffer.len();
        Some(buffer)
    }

    /// Takes the buffer of a send back, with its result.
    pub(super) fn end_send(&mut self, mut buffer: Vec<u8>, result: &io::Result<usize>) -> Taken {
        match *result {
            Ok(sent) if sent == buffer.len() => {
                buffer.clear();
                buffer.shrink_to(KEPT_BYTES);
                self.spare = buffer;
                self.sending_bytes = 0;
                Taken::All
            }
            Ok(sent) if sent > 0 => {
                buffer.drain(..sent);
                self.sending_bytes = buffer.len();
                Taken::Part(buffer)
            }
            Ok(_) | Err(_) => Taken::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_a_send_is_sent_behind_it_and_the_buffers_take_turns() {
        let mut output = SendBuffer::default();
        assert_eq!(output.begin_send(), None);
        output.waiting.extend_from_slice(b"first");
        let first = output.begin_send().expect("there is something");
        let place = first.as_ptr();
        output.waiting.extend_from_slice(b"second");
        assert_eq!((output.begin_send(), output.bytes()), (None, 11));
        let Taken::Part(rest) = output.end_send(first, &Ok(2)) else { panic!("it took two bytes") };
        assert_eq!((&rest[..], output.begin_send(), output.bytes()), (&b"rst"[..], None, 9));
        assert_eq!(output.end_send(rest, &Ok(3)), Taken::All);
        assert_eq!(output.begin_send().as_deref(), Some(&b"second"[..]));
        assert_eq!(output.waiting.as_ptr(), place, "nothing is allocated anew");
    }

    #[test]
    fn a_large_buffer_is_given_back_and_a_failed_send_stays() {
        let waiting = vec![0; 4 * KEPT_BYTES];
        let mut output = SendBuffer { waiting, ..SendBuffer::default() };
        let sent = output.begin_send().expect("there is something");
        let bytes = sent.len();
        assert_eq!(output.end_send(sent, &Ok(bytes)), Taken::All);
        assert!(output.spare.capacity() <= 2 * KEPT_BYTES);
        for result in [Ok(0), Err(io::ErrorKind::ConnectionReset.into())] {
            let mut output = SendBuffer { waiting: vec![0], ..SendBuffer::default() };
            let sent = output.begin_send().expect("there is something");
            assert_eq!(output.end_send(sent, &result), Taken::Nothing);
            assert_eq!(output.bytes(), 1, "nothing more is sent");
        }
    }
}
