//! How long the brokers keep the offsets of a group that does not commit.
//!
//! The offset of a group without members, as all are here that are read with `assign`, is forgotten
//! `offsets.retention.minutes` after it was committed, though its reader lives and has read all there is
//! (Kafka's broker configuration; seven days by default). So who is quiet commits anew.

use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};

use crate::config::KafkaSection;
use crate::kafka::client::client_config;

use super::context::LogContext;

/// The property.
const PROPERTY: &str = "offsets.retention.minutes";
/// What Kafka has by default.
const DEFAULT: Duration = Duration::from_hours(168);
/// How long the cluster may take to tell.
const TIMEOUT: Duration = Duration::from_secs(5);
/// What is committed is committed anew so many times before it is forgotten,
const RENEWALS: u32 = 10;
/// and at least so often, whatever the brokers say, or do not.
const LONGEST: Duration = Duration::from_hours(1);
const SHORTEST: Duration = Duration::from_secs(1);

/// For how long offsets are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention(Duration);

impl Default for Retention {
    fn default() -> Self {
        Self(DEFAULT)
    }
}

impl Retention {
    /// Asks a broker, which may not tell: it wants the right `DESCRIBE_CONFIGS` on the cluster.
    pub async fn ask(kafka: &KafkaSection) -> Self {
        match minutes(kafka).await {
            Ok(minutes) => Self(Duration::from_mins(minutes.max(1))),
            Err(problem) => {
                tracing::debug!(
                    problem,
                    "the brokers did not report {PROPERTY}; the relay assumes the default"
                );
                Self::default()
            }
        }
    }

    /// For so long.
    pub fn duration(self) -> Duration {
        self.0
    }

    /// How often a quiet reader commits anew.
    pub fn renewal(self) -> Duration {
        (self.0 / RENEWALS).clamp(SHORTEST, LONGEST)
    }
}

async fn minutes(kafka: &KafkaSection) -> Result<u64, String> {
    let admin: AdminClient<LogContext> = client_config(kafka)
        .create_with_context(LogContext::new(kafka))
        .map_err(|error| error.to_string())?;
    // Of no topic, so that none is made; the answer comes from a broker that is there.
    let metadata =
        admin.inner().fetch_metadata(None, TIMEOUT).map_err(|error| error.to_string())?;
    let broker = metadata.brokers().first().ok_or("there is no broker")?.id();
    let options = AdminOptions::new().request_timeout(Some(TIMEOUT));
    let asked = [ResourceSpecifier::Broker(broker)];
    let told = admin.describe_configs(&asked, &options);
    let told = tokio::time::timeout(TIMEOUT, told).await.map_err(|_| "no answer".to_owned())?;
    for resource in told.map_err(|error| error.to_string())? {
        let resource = resource.map_err(|code| code.to_string())?;
        let value = resource.get(PROPERTY).and_then(|entry| entry.value.as_ref());
        if let Some(minutes) = value.and_then(|value| value.parse().ok()) {
            return Ok(minutes);
        }
    }
    Err("the broker has no such property".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quiet_reader_commits_long_before_it_is_forgotten() {
        assert_eq!(Retention::default().renewal(), Duration::from_hours(1));
        assert_eq!(Retention(Duration::from_mins(1)).renewal(), Duration::from_secs(6));
        assert_eq!(Retention(Duration::from_mins(100)).renewal(), Duration::from_mins(10));
        assert_eq!(Retention(Duration::ZERO).renewal(), SHORTEST);
    }
}
