//! Clients that outlive their brokers. Of a broker that hangs or starts again, librdkafka may hear that
//! there is no broker at all, and then it asks nobody any more (see `millrace_relay::kafka::LogContext`).

use anyhow::Result;
use millrace_relay::config::KafkaSection;
use millrace_relay::kafka::{LogContext, Watched};
use rdkafka::client::ClientContext;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{ProducerContext, ThreadedProducer};

pub use millrace_relay::kafka::rejoin;

/// Notices that a client has lost all brokers. Whoever polls the client calls [`rejoin`] in between.
#[derive(Debug)]
pub struct Lasting(LogContext);

/// A consumer that can find its brokers again.
pub type LastingConsumer = BaseConsumer<Lasting>;

/// A producer that can.
pub type LastingProducer = ThreadedProducer<Lasting>;

/// A client of these brokers, with the usual settings and those that `set` adds.
pub fn lasting<T: FromClientConfigAndContext<Lasting>>(
    brokers: &str,
    set: &[(&str, &str)],
) -> Result<T> {
    let kafka = KafkaSection { brokers: brokers.to_owned(), ..KafkaSection::default() };
    let mut config = super::client(brokers);
    for (name, value) in set {
        config.set(*name, *value);
    }
    Ok(config.create_with_context(Lasting(LogContext::new(&kafka)))?)
}

impl ClientContext for Lasting {
    fn error(&self, error: KafkaError, reason: &str) {
        self.0.error(error, reason);
    }
}

impl ConsumerContext for Lasting {}

impl ProducerContext for Lasting {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}

impl Watched for Lasting {
    fn watch(&self) -> &LogContext {
        &self.0
    }
}
