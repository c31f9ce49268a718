//! A relay's eye on the gateway's devices.

use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::config::{Config, HardwareAddress};

use super::devices::{Changed, DeviceTable};
use super::error::GatewayError;
use super::rtnetlink::Links;
use super::state::State;
use super::topology::RELAY_DEVICE;

/// A changed address is known to the programs after so long. Until then its frames are passed.
const INTERVAL: Duration = Duration::from_secs(1);

/// A thread that follows the hardware addresses of the client-facing devices until it is dropped.
#[derive(Debug)]
pub struct Watch {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    pub(super) fn start(config: &Config, relay_namespace: &Path) -> Result<Self, GatewayError> {
        let state = State::of_loaded(config)?;
        let mut watcher = Watcher {
            links: Links::open(relay_namespace)?,
            table: DeviceTable::open(&state.pin_directory)?,
            devices: state.devices,
        };
        let (stop, stopped) = channel();
        let work = move || {
            let mut failed = false;
            while stopped.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
                let result = watcher.follow();
                // The same trouble every second is told once.
                if let Err(error) = &result
                    && !failed
                {
                    tracing::warn!(%error, "cannot follow the gateway's devices");
                }
                failed = result.is_err();
            }
        };
        let thread = std::thread::Builder::new()
            .name("gateway".to_owned())
            .spawn(work)
            .map_err(GatewayError::io("start a thread"))?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread `gateway` has panicked");
        }
    }
}

struct Watcher {
    links: Links,
    table: DeviceTable<aya::maps::MapData>,
    devices: Vec<String>,
}

impl Watcher {
    fn follow(&mut self) -> Result<(), GatewayError> {
        // Without it there is no way to the relay either.
        let Some(relays) = self.links.relays(RELAY_DEVICE)? else { return Ok(()) };
        for (number, name) in (1..).zip(&self.devices) {
            let Some(link) = self.links.gateways_named(name, &relays)? else { continue };
            let Some(to) = link.address.map(HardwareAddress) else { continue };
            if let Some(from) = self.table.follow(number, link.ifindex, to)? {
                let changed = Changed::Address { device: name.clone(), from, to };
                tracing::warn!("{changed}; frames for the former one are passed from now on");
            }
        }
        Ok(())
    }
}
