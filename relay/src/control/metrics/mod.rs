//! The metrics of a running relay, for Prometheus and whoever reads its formats.
//!
//! ```text
//!  scraper ──► http ──► (a thread for what may block) ──► Snapshot · Counts ──► fill ──► sheet ──► text
//! ```
//!
//! A scrape reads the counters that everything else reads, and waits for no worker. The workers know
//! nothing of it.

mod family;
mod fill;
mod http;
mod process;
mod sheet;

use std::io;
use std::net::TcpListener;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::config::Listen;
use crate::gateway::{Counts, Flows};

use super::RunError;
use super::snapshot::Observer;

use family::Metric;
use sheet::{Format, Sheet};

/// How often the flows are counted at most.
const COUNT_INTERVAL: Duration = Duration::from_secs(30);
/// And in relation to the time that it takes: so that a full table costs no more than a hundredth of a
/// processor.
const COUNT_SHARE: u32 = 100;

/// The place where the metrics will be served: claimed before anything starts, so that a mistaken address is
/// told at once.
pub(super) struct Claimed(TcpListener);

impl Claimed {
    pub(super) fn listen(listen: Listen) -> Result<Self, RunError> {
        let listener = TcpListener::bind(listen.0)
            .and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
        listener.map(Self).map_err(|source| RunError::Metrics {
            address: listen.0,
            hint: match source.kind() {
                io::ErrorKind::AddrInUse => {
                    "; find the process that has the port with `ss -ltnp`, or name another port \
                     (metrics.listen, --metrics)"
                }
                io::ErrorKind::AddrNotAvailable => {
                    "; this host has no such address (`ip address`): see metrics.listen, --metrics"
                }
                io::ErrorKind::PermissionDenied => "; a port below 1024 needs root",
                _ => "",
            },
            source,
        })
    }

    /// Begins to answer, on the current runtime.
    pub(super) fn serve(self, observer: Observer, gateway: Option<Counts>) -> Result<(), RunError> {
        let serving = || RunError::io("serve the metrics");
        let listener = tokio::net::TcpListener::from_std(self.0).map_err(serving())?;
        let address = listener.local_addr().map_err(serving())?;
        tracing::info!("metrics are served at http://{address}/metrics");
        tokio::spawn(http::serve(listener, Scraper::new(observer, gateway)));
        Ok(())
    }
}

/// Makes the metrics from the counters.
#[derive(Clone)]
struct Scraper(Arc<Parts>);

struct Parts {
    observer: Observer,
    gateway: Option<Counts>,
    counting: Mutex<Counting>,
}

/// The sizes of the flow tables as last counted.
#[derive(Default)]
struct Counting {
    flows: Option<[Flows; 2]>,
    next: Option<Instant>,
    running: bool,
}

impl Scraper {
    fn new(observer: Observer, gateway: Option<Counts>) -> Self {
        Self(Arc::new(Parts { observer, gateway, counting: Mutex::default() }))
    }
}

impl http::Source for Scraper {
    async fn metrics(&self, format: Format) -> Option<String> {
        let parts = self.0.clone();
        // Maps, netlink and /proc: nothing that the control plane's thread should wait for.
        let text = tokio::task::spawn_blocking(move || parts.scrape().encode(format));
        let text = text.await.ok()?.ok();
        if self.0.is_count_due() {
            let parts = self.0.clone();
            tokio::task::spawn_blocking(move || parts.count());
        }
        text
    }
}

impl Parts {
    fn scrape(&self) -> Sheet {
        let (mut sheet, snapshot) = (Sheet::new(), self.observer.snapshot());
        fill::relay(&mut sheet, &snapshot);
        if let Some(gateway) = &self.gateway {
            let counted = gateway.look();
            sheet.set(Metric::GatewayUnreadable, u64::from(counted.is_err()));
            match &counted {
                Ok(counted) => fill::gateway(&mut sheet, counted, &snapshot),
                Err(error) => tracing::debug!(%error, "the gateway's counters cannot be read"),
            }
            let counting = self.counting.lock().unwrap_or_else(PoisonError::into_inner);
            fill::flows(&mut sheet, counting.flows.as_ref().map_or(&[], |flows| &flows[..]));
        }
        sheet
    }

    /// True once when the flows should be counted anew.
    fn is_count_due(&self) -> bool {
        let mut counting = self.counting.lock().unwrap_or_else(PoisonError::into_inner);
        let is_time = counting.next.is_none_or(|next| next <= Instant::now());
        let is_due = self.gateway.is_some() && is_time && !counting.running;
        counting.running |= is_due;
        is_due
    }

    fn count(&self) {
        let began = Instant::now();
        let flows = self.gateway.as_ref().map(Counts::flows).and_then(Result::ok);
        let mut counting = self.counting.lock().unwrap_or_else(PoisonError::into_inner);
        let pause = COUNT_INTERVAL.max(began.elapsed() * COUNT_SHARE);
        *counting = Counting { flows, next: Some(Instant::now() + pause), running: false };
    }
}

#[cfg(test)]
mod tests;
