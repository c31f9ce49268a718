//! Settings that change while the worker runs. They come as an order, between two turns, so that a turn sees
//! one value of each, and reads it without a lock.

use crate::engine::{Engine, SocketId};

use super::Worker;
use super::shared::LiveSettings;

impl<E: Engine> Worker<E> {
    /// Takes settings over: those of its connections that exist, too, if they depend on them later.
    pub(super) fn take_over(&mut self, settings: &LiveSettings) {
        let LiveSettings { limits, services } = settings;
        assert_eq!(
            services.len(),
            self.shared.services.len(),
            "the services are those of the start"
        );
        self.engine.set_batch_wait(limits.batch_wait_us);
        self.shared.limits = limits.clone();
        self.shared.services = services.clone();
        // Their time may be over earlier than when they are looked at next.
        let slots = u32::try_from(self.connections.len()).expect("sockets are u32");
        for socket in (0..slots).map(SocketId) {
            if self.connections[socket.index()].is_some() {
                self.set_timer(socket);
            }
        }
    }
}
