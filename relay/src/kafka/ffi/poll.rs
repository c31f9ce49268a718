//! poll(2) for librdkafka, whose broker threads would turn without a pause at times.
//!
//! Of each partition an idempotent producer has one batch under way (`RD_KAFKA_IDEMP_MAX_INFLIGHT`
//! bounds its records, not its requests). As soon as others have waited for `linger.ms` behind it, the
//! broker's thread looks whether it may send them, and looks again at once, until the answer comes
//! (`rd_kafka_toppar_producer_serve` in librdkafka 2.12). At full load that is a part of the relay's
//! processor time, and it is a whole processor while a broker stands still.
//!
//! What ends this can be waited for: it is the answer, or another thread's word in a pipe, and the
//! thread asks for both. So a look that follows many in vain waits for them. The linker takes this
//! function for librdkafka's calls before the C library's, as it takes mimalloc's `malloc`.

use std::cell::Cell;
use std::ffi::{c_int, c_long};

/// So many looks in vain, one after the other, are one turn without a pause.
const IN_VAIN: u32 = 16;
/// How long a look waits then. `linger.ms` of another partition may be over meanwhile.
const PAUSE_NS: c_long = 200_000;

thread_local! {
    static LOOKS: Cell<u32> = const { Cell::new(0) };
}

/// poll(2); a call without a time-out waits for a moment if many before it have found nothing.
///
/// # Safety
///
/// As the C library's: `fds` points to `count` entries.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn poll(
    fds: *mut libc::pollfd,
    count: libc::nfds_t,
    timeout_ms: c_int,
) -> c_int {
    let looks = LOOKS.get();
    let turns = timeout_ms == 0 && looks >= IN_VAIN;
    let patience = libc::timespec {
        tv_sec: libc::time_t::from(timeout_ms.max(0) / 1000),
        tv_nsec: if turns { PAUSE_NS } else { c_long::from(timeout_ms.max(0) % 1000) * 1_000_000 },
    };
    let patience = if timeout_ms < 0 { std::ptr::null() } else { &raw const patience };
    // SAFETY: as the caller promises; without a mask of signals it is poll(2).
    let found = unsafe { libc::ppoll(fds, count, patience, std::ptr::null()) };
    LOOKS.set(if timeout_ms == 0 && found == 0 { looks.saturating_add(1) } else { 0 });
    found
}

#[cfg(test)]
mod tests {
    use std::io::{Write as _, pipe};
    use std::os::fd::AsRawFd as _;
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn who_looks_in_vain_waits_for_what_it_asked_for() {
        let (reader, mut writer) = pipe().expect("a pipe");
        let look = |timeout_ms| {
            let mut asked =
                libc::pollfd { fd: reader.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            let begun = Instant::now();
            // SAFETY: one entry, which lives.
            let found = unsafe { poll(&raw mut asked, 1, timeout_ms) };
            assert_eq!(found == 1, asked.revents == libc::POLLIN, "{found}");
            (found, begun.elapsed())
        };
        let pause = Duration::from_nanos(PAUSE_NS.unsigned_abs());
        for _ in 0..IN_VAIN {
            assert_eq!(look(0).0, 0);
        }
        for _ in 0..3 {
            let (found, waited) = look(0);
            assert!(found == 0 && waited >= pause, "{found}, {waited:?}");
        }
        // An own time-out is kept, and is no turn.
        let (found, waited) = look(20);
        assert!(found == 0 && waited >= Duration::from_millis(20), "{found}, {waited:?}");
        assert_eq!(LOOKS.get(), 0);
        writer.write_all(b"x").expect("room in a pipe");
        assert_eq!([look(-1).0, look(0).0, look(1000).0], [1; 3]);
    }
}
