//! A number that one thread sets while others read it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Such a number. Its clones are the same.
#[derive(Clone, Debug)]
pub struct Dial(Arc<AtomicU64>);

impl Dial {
    /// One that stands at a number.
    pub fn new(number: u64) -> Self {
        Self(Arc::new(AtomicU64::new(number)))
    }

    /// What it stands at.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Sets it. Others read the new number at once, or a moment later.
    pub fn set(&self, number: u64) {
        self.0.store(number, Ordering::Relaxed);
    }

    /// What it stands at, in milliseconds.
    pub fn milliseconds(&self) -> Duration {
        Duration::from_millis(self.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_clones_are_the_same() {
        let dial = Dial::new(7);
        let other = dial.clone();
        dial.set(9);
        assert_eq!((other.get(), other.milliseconds()), (9, Duration::from_millis(9)));
    }
}
