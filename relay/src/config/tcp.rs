//! `[service.tcp]`: how long a connection outlives a client that has vanished.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::engine::SocketOptions;

/// Options of a service's sockets (tcp(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct TcpSection {
    /// A client from which nothing has come for this long gets a keep-alive probe (`TCP_KEEPIDLE`).
    /// Seconds; 0: no probes.
    pub keepalive_idle_s: u16,
    /// Time between two probes (`TCP_KEEPINTVL`). Seconds.
    pub keepalive_interval_s: u16,
    /// So many probes go unanswered before the connection is closed (`TCP_KEEPCNT`). No effect with
    /// `user_timeout_ms`.
    pub keepalive_probes: u8,
    /// A connection on which the client has not acknowledged what was sent, or has had no room for it, for
    /// this long is closed (`TCP_USER_TIMEOUT`). It also decides when unanswered probes close it.
    /// Milliseconds; 0: after `net.ipv4.tcp_retries2` retransmissions.
    pub user_timeout_ms: u32,
}

impl Default for TcpSection {
    fn default() -> Self {
        Self {
            keepalive_idle_s: 60,
            // The kernel's own (ip-sysctl.rst): together 12¼ minutes.
            keepalive_interval_s: 75,
            keepalive_probes: 9,
            user_timeout_ms: 0,
        }
    }
}

impl TcpSection {
    /// Refuses what would end connections that nothing is wrong with.
    pub(super) fn check(&self, hands_on: bool) -> Result<(), String> {
        if hands_on && self.user_timeout_ms != 0 {
            return Err("tcp.user_timeout_ms must be 0 where auto.otherwise is \"hand_on\": a connection \
                        that is handed on may stand still for as long as one of its ends does not read"
                .to_owned());
        }
        Ok(())
    }

    /// What that is for a socket.
    pub fn options(&self) -> SocketOptions {
        let seconds = |seconds: u16| Duration::from_secs(u64::from(seconds));
        let keepalive = (self.keepalive_idle_s > 0).then(|| {
            let (idle, interval) = (self.keepalive_idle_s, self.keepalive_interval_s);
            (seconds(idle), seconds(interval), u32::from(self.keepalive_probes))
        });
        let timeout = Duration::from_millis(u64::from(self.user_timeout_ms));
        SocketOptions { keepalive, user_timeout: (!timeout.is_zero()).then_some(timeout) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str, hands_on: bool) -> Result<(), String> {
        toml::from_str::<TcpSection>(text).map_err(|error| error.to_string())?.check(hands_on)
    }

    #[test]
    fn a_connection_that_may_stand_still_has_no_user_timeout() {
        assert_eq!(told("user_timeout_ms = 0", true), Ok(()));
        let wrong = told("user_timeout_ms = 60000", true).expect_err("it was taken");
        assert!(wrong.contains("must be 0") && wrong.contains("hand_on"), "{wrong}");
    }

    #[test]
    fn zero_is_off() {
        let off = TcpSection { keepalive_idle_s: 0, ..TcpSection::default() };
        assert_eq!(off.options(), SocketOptions::default());
        let (idle, interval, probes) = TcpSection::default().options().keepalive.expect("on");
        assert_eq!((idle.as_secs(), interval.as_secs(), probes), (60, 75, 9));
    }
}
