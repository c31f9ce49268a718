//! When the relay has read what of its downlink: how long a reply has waited since, by a clock that
//! nobody sets.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// So much may be read under one mark: times are exact to this.
const RESOLUTION: Duration = Duration::from_millis(500);
/// Marks that are kept, more than half an hour of a downlink that is never still. With more, every
/// second one of them goes: what is older is known less exactly, and taken for younger than it is.
const MOST_MARKS: usize = 4096;

#[derive(Clone, Copy, Debug)]
struct Mark {
    /// Behind the last offset.
    end: i64,
    began: Instant,
    ended: Instant,
}

/// Written by the consumer, asked by workers and the keeper.
#[derive(Debug, Default)]
pub struct Arrivals {
    end: AtomicI64,
    marks: Mutex<VecDeque<Mark>>,
}

impl Arrivals {
    /// Behind the last reply that was read.
    pub fn end(&self) -> i64 {
        self.end.load(Ordering::Acquire)
    }

    /// Everything below an offset was read by now.
    pub(crate) fn read_to(&self, end: i64, now: Instant) {
        self.end.store(end, Ordering::Release);
        let mut marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        match marks.back_mut() {
            Some(last) if now.saturating_duration_since(last.began) < RESOLUTION => {
                (last.end, last.ended) = (end, now);
            }
            _ => marks.push_back(Mark { end, began: now, ended: now }),
        }
        if marks.len() > MOST_MARKS {
            // The newest stays in any case.
            let mut stays = marks.len().is_multiple_of(2);
            marks.retain(|_| {
                stays = !stays;
                stays
            });
        }
    }

    /// How long ago a reply was read; no time, if that is not known.
    pub(crate) fn age(&self, offset: i64, now: Instant) -> Duration {
        let marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        let place = marks.partition_point(|mark| mark.end <= offset);
        marks.get(place).map_or(Duration::ZERO, |mark| now.saturating_duration_since(mark.ended))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_as_old_as_its_reading() {
        let (arrivals, start) = (Arrivals::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        arrivals.read_to(10, at(0));
        arrivals.read_to(20, at(5));
        assert_eq!(arrivals.end(), 20);
        assert_eq!(arrivals.age(9, at(7)), Duration::from_secs(7));
        assert_eq!(arrivals.age(10, at(7)), Duration::from_secs(2));
        assert_eq!(arrivals.age(20, at(7)), Duration::ZERO, "not read yet");
    }

    #[test]
    fn what_is_old_is_known_less_exactly_and_never_taken_for_older() {
        let (arrivals, start) = (Arrivals::default(), Instant::now());
        let count = 3 * MOST_MARKS as u64;
        for second in 0..count {
            let read = start + Duration::from_secs(second);
            arrivals.read_to(second.cast_signed() + 1, read);
            let age = arrivals.age(second.cast_signed(), read + Duration::from_secs(9));
            assert_eq!(age.as_secs(), 9, "{second}: the newest is known exactly");
        }
        let now = start + Duration::from_secs(count);
        for offset in (0..count).step_by(97) {
            let age = arrivals.age(offset.cast_signed(), now).as_secs();
            assert!(age <= count - offset && age + 64 >= count - offset, "{offset}: {age}");
        }
        assert!(arrivals.marks.lock().unwrap().len() <= MOST_MARKS);
    }
}
