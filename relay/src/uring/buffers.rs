//! A ring of provided buffers (`io_uring_register_buf_ring(3)`).

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::IoUring;
use io_uring::types::BufRingEntry;

use crate::engine::{BufferId, reserve};

/// Anonymous memory, page-aligned.
#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

impl Mapping {
    fn new(length: usize) -> io::Result<Self> {
        use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
        // SAFETY: a new private mapping; no existing memory is touched.
        let start = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, length })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly what was mapped; the engine drops its ring, and so the kernel's use of
        // the memory, before this.
        unsafe {
            let _ = rustix::mm::munmap(self.start.as_ptr().cast(), self.length);
        }
    }
}

/// Receive buffers, and the ring from which the kernel takes them.
///
/// What a wait brings may have to be [kept](crate::engine::Engine::recycle). So the kernel is offered no more
/// buffers than may be kept beside those that are; but for a reserve, which it is offered in any case.
#[derive(Debug)]
pub(super) struct BufferRing {
    ring: Mapping,
    memory: Mapping,
    entries: u16,
    buffer_bytes: usize,
    tail: u16,
    /// So many of them the kernel has.
    offered: u16,
    /// Those that are neither offered nor lent, the last used one last: it may still be in a cache.
    idle: Vec<u16>,
}

impl BufferRing {
    pub(super) const GROUP: u16 = 0;

    /// Allocates and registers `entries` (a power of two up to 32768) buffers of `buffer_bytes`.
    pub(super) fn new(ring: &IoUring, entries: u16, buffer_bytes: u32) -> io::Result<Self> {
        let buffer_bytes = buffer_bytes as usize;
        let mut buffers = Self {
            ring: Mapping::new(usize::from(entries) * size_of::<BufRingEntry>())?,
            memory: Mapping::new(usize::from(entries) * buffer_bytes)?,
            entries,
            buffer_bytes,
            tail: 0,
            offered: 0,
            idle: (0..entries).rev().collect(),
        };
        // SAFETY: page-aligned zeroed memory of `entries` entries that lives as long as the ring:
        // the engine holds both and drops the ring first.
        unsafe {
            ring.submitter().register_buf_ring_with_flags(
                buffers.ring.start.addr().get() as u64,
                entries,
                Self::GROUP,
                0,
            )?;
        }
        buffers.offer();
        Ok(buffers)
    }

    fn push(&mut self, id: u16) {
        let index = usize::from(self.tail & (self.entries - 1));
        // SAFETY: `index` is below `entries`, and `id` comes from 0..entries, so entry and buffer
        // lie inside their mappings. The kernel reads the entry only once the tail is published.
        unsafe {
            let entry = &mut *self.ring.start.cast::<BufRingEntry>().as_ptr().add(index);
            let address = self.memory.start.as_ptr().add(usize::from(id) * self.buffer_bytes);
            entry.set_addr(address.addr() as u64);
            entry.set_len(u32::try_from(self.buffer_bytes).expect("checked configuration"));
            entry.set_bid(id);
        }
        self.tail = self.tail.wrapping_add(1);
    }

    fn publish(&self) {
        // SAFETY: the ring's first entry holds the tail, which the kernel reads with acquire
        // ordering; it is aligned for u16 and nobody else writes it.
        unsafe {
            let tail = BufRingEntry::tail(self.ring.start.cast::<BufRingEntry>().as_ptr());
            AtomicU16::from_ptr(tail.cast_mut()).store(self.tail, Ordering::Release);
        }
    }

    /// The first `length` bytes of a buffer that the kernel has filled and lent.
    pub(super) fn bytes(&self, buffer: &BufferId, length: usize) -> &[u8] {
        assert!(buffer.0 < self.entries && length <= self.buffer_bytes, "the kernel's own ids");
        // SAFETY: inside the mapping, as asserted; while the buffer is lent the kernel does not
        // write to it, and giving it back takes the `BufferId` that this borrows.
        unsafe {
            let start = self.memory.start.as_ptr().add(usize::from(buffer.0) * self.buffer_bytes);
            std::slice::from_raw_parts(start, length)
        }
    }

    /// The kernel has lent a buffer.
    pub(super) fn lend(&mut self, id: u16) -> BufferId {
        self.offered -= 1;
        BufferId(id)
    }

    /// Takes a buffer back.
    #[allow(clippy::needless_pass_by_value)]
    pub(super) fn recycle(&mut self, buffer: BufferId) {
        self.idle.push(buffer.0);
    }

    /// Offers buffers to the kernel; gives how many it has.
    pub(super) fn offer(&mut self) -> u16 {
        let lent = self.entries - self.offered - u16::try_from(self.idle.len()).expect("entries");
        let reserve = reserve(self.entries);
        let most = (self.entries - reserve).saturating_sub(lent).max(reserve);
        let before = self.offered;
        while self.offered < most
            && let Some(id) = self.idle.pop()
        {
            self.push(id);
            self.offered += 1;
        }
        if self.offered != before {
            self.publish();
        }
        self.offered
    }
}
