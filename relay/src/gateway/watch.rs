//! A relay's eye on the gateway's devices: on their hardware addresses, and on those that come back after
//! they were removed.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use aya::maps::MapData;

use crate::config::{Config, HardwareAddress};

use super::devices::{Changed, DeviceTable};
use super::error::GatewayError;
use super::host;
use super::known::LinkFacts;
use super::lock::Lock;
use super::place;
use super::reattach::{self, Became, Refusal};
use super::rtnetlink::{Link, Links, Shape};
use super::state::State;
use super::topology::RELAY_DEVICE;

/// A changed address is known to the programs after so long. Until then its frames are passed.
const INTERVAL: Duration = Duration::from_secs(1);
/// The same while a device is away: what its clients send from its return on until it is attached goes to
/// servers that do not know their connections.
const AWAITING: Duration = Duration::from_millis(50);
/// A device that was refused is looked at again when it looks different, and after so long: not all that
/// may have changed can be seen at a glance.
const AGAIN: Duration = Duration::from_secs(10);
/// So long after a device has come it is looked at once more: whoever made it sets it up afterwards.
const SET_UP: Duration = Duration::from_secs(5);

/// What has become of the client-facing devices while the relay ran.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct News {
    /// Those from which nothing is diverted, because they are not attached, and why.
    pub detached: BTreeMap<String, String>,
    /// How often those that had come back were attached again.
    pub reattached: BTreeMap<String, u64>,
}

/// [`News`] for whoever asks.
#[derive(Clone, Debug, Default)]
pub struct DeviceNews(Arc<Mutex<News>>);

impl DeviceNews {
    /// As they are now.
    pub fn now(&self) -> News {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, News> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A thread that follows the client-facing devices until it is dropped.
#[derive(Debug)]
pub struct Watch {
    news: DeviceNews,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    pub(super) fn start(config: &Config, relay_namespace: &Path) -> Result<Self, GatewayError> {
        let state = State::of_loaded(config)?;
        let news = DeviceNews::default();
        let mut watcher = Watcher {
            eye: Eye {
                config: config.clone(),
                links: Links::open(relay_namespace)?,
                table: DeviceTable::open(&state.pin_directory)?,
                news: news.clone(),
            },
            devices: BTreeMap::new(),
        };
        let (stop, stopped) = channel();
        let work = move || {
            let (mut failed, mut pause) = (false, Duration::ZERO);
            while stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                let looked = watcher.look();
                // The same trouble every second is told once.
                if let Err(error) = &looked
                    && !failed
                {
                    tracing::warn!(%error, "cannot follow the gateway's devices");
                }
                failed = looked.is_err();
                pause = looked.unwrap_or(INTERVAL);
            }
        };
        let thread = std::thread::Builder::new()
            .name("gateway".to_owned())
            .spawn(work)
            .map_err(GatewayError::io("start a thread"))?;
        Ok(Self { news, stop: Some(stop), thread: Some(thread) })
    }

    /// What it has seen.
    pub fn news(&self) -> DeviceNews {
        self.news.clone()
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
    eye: Eye,
    devices: BTreeMap<String, Watched>,
}

/// What is known of a device since the last look.
#[derive(Default)]
struct Watched {
    /// It was not there at the last look.
    away: bool,
    /// It has the index of the device that was there before it was away.
    same_index: bool,
    refused: Option<Refused>,
    /// It has just come, and is looked at once more then.
    set_up: Option<Instant>,
    answers_redirected: bool,
}

/// Why a device is not attached, and when to look again.
struct Refused {
    shape: Shape,
    why: String,
    tried: Option<Box<LinkFacts>>,
    again: Instant,
}

struct Eye {
    config: Config,
    links: Links,
    table: DeviceTable<MapData>,
    news: DeviceNews,
}

impl Watcher {
    /// Gives how long it may take until the next look.
    fn look(&mut self) -> Result<Duration, GatewayError> {
        let Self { eye, devices } = self;
        // Without it, what is loaded is not what this relay serves.
        let Some(relays) = eye.links.relays(RELAY_DEVICE)? else { return Ok(INTERVAL) };
        // Another process may have changed the devices.
        let Some(state) = State::read(&eye.config)? else { return Ok(INTERVAL) };
        devices.retain(|name, _| state.devices.contains(name));
        eye.news.lock().detached.retain(|name, _| state.devices.contains(name));
        let mut pause = INTERVAL;
        for (number, name) in state.numbered() {
            let watched = devices.entry(name.clone()).or_default();
            pause = pause.min(eye.look_at(watched, (number, name), &relays)?);
        }
        Ok(pause)
    }
}

impl Eye {
    fn look_at(
        &mut self,
        watched: &mut Watched,
        (number, name): (u16, &str),
        relays: &Link,
    ) -> Result<Duration, GatewayError> {
        let Some(link) = self.links.gateways_named(name, relays)? else {
            if !watched.away {
                *watched = Watched { away: true, ..Watched::default() };
                tracing::warn!("{name} is gone: nothing is diverted from it until it is back");
                self.set_detached(name, "there is no such device");
            }
            return Ok(AWAITING);
        };
        let is_known = self.table.known(number, link.ifindex)?.is_some();
        if std::mem::take(&mut watched.away) {
            watched.same_index = is_known;
        }
        if !is_known || watched.same_index {
            return Ok(self.take_up(watched, name, &link));
        }
        if let Some(to) = link.address.map(HardwareAddress)
            && let Some(from) = self.table.follow(number, link.ifindex, to)?
        {
            let changed = Changed::Address { device: name.to_owned(), from, to };
            tracing::warn!("{changed}; frames for the former one are passed from now on");
        }
        if watched.set_up.is_some_and(|at| Instant::now() >= at) {
            return Ok(self.take_up(watched, name, &link));
        }
        // Somebody else may have attached it.
        watched.refused = None;
        self.set_attached(name);
        Ok(INTERVAL)
    }

    /// Attaches a device that is not the one that was loaded, or was not for a while. Gives when to look
    /// again.
    fn take_up(&self, watched: &mut Watched, name: &str, link: &Link) -> Duration {
        let (now, shape) = (Instant::now(), link.shape());
        let still = |refused: &Refused| refused.shape == shape && now < refused.again;
        if watched.refused.as_ref().is_some_and(still) {
            return INTERVAL;
        }
        let failed = watched.refused.as_ref().and_then(|refused| refused.tried.as_deref());
        let refusal = match self.reattach(name, failed) {
            Ok(Some(became)) => return self.tell(watched, name, became),
            Ok(None) => None,
            Err(Refusal { error: error @ GatewayError::Locked { .. }, .. }) => {
                self.set_detached(name, &format!("it is back, but {error}"));
                return AWAITING;
            }
            Err(refusal) => Some(refusal),
        };
        let before = watched.refused.take();
        let (why, tried) = match refusal {
            Some(Refusal { error, tried }) => (error.to_string(), tried),
            None => {
                before.as_ref().map(|it| (it.why.clone(), it.tried.clone())).unwrap_or_default()
            }
        };
        if before.is_none_or(|before| before.why != why) {
            tracing::warn!("{name} is back, but nothing is diverted from it: {why}");
        }
        self.set_detached(name, &why);
        watched.refused = Some(Refused { shape, why, tried, again: now + AGAIN });
        INTERVAL
    }

    fn reattach(&self, name: &str, failed: Option<&LinkFacts>) -> Result<Option<Became>, Refusal> {
        if !self.config.gateway.reattach {
            return Err(GatewayError::NotReattached.into());
        }
        let lock = Lock::try_take()?;
        // An unload, and perhaps a load after it, may have come in between.
        let Some(relays) = self.links.relays(RELAY_DEVICE)? else { return Ok(Some(Became::Gone)) };
        let namespace = place::find(&self.links, &relays)?;
        host::inside(&namespace, || {
            let mut report = |step: &str| tracing::debug!("{step}");
            reattach::take_up(&self.config, name, failed, &lock, &mut report)
        })?
    }

    fn tell(&self, watched: &mut Watched, name: &str, became: Became) -> Duration {
        let (attached, answers_redirected) = match became {
            // If it is not away, it is not the instance's any more, or not yet.
            Became::Gone => return INTERVAL,
            Became::Attached { mode, answers_redirected } => (Some(mode), answers_redirected),
            Became::Known { answers_redirected } => (None, answers_redirected),
        };
        let by = if answers_redirected { "redirected" } else { "sent by the host's stack" };
        if let Some(mode) = attached {
            tracing::info!(
                "{name} is back: it runs the program again, in {mode} mode; answers are {by}"
            );
            *self.news.lock().reattached.entry(name.to_owned()).or_default() += 1;
        } else if watched.set_up.is_some() && watched.answers_redirected != answers_redirected {
            tracing::info!("answers to {name} are {by} now");
        }
        self.set_attached(name);
        let set_up = attached.map(|_| Instant::now() + SET_UP);
        *watched = Watched { set_up, answers_redirected, ..Watched::default() };
        INTERVAL
    }

    fn set_detached(&self, name: &str, why: &str) {
        self.news.lock().detached.insert(name.to_owned(), why.to_owned());
    }

    fn set_attached(&self, name: &str) {
        self.news.lock().detached.remove(name);
    }
}
