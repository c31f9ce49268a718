//! Faults that end the relay. A thread that ends before it was told to, in any way, reports it here, and the
//! relay stops.

use std::any::Any;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::panic::PanicHookInfo;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use crate::logging;
use crate::stop::StopTime;

use super::RunError;

/// The first fault of a run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Faults(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    first: Mutex<Option<RunError>>,
    seen: Notify,
}

impl Faults {
    /// Reports a fault. The first one is why the relay ends; later ones may result from it.
    pub(crate) fn report(&self, error: RunError) {
        tracing::error!(%error, "the relay cannot continue, and stops");
        self.0.first.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        self.0.seen.notify_one();
    }

    /// Waits for a fault.
    pub(super) async fn seen(&self) {
        self.0.seen.notified().await;
    }

    /// The first fault.
    pub(super) fn take(&self) -> Option<RunError> {
        self.0.first.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Makes a panic of any thread a fault from now on. Otherwise nobody would notice the end of a thread
    /// that nobody watches.
    pub(super) fn watch_panics(&self) {
        let faults = self.clone();
        std::panic::set_hook(Box::new(move |panic| {
            faults.report(of_panic(panic));
            let trace = Backtrace::capture();
            if trace.status() == BacktraceStatus::Captured {
                logging::say(&trace.to_string());
            }
            // A panic in one of librdkafka's callbacks ends the process.
            logging::flush();
        }));
    }

    /// Runs a thread's body, which returns when the relay stops. An earlier return is a fault.
    pub(crate) fn watch<T>(
        &self,
        stop_time: &StopTime,
        body: impl FnOnce() -> Result<T, RunError>,
    ) -> Option<T> {
        match body() {
            Ok(value) => {
                if !stop_time.has_begun() {
                    self.report(RunError::thread(
                        &this_thread(),
                        "has ended without being told to",
                    ));
                }
                Some(value)
            }
            Err(error) => {
                self.report(error);
                None
            }
        }
    }
}

fn this_thread() -> String {
    std::thread::current().name().unwrap_or("without a name").to_owned()
}

fn of_panic(panic: &PanicHookInfo<'_>) -> RunError {
    let place = panic.location().map(|place| format!(" at {place}")).unwrap_or_default();
    RunError::thread(&this_thread(), &format!("has panicked{place}: {}", text(panic.payload())))
}

fn text(payload: &dyn Any) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RelaySection;

    #[test]
    fn who_ends_too_early_is_named_and_the_first_counts() {
        let (faults, stop_time) = (Faults::default(), StopTime::new(&RelaySection::default()));
        let (of_thread, time) = (faults.clone(), stop_time.clone());
        let thread = std::thread::Builder::new().name("early".to_owned());
        thread
            .spawn(move || of_thread.watch(&time, || Ok(())))
            .expect("a thread")
            .join()
            .expect("no panic");
        faults.report(RunError::thread("late", "follows from that"));
        let told = faults.take().expect("a fault").to_string();
        assert!(told.contains("`early` has ended without being told to"), "{told}");
        stop_time.begin();
        assert_eq!(faults.watch(&stop_time, || Ok(7)), Some(7));
        assert!(faults.take().is_none(), "it was told to");
    }

    #[test]
    fn a_panic_of_any_thread_is_told_with_its_place() {
        let faults = Faults::default();
        faults.watch_panics();
        let thread = std::thread::Builder::new().name("unlucky".to_owned());
        let ended = thread.spawn(|| panic!("out of {}", "luck")).expect("a thread").join();
        drop(std::panic::take_hook());
        assert!(ended.is_err());
        let told = faults.take().expect("a fault").to_string();
        assert!(told.contains("`unlucky` has panicked at relay/src/control/faults.rs"), "{told}");
        assert!(told.contains("out of luck"), "{told}");
    }
}
