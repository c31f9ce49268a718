//! Identifies the operation of a completion; travels through the kernel in `user_data`.

use crate::engine::SocketId;

/// A submitted operation. A socket has at most one of each at a time, and its slot is not reused
/// before all of them have completed, so kind and slot say everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    /// Multishot accept on a listener, by its index.
    Accept(u32),
    /// Multishot receive.
    Receive(SocketId),
    /// Send; its buffer lies in the slot.
    Send(SocketId),
    /// Cancellation of another operation. That one's own completion says what became of it.
    Cancel,
    /// Close of a socket.
    Close(SocketId),
    /// Read of the wake-up's eventfd.
    Wake,
    /// Connect; its address lies in the slot.
    Connect(SocketId),
    /// Multishot poll for the peer's end of stream.
    Watch(SocketId),
}

impl Operation {
    const KIND_SHIFT: u32 = 32;

    pub(super) const fn pack(self) -> u64 {
        let (kind, index): (u64, u32) = match self {
            Self::Accept(index) => (0, index),
            Self::Receive(socket) => (1, socket.0),
            Self::Send(socket) => (2, socket.0),
            Self::Cancel => (3, 0),
            Self::Close(socket) => (4, socket.0),
            Self::Wake => (5, 0),
            Self::Connect(socket) => (6, socket.0),
            Self::Watch(socket) => (7, socket.0),
        };
        kind << Self::KIND_SHIFT | index as u64
    }

    /// The inverse; only what [`pack`](Self::pack) made comes back from the kernel.
    #[allow(clippy::cast_possible_truncation)]
    pub(super) fn unpack(user_data: u64) -> Self {
        let index = user_data as u32;
        match user_data >> Self::KIND_SHIFT {
            0 => Self::Accept(index),
            1 => Self::Receive(SocketId(index)),
            2 => Self::Send(SocketId(index)),
            3 => Self::Cancel,
            4 => Self::Close(SocketId(index)),
            5 => Self::Wake,
            6 => Self::Connect(SocketId(index)),
            7 => Self::Watch(SocketId(index)),
            kind => unreachable!("no operation has kind {kind}"),
        }
    }
}
