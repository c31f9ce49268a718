//! `[service.tcp]`: how long a connection outlives a client that has vanished.

use std::ops::RangeInclusive;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What the kernel takes for `TCP_KEEPIDLE` and `TCP_KEEPINTVL` (`MAX_TCP_KEEPIDLE`, `MAX_TCP_KEEPINTVL`),
/// and for `TCP_KEEPCNT` (`MAX_TCP_KEEPCNT`); `include/net/tcp.h`.
const MAX_KEEPALIVE_S: u16 = 32_767;
const MAX_KEEPALIVE_PROBES: u8 = 127;
/// Below a second, a single retransmission would end a connection; the kernel takes no negative number.
const USER_TIMEOUT_MS: RangeInclusive<u32> = 1000..=2_147_483_647;

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
    /// Refuses what the kernel would refuse, or what would end connections that nothing is wrong with.
    pub(super) fn check(&self, hands_on: bool) -> Result<(), String> {
        if self.keepalive_idle_s > MAX_KEEPALIVE_S {
            return Err(format!(
                "tcp.keepalive_idle_s must be from 1 to {MAX_KEEPALIVE_S}, or 0 for no probes"
            ));
        }
        if !(1..=MAX_KEEPALIVE_S).contains(&self.keepalive_interval_s) {
            return Err(format!("tcp.keepalive_interval_s must be from 1 to {MAX_KEEPALIVE_S}"));
        }
        if !(1..=MAX_KEEPALIVE_PROBES).contains(&self.keepalive_probes) {
            return Err(format!("tcp.keepalive_probes must be from 1 to {MAX_KEEPALIVE_PROBES}"));
        }
        if self.user_timeout_ms == 0 {
            return Ok(());
        }
        if !USER_TIMEOUT_MS.contains(&self.user_timeout_ms) {
            return Err(format!(
                "tcp.user_timeout_ms must be from {} to {}, or 0 for the kernel's own",
                USER_TIMEOUT_MS.start(),
                USER_TIMEOUT_MS.end()
            ));
        }
        if hands_on {
            return Err("tcp.user_timeout_ms must be 0 where auto.otherwise is \"hand_on\": a connection \
                        that is handed on may stand still for as long as one of its ends does not read"
                .to_owned());
        }
        Ok(())
    }

    /// Time until the first probe, between two, and their number; None: no probes.
    pub(crate) fn keepalive(&self) -> Option<(Duration, Duration, u32)> {
        let seconds = |seconds: u16| Duration::from_secs(u64::from(seconds));
        (self.keepalive_idle_s > 0).then(|| {
            let (idle, interval) = (self.keepalive_idle_s, self.keepalive_interval_s);
            (seconds(idle), seconds(interval), u32::from(self.keepalive_probes))
        })
    }

    /// How long data may remain unacknowledged; None: as long as the kernel retransmits it.
    pub(crate) fn user_timeout(&self) -> Option<Duration> {
        let timeout = Duration::from_millis(u64::from(self.user_timeout_ms));
        (!timeout.is_zero()).then_some(timeout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str, hands_on: bool) -> Result<(), String> {
        toml::from_str::<TcpSection>(text).map_err(|error| error.to_string())?.check(hands_on)
    }

    #[test]
    fn the_limits_are_those_of_the_kernel() {
        for (key, least, most) in [
            ("keepalive_idle_s", 0, 32_767_u32),
            ("keepalive_interval_s", 1, 32_767),
            ("keepalive_probes", 1, 127),
            ("user_timeout_ms", 1000, 2_147_483_647),
        ] {
            for right in [least, most] {
                assert_eq!(told(&format!("{key} = {right}"), false), Ok(()), "{key}");
            }
            let wrong = told(&format!("{key} = {}", most + 1), false).expect_err(key);
            assert!(wrong.contains(&format!("tcp.{key} must be from ")), "{wrong}");
            if least > 0 {
                let below = if key == "user_timeout_ms" { least - 1 } else { 0 };
                let wrong = told(&format!("{key} = {below}"), false).expect_err(key);
                assert!(wrong.contains(&most.to_string()), "{wrong}");
            }
        }
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
        assert_eq!((off.keepalive(), off.user_timeout()), (None, None));
        let (idle, interval, probes) = TcpSection::default().keepalive().expect("on");
        assert_eq!((idle.as_secs(), interval.as_secs(), probes), (60, 75, 9));
    }
}
