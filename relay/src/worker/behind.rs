//! Clients that read slower than their servers write. What is beyond the bound stays in the downlink's
//! log, and is read again when its client has read on; everybody else's replies pass it.

use std::sync::atomic::Ordering;

use crate::engine::{Engine, SocketId};
use crate::model::ReplyOffset;
use crate::ring::Return;

use super::Worker;
use super::connection::{Link, State};

/// What a reply that is postponed counts as beside its payload.
const POSTPONED_OVERHEAD_BYTES: usize = 128;
/// Most replies that are postponed at a time, of all connections of the relay. A connection may have as many
/// as there are left for others: one alone half of them, and whoever comes after any number of those always
/// some.
const MOST_POSTPONED: u64 = 1_000_000;

impl Link {
    /// True while replies to it are postponed.
    pub(super) fn is_waiting(&self) -> bool {
        self.behind.as_ref().is_some_and(|behind| behind.is_waiting())
    }
}

impl<E: Engine> Worker<E> {
    /// Whether a reply has to wait in the log.
    pub(super) fn must_wait(&self, socket: SocketId) -> bool {
        let connection = self.connections[socket.index()].as_ref().expect("just seen");
        let link = &connection.link;
        link.is_waiting()
            || link.output.bytes() > self.shared.limits.reply_limit_bytes
            || connection.codec.is_full()
    }

    /// Lets the downlink's offset pass replies that a client has and has not confirmed for too long. They
    /// are noted as those are that are postponed, unless there are too many of these; with the connection's
    /// end they go where others go.
    pub(super) fn leave_unconfirmed(&mut self, socket: SocketId, overdue: ReplyOffset) {
        let left = self.left_for_others();
        let link = &mut self.connection(socket).link;
        if link.unconfirmed.below(overdue) > left {
            return;
        }
        let key = link.key;
        for offset in link.unconfirmed.leave_below(overdue) {
            self.shared.postponed.fetch_add(1, Ordering::Relaxed);
            let returned = Return::Unconfirmed { key, offset };
            self.settlement.give_back(returned, Some(offset), &self.downlink);
        }
    }

    /// How many replies more may be postponed.
    fn left_for_others(&self) -> u64 {
        MOST_POSTPONED.saturating_sub(self.shared.postponed.load(Ordering::Relaxed))
    }

    /// The client may have confirmed something: there may be room for more.
    pub(super) fn has_confirmed(&mut self, socket: SocketId) {
        if self.connection(socket).link.is_waiting() {
            self.ask_on(socket);
        }
    }

    /// Leaves a reply, or an order, where it is. False if too much is there already, and the connection is
    /// closed for that.
    pub(super) fn postpone(&mut self, socket: SocketId, offset: ReplyOffset, bytes: usize) -> bool {
        let most = self.shared.limits.reply_backlog_bytes;
        let left = self.left_for_others();
        let link = &mut self.connection(socket).link;
        let key = link.key;
        let behind = link.behind.get_or_insert_default();
        let counted = bytes + POSTPONED_OVERHEAD_BYTES;
        if behind.replies >= left || behind.bytes + counted > most {
            self.give_up(socket);
            return false;
        }
        behind.bytes += counted;
        behind.replies += 1;
        behind.last = Some(offset);
        self.shared.postponed.fetch_add(1, Ordering::Relaxed);
        self.stats.replies_postponed.add(1);
        let returned = Return::Postponed { key, offset, bytes };
        self.settlement.give_back(returned, Some(offset), &self.downlink);
        self.set_timer(socket);
        true
    }

    /// A reply that was postponed has been dealt with; with the last of them nothing waits any more.
    pub(super) fn has_come(
        &mut self,
        socket: SocketId,
        offset: ReplyOffset,
        bytes: usize,
        last: bool,
    ) {
        let now = self.now;
        let connection = self.connection(socket);
        let Some(behind) = &mut connection.link.behind else { return };
        behind.bytes = behind.bytes.saturating_sub(bytes + POSTPONED_OVERHEAD_BYTES);
        behind.replies = behind.replies.saturating_sub(1);
        behind.asked &= !last;
        if behind.last == Some(offset) {
            behind.last = None;
            // Its silence until now means nothing.
            connection.not_read(now);
            if connection.state == State::HalfClosed && !connection.codec.owes() {
                self.linger(socket);
            }
        }
        self.go_on(socket);
        self.set_timer(socket);
    }

    /// The client has read all of a send.
    pub(super) fn has_read(&mut self, socket: SocketId) {
        if self.connection(socket).link.behind.is_some() {
            self.go_on(socket);
        }
    }

    /// Forgets that a connection was behind, or asks for more.
    fn go_on(&mut self, socket: SocketId) {
        let link = &mut self.connection(socket).link;
        if !link.is_waiting() && link.output.bytes() == 0 {
            link.behind = None;
        } else {
            self.ask_on(socket);
        }
    }

    /// Asks for what was postponed, if there is room for it.
    fn ask_on(&mut self, socket: SocketId) {
        let room = self.shared.limits.reply_limit_bytes / 2;
        let connection = self.connection(socket);
        let takes = connection.writes() && connection.codec.has_room();
        let link = &mut connection.link;
        if let Some(behind) = &mut link.behind
            && takes
            && behind.is_waiting()
            && !behind.asked
            && link.output.bytes() <= room
        {
            behind.asked = true;
            let key = link.key;
            self.settlement.give_back(Return::Resume(key), None, &self.downlink);
        }
    }
}
