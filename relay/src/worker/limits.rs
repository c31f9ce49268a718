//! What one client may have of a service: connections of an address, messages in a second.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::engine::Engine;
use crate::model::ServiceId;

use super::Worker;

/// How many connections each address has to each service, over all workers. Asked for twice a
/// connection, and only where the service has a bound.
#[derive(Debug, Default)]
pub struct Addresses(Mutex<HashMap<(ServiceId, IpAddr), u32>>);

impl Addresses {
    /// One connection more, unless there are so many already.
    pub fn enter(&self, service: ServiceId, address: IpAddr, most: u32) -> bool {
        let mut connections = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = connections.entry((service, address)).or_default();
        let room = *count < most;
        *count += u32::from(room);
        room
    }

    /// One of those that came in less.
    pub fn leave(&self, service: ServiceId, address: IpAddr) {
        let mut connections = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = connections.get_mut(&(service, address)) {
            *count -= 1;
            if *count == 0 {
                connections.remove(&(service, address));
            }
        }
    }
}

impl<E: Engine> Worker<E> {
    /// Says when there is no room for more connections, and when there is again: for some of them, so
    /// that one that comes and one that goes do not change it each time.
    pub(super) fn say_room(&self) {
        let most = self.shared.limits.max_connections as usize;
        let was_full = self.stats.full.get() > 0;
        let is_full = self.open >= if was_full { most - (most / 16).min(most - 1) } else { most };
        if is_full != was_full {
            self.stats.full.replace(usize::from(was_full), usize::from(is_full));
            self.shared.intake.notify_one();
        }
    }

    /// An accept has failed: says so if that was for want of files or memory.
    pub(super) fn say_starved(&self, error: &io::Error) {
        let wanting = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM];
        if error.raw_os_error().is_some_and(|error| wanting.contains(&error)) {
            self.stats.accept_starved.add(1);
            self.shared.intake.notify_one();
        }
    }
}

/// So many messages a second, and as many at once after a pause.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    interval: Duration,
}

impl Rate {
    /// None for 0, which is any number.
    pub fn per_second(messages: u32) -> Option<Self> {
        (messages > 0).then(|| Self { interval: Duration::from_secs(1) / messages })
    }
}

/// What a connection has used of its rate: the time at which it would have sent what it has sent, had
/// it kept the rate (the generic cell rate algorithm, ITU-T I.371).
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace(Option<Instant>);

impl Pace {
    pub(super) const fn new() -> Self {
        Self(None)
    }

    /// Takes messages that were read; until when no more should be, if that is to come.
    pub(super) fn take(&mut self, messages: u64, rate: Rate, now: Instant) -> Option<Instant> {
        let behind = self.0.map_or(now, |time| time.max(now));
        let count = u32::try_from(messages).unwrap_or(u32::MAX);
        let time = behind + rate.interval.saturating_mul(count);
        self.0 = Some(time);
        time.checked_sub(Duration::from_secs(1)).filter(|until| *until > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_no_more_than_it_may() {
        let (addresses, service) = (Addresses::default(), ServiceId(0));
        let [one, other] = [[192, 0, 2, 1], [192, 0, 2, 2]].map(IpAddr::from);
        assert!(addresses.enter(service, one, 2));
        assert!(addresses.enter(service, one, 2));
        assert!(!addresses.enter(service, one, 2));
        assert!(addresses.enter(service, other, 2) && addresses.enter(ServiceId(1), one, 2));
        addresses.leave(service, one);
        assert!(addresses.enter(service, one, 2));
        for (service, address) in [(service, one), (service, one), (service, other)] {
            addresses.leave(service, address);
        }
        addresses.leave(ServiceId(1), one);
        assert!(addresses.0.lock().unwrap().is_empty(), "nothing is left of those who have gone");
    }

    #[test]
    fn a_second_of_messages_at_once_and_then_the_rate() {
        let (mut pace, start) = (Pace::new(), Instant::now());
        let rate = Rate::per_second(10).unwrap();
        assert_eq!(pace.take(10, rate, start), None);
        let ms = |ms| start + Duration::from_millis(ms);
        assert_eq!(pace.take(1, rate, start), Some(ms(100)));
        assert_eq!(pace.take(1, rate, ms(200)), None);
        assert_eq!(pace.take(3, rate, ms(200)), Some(ms(500)));
        assert_eq!(pace.take(10, rate, ms(9000)), None, "after a pause the second is there again");
        assert!(Rate::per_second(0).is_none());
    }
}
