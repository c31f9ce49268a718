//! Changes settings while the relay runs: keeps the values in force, and tells whoever works by them.
//!
//! Nothing here is a worker's to wait for. Workers get their settings as an order; other threads read dials.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::config::{Config, ConfigError};
use crate::dial::Dial;
use crate::gateway::set_heartbeat_timeout;
use crate::logging;
use crate::ring::Credit;
use crate::stop::StopTime;
use crate::tune::{Changed, Entry, Refusal, Source, Values};
use crate::undelivered::HoldLimits;
use crate::worker::{LiveSettings, Orders, Served};

/// Interval between two looks for what the workers have done.
const LOOK: Duration = Duration::from_micros(200);
/// Whoever writes a value waits so long for the workers. One that has not taken it over then does so before it
/// does anything else.
const WORKERS_TIMEOUT: Duration = Duration::from_millis(100);

const HEARTBEAT: &str = "gateway/heartbeat_timeout_ms";
const MAX_AGE: &str = "hold/max_age_ms";
/// Why this cannot change here.
const NO_GATEWAY: &str = "this relay runs without a gateway";
const LIBRDKAFKA: &str = "librdkafka reads it when the relay starts: change the configuration, and restart \
                          the relay, or use kafka.engine = \"millrace\"";

/// What a change of settings has to reach.
pub(super) struct Effects {
    pub(super) orders: Orders,
    pub(super) services: Arc<[Served]>,
    pub(super) stop_time: StopTime,
    pub(super) credit: Arc<Credit>,
    pub(super) hold: HoldLimits,
    /// None if librdkafka has it.
    pub(super) linger_us: Option<Dial>,
    /// Longest message that Kafka takes as it was set up at the start.
    pub(super) longest_message: u32,
    /// Directory of the gateway's pins, if there is a gateway.
    pub(super) pins: Option<PathBuf>,
}

/// The values in force.
#[derive(Clone)]
pub(super) struct Tuner(Arc<Shared>);

struct Shared {
    effects: Effects,
    /// By which Kafka keeps the topic's records.
    max_age_at_start_ms: u64,
    values: Mutex<Arc<Values>>,
    /// Held during a change. What the services have become.
    services: Mutex<Arc<[Served]>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tuner {
    /// That of a relay which was started by this configuration.
    pub(super) fn new(config: &Config, effects: Effects) -> Result<Self, ConfigError> {
        let mut fixed = Vec::new();
        if effects.linger_us.is_none() {
            fixed.push(("kafka/linger_us", LIBRDKAFKA));
        }
        if effects.pins.is_none() {
            fixed.push((HEARTBEAT, NO_GATEWAY));
        }
        let values = Values::new(config, &logging::filter(), &fixed)?;
        Ok(Self(Arc::new(Shared {
            max_age_at_start_ms: config.hold.max_age_ms,
            values: Mutex::new(Arc::new(values)),
            services: Mutex::new(effects.services.clone()),
            effects,
        })))
    }

    /// What the gateway's programs take for the timeout of a heartbeat; `relay rules apply` changes it too.
    pub(super) fn note_heartbeat_timeout(&self, timeout: Duration) {
        let timeout_ms = timeout.as_millis();
        let mut values = locked(&self.0.values);
        if self.0.effects.pins.is_none()
            || u128::from(values.config().gateway.heartbeat_timeout_ms) == timeout_ms
        {
            return;
        }
        let mut config = values.config().clone();
        config.gateway.heartbeat_timeout_ms = u32::try_from(timeout_ms).unwrap_or(u32::MAX);
        if let Ok(now) = values.changed(&Changed::Config(Box::new(config))) {
            *values = Arc::new(now);
        }
    }

    fn carry_out(
        &self,
        path: &str,
        changed: &Changed,
        services: &mut Arc<[Served]>,
    ) -> Result<(), Refusal> {
        let Shared { effects, max_age_at_start_ms, .. } = &*self.0;
        let now = match changed {
            Changed::LogFilter(filter) => {
                return logging::set_filter(filter)
                    .map_err(|problem| Refusal::Invalid { path: path.to_owned(), problem });
            }
            Changed::Config(config) => &**config,
        };
        if path == MAX_AGE && now.hold.max_age_ms > *max_age_at_start_ms {
            let problem = format!(
                "must be at most {max_age_at_start_ms}, with which the relay has started: Kafka keeps the \
                 topic's records by it; to raise it, change the configuration, and restart the relay"
            );
            return Err(Refusal::OutOfRange { path: path.to_owned(), problem });
        }
        let longest = now.services.iter().map(|service| service.max_message_bytes).max();
        if longest.is_some_and(|longest| longest > effects.longest_message) {
            let problem = format!(
                "must be at most {}: the topics and the producers that there are take no longer records; to \
                 raise it, change the configuration, and restart the relay",
                effects.longest_message
            );
            return Err(Refusal::OutOfRange { path: path.to_owned(), problem });
        }
        let busy = |why: String| Refusal::Busy { path: path.to_owned(), why };
        if let (HEARTBEAT, Some(pins)) = (path, &effects.pins) {
            let timeout = Duration::from_millis(now.gateway.heartbeat_timeout_ms.into());
            return set_heartbeat_timeout(pins, timeout).map_err(|error| busy(error.to_string()));
        }
        let each = services.iter().zip(&now.services);
        let next: Arc<[Served]> = each.map(|(served, service)| served.with(service)).collect();
        let settings = Arc::new(LiveSettings { limits: now.relay.clone(), services: next.clone() });
        let Some(given) = effects.orders.settings(settings) else {
            let why =
                "a worker has too many orders to carry out; `relay status` shows whether one hangs";
            return Err(busy(why.to_owned()));
        };
        *services = next;
        effects.stop_time.set(&now.relay);
        effects.credit.set_limit(now.kafka.partition_in_flight_bytes);
        effects.hold.set(&now.hold);
        if let Some(linger_us) = &effects.linger_us {
            linger_us.set(now.kafka.linger_us().into());
        }
        let deadline = Instant::now() + WORKERS_TIMEOUT;
        while given.connections().is_none() && Instant::now() < deadline {
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    fn try_set(&self, path: &str, text: &str) -> Result<(String, String), Refusal> {
        // One change at a time: each begins with what the one before has come to.
        let mut services = locked(&self.0.services);
        let former = self.values();
        let changed = former.with(path, text)?;
        self.carry_out(path, &changed, &mut services)?;
        let problem = |error: ConfigError| Refusal::Invalid {
            path: path.to_owned(),
            problem: error.to_string(),
        };
        let mut now = Arc::new(former.changed(&changed).map_err(problem)?);
        let mut values = locked(&self.0.values);
        if !Arc::ptr_eq(&values, &former) {
            // The heartbeat's timeout has been noted meanwhile.
            let changed = values.with(path, text)?;
            now = Arc::new(values.changed(&changed).map_err(problem)?);
        }
        *values = now.clone();
        drop(values);
        let shown = |entry: &Entry| entry.text.clone();
        Ok((former.entry(path).map(shown)?, now.entry(path).map(shown)?))
    }
}

impl Source for Tuner {
    fn values(&self) -> Arc<Values> {
        locked(&self.0.values).clone()
    }

    fn set(&self, path: &str, text: &str) -> Result<String, Refusal> {
        let (from, to) = self.try_set(path, text)?;
        tracing::info!(path, from, to, "a setting was changed");
        Ok(to)
    }
}
