//! Which log the downlink's name stands for, and whether it is still the same.

use std::time::{Duration, Instant};

use rdkafka::client::{Client, ClientContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::kafka::questions::{a_broker, ask_again};

use super::ffi::IdQuestion;

/// How often it is asked. For so long a log that was made again may be read at the former offset; what is
/// read of it there comes again when it is read from its beginning.
const INTERVAL: Duration = Duration::from_secs(2);
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(10);

/// Watches a topic's id.
pub(crate) struct LogWatch {
    topic: String,
    /// None: the cluster has not told, or its topics have none.
    id: Option<String>,
    question: Option<IdQuestion>,
    next: Instant,
}

impl LogWatch {
    /// Asks for the log that is there now. Blocks.
    pub(crate) fn open<C: ClientContext>(client: &Client<C>, topic: &str) -> Self {
        let next = Instant::now() + INTERVAL;
        let mut watch = Self { topic: topic.to_owned(), id: None, question: None, next };
        watch.id = watch.ask(client, ANSWER);
        watch
    }

    /// The id of the log that is read.
    pub(crate) fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// The id of the log that is there now. Blocks.
    pub(crate) fn ask<C: ClientContext>(
        &self,
        client: &Client<C>,
        patience: Duration,
    ) -> Option<String> {
        let told = ask_again(patience, |left| {
            // Not the controller, which the cluster may not have at the moment: every broker knows it.
            let broker = a_broker(&client.fetch_metadata(Some(&self.topic), left)?);
            let answer = IdQuestion::ask(client, &self.topic, broker, left)
                .and_then(|question| question.answer(left));
            answer.unwrap_or(Err(KafkaError::MetadataFetch(RDKafkaErrorCode::OperationTimedOut)))
        });
        told.unwrap_or_else(|error| {
            tracing::debug!(
                %error, topic = self.topic, "the brokers did not report the topic's id"
            );
            None
        })
    }

    /// Another log is read from here on.
    pub(crate) fn follow(&mut self, id: Option<String>) {
        (self.id, self.question, self.next) = (id, None, Instant::now() + INTERVAL);
    }

    /// Whether the name stands for another log by now. Never waits.
    pub(crate) fn has_changed<C: ClientContext>(&mut self, client: &Client<C>) -> bool {
        if let Some(question) = &self.question {
            let Some(answer) = question.answer(Duration::ZERO) else { return false };
            self.question = None;
            return match answer {
                Ok(Some(id)) if self.id.is_none() => {
                    self.id = Some(id);
                    false
                }
                Ok(Some(id)) => self.id.as_ref() != Some(&id),
                // Not there for a moment, or nobody answers.
                Ok(None) | Err(_) => false,
            };
        }
        let now = Instant::now();
        if now >= self.next {
            self.next = now + INTERVAL;
            self.question = IdQuestion::ask(client, &self.topic, None, ANSWER);
        }
        false
    }
}
