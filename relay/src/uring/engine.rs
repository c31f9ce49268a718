//! The engine: submissions, completions and the sockets between them.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use io_uring::types::{CancelBuilder, Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use socket2::{SockAddr, SockRef};

use crate::config::RelaySection;
use crate::engine::{BufferId, Engine, Event, ReceiveEnd, SocketId, SocketOptions};
use crate::model::ServiceId;
use crate::ring::Wake;

use super::buffers::BufferRing;
use super::operation::Operation;
use super::taken;

/// Submissions that fit between two enters; more are submitted early.
const SUBMISSIONS: u32 = 1024;
/// Completions the kernel can post before it has to keep them elsewhere.
const COMPLETIONS: u32 = 16_384;

/// Number of completions that ends a wait before its batch time is over: enough that a wake-up is cheap in
/// comparison, and few enough that their buffers are soon returned.
const BATCH: usize = 64;

/// Pause of a listener after a failed accept.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Sizes of an engine.
#[derive(Clone, Copy, Debug)]
pub struct EngineLimits {
    /// Most sockets.
    pub sockets: u32,
    /// Receive buffers, a power of two.
    pub buffers: u16,
    /// Size of a receive buffer.
    pub buffer_bytes: u32,
    /// How long a wait collects completions before it returns with less than a batch. A completion that
    /// arrives later than this after the wait began is not delayed. Microseconds; 0: the first completion
    /// ends a wait.
    pub batch_wait_us: u32,
}

impl EngineLimits {
    /// With sockets for connections that are on their way when the gateway is told that there are as
    /// many as may be.
    #[must_use]
    pub fn with_overshoot(self) -> Self {
        Self { sockets: self.sockets + (self.sockets / 16).max(16), ..self }
    }
}

impl From<&RelaySection> for EngineLimits {
    fn from(relay: &RelaySection) -> Self {
        Self {
            sockets: relay.max_connections,
            buffers: relay.receive_buffers,
            buffer_bytes: relay.receive_buffer_bytes,
            batch_wait_us: relay.batch_wait_us,
        }
    }
}

#[derive(Debug)]
struct Listener {
    service: ServiceId,
    socket: OwnedFd,
    armed: bool,
    /// Paused after a failure, such as too many open files, that would only recur at once.
    retry_at: Option<Instant>,
}

/// A socket and its pending operations. The ring closes the descriptor once nothing else is pending.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a request that is pending or not")]
struct Slot {
    socket: OwnedFd,
    receiving: bool,
    stopping: bool,
    /// Would be received from, had there been a buffer.
    parked: bool,
    /// The buffer that the kernel reads from until the send completes.
    sending: Option<Vec<u8>>,
    /// The address that the kernel reads until the connect completes.
    connecting: Option<Box<SockAddr>>,
    watching: bool,
    closing: bool,
}

impl Slot {
    const fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            receiving: false,
            stopping: false,
            parked: false,
            sending: None,
            connecting: None,
            watching: false,
            closing: false,
        }
    }
}

/// io_uring behind the worker's [`Engine`].
pub struct UringEngine {
    /// First, so that the kernel no longer uses the memory of the fields below when they are dropped.
    ring: IoUring,
    buffers: BufferRing,
    slots: Vec<Option<Slot>>,
    free: Vec<SocketId>,
    /// Sockets for which there was no buffer, first come first served. One that is not parked any more may
    /// still stand here.
    parked: VecDeque<SocketId>,
    listeners: Vec<Listener>,
    completions: VecDeque<cqueue::Entry>,
    /// Events that did not come from a completion.
    events: VecDeque<Event>,
    wake: Wake,
    /// Where the kernel writes the eventfd's count; boxed, so that it does not move.
    wake_count: Box<u64>,
    limit: u32,
    batch_wait_us: u32,
}

impl UringEngine {
    /// An engine for the calling thread, and for no other.
    pub fn new(limits: EngineLimits, wake: Wake) -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_cqsize(COMPLETIONS)
            .build(SUBMISSIONS)?;
        let buffers = BufferRing::new(&ring, limits.buffers, limits.buffer_bytes)?;
        let mut engine = Self {
            ring,
            buffers,
            slots: Vec::new(),
            free: Vec::new(),
            parked: VecDeque::new(),
            listeners: Vec::new(),
            completions: VecDeque::with_capacity(COMPLETIONS as usize),
            events: VecDeque::new(),
            wake,
            wake_count: Box::new(0),
            limit: limits.sockets,
            batch_wait_us: limits.batch_wait_us,
        };
        if engine.batch_wait_us > 0 && !engine.ring.params().is_feature_min_timeout() {
            tracing::info!(
                "this kernel cannot collect completions before a wake-up (Linux 6.12 can); there will be \
                 more wake-ups"
            );
            engine.batch_wait_us = 0;
        }
        engine.arm_wake();
        Ok(engine)
    }

    fn submit(&mut self, entry: squeue::Entry, operation: Operation) {
        let entry = entry.user_data(operation.pack());
        // SAFETY: every descriptor in an entry stays open and every buffer stays in place until the
        // operation's completion: sockets, buffers and the wake-up's count live in `self`, which
        // outlasts the ring, and a slot is freed only when no operation on it is pending.
        while unsafe { self.ring.submission().push(&entry) }.is_err() {
            // The queue is full: submit what is in it. With SUBMIT_ALL nothing is left behind. After an
            // interruption, retry.
            let _ = self.ring.submit();
        }
    }

    fn arm_wake(&mut self) {
        let target = (&raw mut *self.wake_count).cast();
        let entry = opcode::Read::new(Fd(self.wake.as_fd().as_raw_fd()), target, 8).build();
        self.submit(entry, Operation::Wake);
    }

    fn arm_accept(&mut self, index: usize) {
        let listener = &mut self.listeners[index];
        listener.armed = true;
        let fd = Fd(listener.socket.as_raw_fd());
        let entry = opcode::AcceptMulti::new(fd).flags(libc::SOCK_CLOEXEC).build();
        let index = u32::try_from(index).expect("listeners are few");
        self.submit(entry, Operation::Accept(index));
    }

    fn slot(&mut self, socket: SocketId) -> &mut Slot {
        self.slots[socket.index()].as_mut().expect("the socket is not closed")
    }

    fn cancel(&mut self, operation: Operation) {
        self.submit(opcode::AsyncCancel::new(operation.pack()).build(), Operation::Cancel);
    }

    /// Closes a socket that is to be closed, once no operation on it is pending.
    fn close_if_idle(&mut self, socket: SocketId) {
        let slot = self.slot(socket);
        let idle = slot.sending.is_none() && slot.connecting.is_none();
        if slot.closing && idle && !slot.receiving && !slot.watching {
            let slot = self.slots[socket.index()].take().expect("just seen");
            let fd = slot.socket.into_raw_fd();
            self.submit(opcode::Close::new(Fd(fd)).build(), Operation::Close(socket));
        }
    }

    fn event_of(&mut self, completion: &cqueue::Entry) -> Option<Event> {
        let more = cqueue::more(completion.flags());
        match Operation::unpack(completion.user_data()) {
            Operation::Accept(index) => self.accepted(index as usize, completion.result(), more),
            Operation::Receive(socket) => self.received(socket, completion, more),
            Operation::Send(socket) => {
                let buffer = self.slot(socket).sending.take().expect("a send has its buffer");
                self.close_if_idle(socket);
                let result = outcome(completion.result());
                Some(Event::Sent { socket, buffer, result })
            }
            Operation::Connect(socket) => {
                self.slot(socket).connecting = None;
                self.close_if_idle(socket);
                let result = outcome(completion.result()).map(drop);
                Some(Event::Connected { socket, result })
            }
            Operation::Watch(socket) => self.watched(socket, completion.result(), more),
            Operation::Cancel => None,
            Operation::Close(socket) => {
                self.free.push(socket);
                Some(Event::Closed { socket })
            }
            Operation::Wake => {
                self.arm_wake();
                None
            }
        }
    }

    fn watched(&mut self, socket: SocketId, result: i32, more: bool) -> Option<Event> {
        let slot = self.slot(socket);
        slot.watching &= more;
        let told = !slot.closing;
        self.close_if_idle(socket);
        let mask = libc::c_short::try_from(result).ok().filter(|mask| told && *mask > 0)?;
        let failed = mask & (libc::POLLERR | libc::POLLHUP) != 0;
        Some(Event::PeerEnded { socket, failed })
    }

    fn accepted(&mut self, index: usize, result: i32, more: bool) -> Option<Event> {
        if !more && let Some(listener) = self.listeners.get_mut(index) {
            listener.armed = false;
            listener.retry_at = (result < 0).then(|| Instant::now() + ACCEPT_RETRY);
        }
        let fd = match outcome(result) {
            Ok(fd) => RawFd::try_from(fd).expect("a descriptor is an i32"),
            Err(error) if error.raw_os_error() == Some(libc::ECANCELED) => return None,
            Err(error) => return Some(Event::AcceptFailed { error }),
        };
        // SAFETY: the kernel has just opened it for us.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        let Some(listener) = self.listeners.get(index) else {
            // Accepted while the listeners were being closed; dropping it resets the connection.
            return None;
        };
        let service = listener.service;
        match self.admit(socket) {
            Ok((socket, client, server)) => {
                Some(Event::Accepted { socket, service, client, server })
            }
            Err(error) => Some(Event::AcceptFailed { error }),
        }
    }

    fn admit(&mut self, socket: OwnedFd) -> io::Result<(SocketId, SocketAddr, SocketAddr)> {
        let address = |address: rustix::net::SocketAddrAny| {
            SocketAddr::try_from(address).map_err(io::Error::from)
        };
        let server = address(rustix::net::getsockname(&socket)?)?;
        let client = rustix::net::getpeername(&socket)?;
        let client = address(client.ok_or(io::ErrorKind::NotConnected)?)?;
        let id = self.place(socket).ok_or(io::ErrorKind::QuotaExceeded)?;
        Ok((id, client, server))
    }

    /// Gives a socket a slot, if there is one.
    fn place(&mut self, socket: OwnedFd) -> Option<SocketId> {
        let id = match self.free.pop() {
            Some(id) => id,
            None if self.slots.len() < self.limit as usize => {
                self.slots.push(None);
                SocketId(u32::try_from(self.slots.len() - 1).expect("limit is a u32"))
            }
            None => return None,
        };
        self.slots[id.index()] = Some(Slot::new(socket));
        Some(id)
    }

    fn received(
        &mut self,
        socket: SocketId,
        completion: &cqueue::Entry,
        more: bool,
    ) -> Option<Event> {
        let result = outcome(completion.result());
        let buffer = cqueue::buffer_select(completion.flags()).map(|id| self.buffers.lend(id));
        if !more {
            self.receive_ended(socket, &result);
        }
        match (result, buffer) {
            (Ok(length), Some(buffer)) if length > 0 => {
                Some(Event::Received { socket, buffer, length })
            }
            (_, Some(buffer)) => {
                self.buffers.recycle(buffer);
                self.events.pop_front()
            }
            (_, None) => self.events.pop_front(),
        }
    }

    /// Offers buffers to the kernel, and receives from as many sockets that have had none.
    fn offer_buffers(&mut self) {
        let mut buffers = self.buffers.offer();
        while buffers > 0
            && let Some(socket) = self.parked.pop_front()
        {
            let slot = self.slots[socket.index()].as_mut();
            if slot.is_some_and(|slot| std::mem::take(&mut slot.parked)) {
                self.receive(socket);
                buffers -= 1;
            }
        }
    }

    /// The multishot receive is over: for good, or to be armed again.
    fn receive_ended(&mut self, socket: SocketId, result: &io::Result<usize>) {
        let slot = self.slot(socket);
        slot.receiving = false;
        let end = match result {
            Ok(0) => ReceiveEnd::EndOfStream,
            // The kernel also ends a multishot for its own reasons.
            Ok(_) if !slot.stopping && !slot.closing => return self.receive(socket),
            Err(error)
                if error.raw_os_error() == Some(libc::ENOBUFS)
                    && !slot.stopping
                    && !slot.closing =>
            {
                slot.parked = true;
                return self.parked.push_back(socket);
            }
            Ok(_) => ReceiveEnd::Stopped,
            Err(error) => match error.raw_os_error() {
                Some(libc::ECANCELED | libc::ENOBUFS) => ReceiveEnd::Stopped,
                code => ReceiveEnd::Failed(io::Error::from_raw_os_error(code.unwrap_or(libc::EIO))),
            },
        };
        slot.stopping = false;
        self.events.push_back(Event::ReceiveEnded { socket, end });
        self.close_if_idle(socket);
    }
}

impl Drop for UringEngine {
    fn drop(&mut self) {
        // Closing the ring cancels pending operations, but only later, when the kernel gets to it. Buffers
        // must stay until then, so cancel now and wait.
        let _ = self.ring.submitter().register_sync_cancel(None, CancelBuilder::any());
    }
}

fn outcome(result: i32) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))
}

impl Engine for UringEngine {
    fn set_batch_wait(&mut self, batch_wait_us: u32) {
        let may = self.ring.params().is_feature_min_timeout();
        self.batch_wait_us = if may { batch_wait_us } else { 0 };
    }

    fn listen(&mut self, service: ServiceId, listener: OwnedFd) {
        self.listeners.push(Listener { service, socket: listener, armed: false, retry_at: None });
        self.arm_accept(self.listeners.len() - 1);
    }

    fn set_options(&mut self, socket: SocketId, options: &SocketOptions) -> io::Result<()> {
        options.set(&SockRef::from(&self.slot(socket).socket))
    }

    fn stop_listening(&mut self) {
        for index in 0..self.listeners.len() {
            let index = u32::try_from(index).expect("listeners are few");
            self.cancel(Operation::Accept(index));
        }
        // The accepts hold the files open until they are cancelled; the descriptors can go now,
        // once the cancellations have been submitted.
        let _ = self.ring.submit();
        self.listeners.clear();
    }

    fn receive(&mut self, socket: SocketId) {
        let slot = self.slot(socket);
        debug_assert!(!slot.receiving && !slot.closing);
        slot.receiving = true;
        slot.stopping = false;
        let fd = Fd(slot.socket.as_raw_fd());
        let entry = opcode::RecvMulti::new(fd, BufferRing::GROUP).build();
        self.submit(entry, Operation::Receive(socket));
    }

    fn stop_receiving(&mut self, socket: SocketId) {
        let slot = self.slot(socket);
        if slot.receiving && !slot.stopping {
            slot.stopping = true;
            self.cancel(Operation::Receive(socket));
        } else if std::mem::take(&mut slot.parked) {
            self.events.push_back(Event::ReceiveEnded { socket, end: ReceiveEnd::Stopped });
        }
    }

    fn watch(&mut self, socket: SocketId) {
        let slot = self.slot(socket);
        if !std::mem::replace(&mut slot.watching, true) {
            let fd = Fd(slot.socket.as_raw_fd());
            // Multishot, because a failure may follow the peer's end. Arriving bytes do not count.
            let mask = libc::POLLRDHUP.unsigned_abs().into();
            let entry = opcode::PollAdd::new(fd, mask).multi(true).build();
            self.submit(entry, Operation::Watch(socket));
        }
    }

    fn unread(&mut self, socket: SocketId) -> usize {
        // If the kernel does not say, it may be any number.
        let unread = rustix::io::ioctl_fionread(&self.slot(socket).socket);
        unread.ok().and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(usize::MAX)
    }

    fn send(&mut self, socket: SocketId, buffer: Vec<u8>) {
        let slot = self.slot(socket);
        debug_assert!(slot.sending.is_none() && !slot.closing);
        let fd = Fd(slot.socket.as_raw_fd());
        let length = u32::try_from(buffer.len()).unwrap_or(u32::MAX);
        let entry = opcode::Send::new(fd, buffer.as_ptr(), length)
            .flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL)
            .build();
        slot.sending = Some(buffer);
        self.submit(entry, Operation::Send(socket));
    }

    fn connect(&mut self, socket: OwnedFd, to: SocketAddr) -> Option<SocketId> {
        let id = self.place(socket)?;
        let slot = self.slot(id);
        let fd = Fd(slot.socket.as_raw_fd());
        let address = slot.connecting.insert(Box::new(to.into()));
        let entry = opcode::Connect::new(fd, address.as_ptr().cast(), address.len()).build();
        self.submit(entry, Operation::Connect(id));
        Some(id)
    }

    fn is_taken(&mut self, socket: SocketId) -> bool {
        taken::is_taken(&self.slot(socket).socket)
    }

    fn shut_down(&mut self, socket: SocketId) {
        let slot = self.slot(socket);
        debug_assert!(slot.sending.is_none() && !slot.closing);
        // It does not block. The receive reports a connection that has failed.
        let _ = rustix::net::shutdown(&slot.socket, rustix::net::Shutdown::Write);
    }

    fn abort(&mut self, socket: SocketId) {
        // A socket that does not linger is reset (`socket(7)`); without, it is closed as usual.
        let _ = SockRef::from(&self.slot(socket).socket).set_linger(Some(Duration::ZERO));
        self.close(socket);
    }

    fn close(&mut self, socket: SocketId) {
        let slot = self.slot(socket);
        if slot.closing {
            return;
        }
        slot.closing = true;
        slot.parked = false;
        if slot.connecting.is_some() {
            self.cancel(Operation::Connect(socket));
        }
        let slot = self.slot(socket);
        let (receiving, sending) = (slot.receiving && !slot.stopping, slot.sending.is_some());
        let watching = slot.watching;
        if receiving {
            self.cancel(Operation::Receive(socket));
        }
        if sending {
            self.cancel(Operation::Send(socket));
        }
        if watching {
            self.cancel(Operation::Watch(socket));
        }
        self.close_if_idle(socket);
    }

    fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        for index in 0..self.listeners.len() {
            let listener = &self.listeners[index];
            if !listener.armed && listener.retry_at.is_none_or(|at| at <= Instant::now()) {
                self.arm_accept(index);
            }
        }
        self.offer_buffers();
        let waits = self.completions.is_empty() && self.events.is_empty() && !timeout.is_zero();
        let timespec = Timespec::from(timeout);
        let mut arguments = SubmitArgs::new().timespec(&timespec);
        let mut want = usize::from(waits);
        if waits && self.batch_wait_us > 0 {
            arguments = arguments.min_wait_usec(self.batch_wait_us);
            want = BATCH;
        }
        match self.ring.submitter().submit_with_args(want, &arguments) {
            Ok(_) => {}
            Err(error) => match error.raw_os_error() {
                // The time is over, a signal arrived, or completions must be taken first.
                Some(libc::ETIME | libc::EINTR | libc::EBUSY) => {}
                _ => return Err(error),
            },
        }
        self.completions.extend(self.ring.completion());
        Ok(())
    }

    fn next_event(&mut self) -> Option<Event> {
        if let Some(event) = self.events.pop_front() {
            return Some(event);
        }
        while let Some(completion) = self.completions.pop_front() {
            if let Some(event) = self.event_of(&completion) {
                return Some(event);
            }
        }
        self.events.pop_front()
    }

    fn bytes(&self, buffer: &BufferId, length: usize) -> &[u8] {
        self.buffers.bytes(buffer, length)
    }

    fn recycle(&mut self, buffer: BufferId) {
        self.buffers.recycle(buffer);
    }
}
