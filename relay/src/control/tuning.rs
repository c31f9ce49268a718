//! Changes settings while the relay runs: keeps the values in force, and tells whoever works by them.
//!
//! Nothing here is a worker's to wait for. Workers get their settings as an order; other threads read dials.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::measured::ConfigSource;
use crate::config::{Config, ConfigError};
use crate::dial::Dial;
use crate::gateway::set_heartbeat_timeout;
use crate::logging;
use crate::ring::Credit;
use crate::stop::StopTime;
use crate::tune::{Changed, Draft, Entry, Refusal, Reload, Saved, Source, Values};
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
    /// Which configuration is in force.
    pub(super) source: Arc<Mutex<ConfigSource>>,
}

/// The values in force.
#[derive(Clone)]
pub(super) struct Tuner(Arc<Shared>);

struct Shared {
    effects: Effects,
    /// What is logged if nothing else is asked for.
    log_filter_at_start: String,
    /// The configuration as its file had it when it was read last. None: there is no file.
    as_read: Mutex<Option<Values>>,
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
        let log_filter = logging::filter();
        let values = Values::new(config, &log_filter, &fixed)?;
        let as_read = config.source.as_read().map(|config| values.of_process(&config, &log_filter));
        Ok(Self(Arc::new(Shared {
            as_read: Mutex::new(as_read.transpose()?),
            log_filter_at_start: log_filter,
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

    /// Whether a configuration goes with what was set up when the relay started.
    fn check(&self, path: &str, now: &Config) -> Result<(), Refusal> {
        let Shared { effects, max_age_at_start_ms, .. } = &*self.0;
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
        Ok(())
    }

    fn set_heartbeat_timeout(&self, timeout_ms: u32) -> Result<(), Refusal> {
        let Some(pins) = &self.0.effects.pins else { return Ok(()) };
        set_heartbeat_timeout(pins, Duration::from_millis(timeout_ms.into()))
            .map_err(|error| Refusal::Busy { path: HEARTBEAT.to_owned(), why: error.to_string() })
    }

    fn carry_out(
        &self,
        path: &str,
        changed: &Changed,
        services: &mut Arc<[Served]>,
    ) -> Result<(), Refusal> {
        match changed {
            Changed::LogFilter(filter) => logging::set_filter(filter)
                .map_err(|problem| Refusal::Invalid { path: path.to_owned(), problem }),
            Changed::Config(now) if path == HEARTBEAT => {
                self.set_heartbeat_timeout(now.gateway.heartbeat_timeout_ms)
            }
            Changed::Config(now) => {
                self.check(path, now)?;
                self.put_into_force(path, now, services)
            }
        }
    }

    /// Everything but what the gateway and the log go by.
    fn put_into_force(
        &self,
        path: &str,
        now: &Config,
        services: &mut Arc<[Served]>,
    ) -> Result<(), Refusal> {
        let effects = &self.0.effects;
        let busy = |why: String| Refusal::Busy { path: path.to_owned(), why };
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

impl Tuner {
    /// Reads the configuration again, and puts into force what it and the saved settings say, or says why not;
    /// with `only_look`, says what would change.
    pub(super) fn reload(&self, only_look: bool) -> Result<Reload, String> {
        // One change at a time.
        let mut services = locked(&self.0.services);
        let mut as_read = locked(&self.0.as_read);
        let Some(started) = as_read.as_ref() else {
            return Err("the relay was started without a configuration file".to_owned());
        };
        let file = started.config().source.file.clone();
        let said = |error: &dyn std::fmt::Display| format!("{}: {error}", file.display());
        let in_force = self.values();
        let of_file = |config: &Config| in_force.of_process(config, &self.0.log_filter_at_start);
        let config = Config::read(&file).map_err(|error| error.to_string())?;
        let next = of_file(&config).map_err(|error| said(&error))?;
        let saved = Saved::place(&file, &config.gateway.instance);
        let saved =
            Saved::read(&saved).map_err(|error| format!("read {}: {error}", saved.display()))?;
        let draft = Draft::new(next.clone());
        if let Some(wrong) = saved.apply(&draft).first() {
            return Err(wrong.to_string());
        }
        let wanted = draft.values();
        let mut plan = Reload::plan(started, &in_force, &wanted);
        if !plan.restart.is_empty() {
            return Ok(plan);
        }
        let now = plan.config(&in_force, &wanted).map_err(|error| said(&error))?;
        for change in &plan.changes {
            self.check(&change.path, &now).map_err(|refusal| refusal.to_string())?;
        }
        if only_look {
            return Ok(plan);
        }
        let of_gateway = plan.changes.iter().any(|change| change.path == HEARTBEAT);
        let timeouts =
            [&in_force, &wanted].map(|values| values.config().gateway.heartbeat_timeout_ms);
        if of_gateway {
            self.set_heartbeat_timeout(timeouts[1]).map_err(|refusal| refusal.to_string())?;
        }
        if let Err(refusal) = self.put_into_force("relay", &now, &mut services) {
            if of_gateway {
                // As it was; what cannot be done either is told by `status`.
                let _ = self.set_heartbeat_timeout(timeouts[0]);
            }
            return Err(refusal.to_string());
        }
        // It was checked when it was saved, or when the relay started.
        logging::set_filter(wanted.log_filter())?;
        let values = in_force.of_process(&now, wanted.log_filter());
        *locked(&self.0.values) = Arc::new(values.map_err(|error| said(&error))?);
        *self.0.effects.source.lock().unwrap_or_else(PoisonError::into_inner) =
            ConfigSource::now(&now);
        *as_read = Some(next);
        plan.applied = true;
        plan.tell();
        Ok(plan)
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
