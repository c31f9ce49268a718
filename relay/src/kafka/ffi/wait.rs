//! `cnd_timedwait(3)` for librdkafka, whose waits end by the clock on the wall.
//!
//! C11 knows no other clock for it. If that is set back by an hour while a thread of librdkafka, or one
//! that polls it, waits for a tenth of a second, it waits for an hour: for a stop, too. librdkafka
//! (2.12.1) reckons the end of each wait right before it (`cnd_timedwait_ms`), so what is meant is known
//! at the call, and waited for by the clock that nobody sets. The linker takes this function for
//! librdkafka's calls before the C library's, as it does [`poll`](super::poll).

use std::ffi::c_int;
use std::time::Duration;

/// Of threads.h, in the C library of GNU.
const THRD_SUCCESS: c_int = 0;
const THRD_ERROR: c_int = 2;
const THRD_TIMEDOUT: c_int = 4;

unsafe extern "C" {
    /// As `pthread_cond_timedwait(3)`, with the clock to wait by; in the C library of GNU since 2.30.
    fn pthread_cond_clockwait(
        condition: *mut libc::pthread_cond_t,
        mutex: *mut libc::pthread_mutex_t,
        clock: libc::clockid_t,
        until: *const libc::timespec,
    ) -> c_int;
}

fn now(clock: libc::clockid_t) -> libc::timespec {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a place for the answer. It cannot fail for clocks that every Linux has.
    unsafe { libc::clock_gettime(clock, &raw mut now) };
    now
}

/// How long it is from one time to another of the same clock; nothing if that is over.
fn left(from: libc::timespec, until: libc::timespec) -> Duration {
    let nanos =
        |time: libc::timespec| i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec);
    let left = (nanos(until) - nanos(from)).clamp(0, i128::from(u64::MAX));
    Duration::from_nanos(u64::try_from(left).unwrap_or(u64::MAX))
}

fn later(from: libc::timespec, by: Duration) -> libc::timespec {
    let nanos = from.tv_nsec + libc::c_long::from(by.subsec_nanos().cast_signed());
    let seconds = libc::time_t::try_from(by.as_secs()).unwrap_or(libc::time_t::MAX / 2);
    libc::timespec {
        tv_sec: from.tv_sec.saturating_add(seconds).saturating_add(nanos / 1_000_000_000),
        tv_nsec: nanos % 1_000_000_000,
    }
}

/// `cnd_timedwait(3)`; the clock may be set meanwhile.
///
/// # Safety
///
/// As the C library's, whose `cnd_t` and `mtx_t` are its condition and its mutex of POSIX threads.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn cnd_timedwait(
    condition: *mut libc::pthread_cond_t,
    mutex: *mut libc::pthread_mutex_t,
    until: *const libc::timespec,
) -> c_int {
    // SAFETY: as the caller promises.
    let patience = left(now(libc::CLOCK_REALTIME), unsafe { *until });
    let until = later(now(libc::CLOCK_MONOTONIC), patience);
    // SAFETY: as the caller promises; the time lives.
    let error = unsafe {
        pthread_cond_clockwait(condition, mutex, libc::CLOCK_MONOTONIC, &raw const until)
    };
    match error {
        0 => THRD_SUCCESS,
        libc::ETIMEDOUT => THRD_TIMEDOUT,
        _ => THRD_ERROR,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    const fn time(seconds: i64, nanos: i64) -> libc::timespec {
        libc::timespec { tv_sec: seconds, tv_nsec: nanos }
    }

    #[test]
    fn what_is_left_is_reckoned_by_one_clock_and_waited_for_by_another() {
        assert_eq!(left(time(10, 900_000_000), time(12, 0)), Duration::from_millis(1100));
        assert_eq!(left(time(10, 0), time(9, 0)), Duration::ZERO);
        let later = later(time(5, 900_000_000), Duration::from_millis(1100));
        assert_eq!((later.tv_sec, later.tv_nsec), (7, 0));
    }

    #[test]
    fn a_wait_ends_when_its_time_is_over() {
        let mut condition = libc::PTHREAD_COND_INITIALIZER;
        let mut mutex = libc::PTHREAD_MUTEX_INITIALIZER;
        let begun = Instant::now();
        let until = later(now(libc::CLOCK_REALTIME), Duration::from_millis(50));
        // SAFETY: both are initialised, and this thread has the mutex.
        let ended = unsafe {
            libc::pthread_mutex_lock(&raw mut mutex);
            let ended = cnd_timedwait(&raw mut condition, &raw mut mutex, &raw const until);
            libc::pthread_mutex_unlock(&raw mut mutex);
            ended
        };
        assert_eq!(ended, THRD_TIMEDOUT);
        assert!(begun.elapsed() >= Duration::from_millis(45), "{:?}", begun.elapsed());
    }
}
