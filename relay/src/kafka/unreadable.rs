//! Records that this relay cannot read: their batch is compressed in a way that it does not know, or is
//! not what it says. librdkafka (2.12.1) fetches such a batch again, many times a second, and comes no
//! further. So whoever reads a log goes past it, once it is known where it ends.
//!
//! A fetch from anywhere within a batch fails with the batch's first offset. So the end is where a fetch
//! fails otherwise, or not at all, and is found by doubling steps and then by halves.

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};

use crate::config::KafkaSection;
use crate::kafka::client::{client_config, offset_reader};
use crate::kafka::questions::watermarks;

use super::context::LogContext;
use super::ffi::{self, Look};

/// How long all of it may take; less than a stop.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long one look lasts.
const POLL: Duration = Duration::from_millis(100);

/// Offsets that cannot be read.
pub(crate) type Range = std::ops::Range<i64>;

/// Whether the cluster has answered, and the answer cannot be read.
pub(crate) fn is_unreadable(error: &KafkaError) -> bool {
    error.rdkafka_error_code().is_some_and(is_code)
}

const fn is_code(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::BadCompression
            | RDKafkaErrorCode::NotImplemented
            | RDKafkaErrorCode::BadMessage
    )
}

/// The batch at `from` that cannot be read; none if it can. Blocks.
pub(crate) fn unreadable_at(
    kafka: &KafkaSection,
    (topic, partition): (&str, i32),
    from: i64,
) -> KafkaResult<Option<Range>> {
    let deadline = Instant::now() + PATIENCE;
    let client: BaseConsumer<LogContext> = offset_reader(client_config(kafka), kafka)
        .set("fetch.error.backoff.ms", "10")
        .create_with_context(LogContext::new(kafka))?;
    let (oldest, end) = watermarks(client.client(), topic, partition, PATIENCE)?;
    extent(from.max(oldest), end, |offset| {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, Offset::Offset(offset))?;
        client.assign(&list)?;
        loop {
            match ffi::look(&client, POLL) {
                Some(Look::Readable) => return Ok(None),
                Some(Look::Failed { code, offset }) if is_code(code) => return Ok(Some(offset)),
                _ if Instant::now() < deadline => {}
                Some(Look::Failed { code, .. }) => {
                    return Err(KafkaError::MessageConsumption(code));
                }
                None => {
                    let code = RDKafkaErrorCode::OperationTimedOut;
                    return Err(KafkaError::MessageConsumption(code));
                }
            }
        }
    })
}

/// The batch at `from`, in a log that ends at `end`. `batch` says where the batch begins that a fetch
/// from an offset fails at, if it does.
fn extent(
    from: i64,
    end: i64,
    mut batch: impl FnMut(i64) -> KafkaResult<Option<i64>>,
) -> KafkaResult<Option<Range>> {
    if from >= end {
        return Ok(None);
    }
    let Some(first) = batch(from)? else { return Ok(None) };
    let mut is_in = |offset| Ok::<_, KafkaError>(offset < end && batch(offset)? == Some(first));
    // In the batch, and behind it.
    let (mut last, mut next, mut step) = (from.max(first), from.max(first) + 1, 1);
    while is_in(next)? {
        last = next;
        next = end.min(next + step);
        step *= 2;
    }
    while next - last > 1 {
        let middle = last + (next - last) / 2;
        if is_in(middle)? {
            last = middle;
        } else {
            next = middle;
        }
    }
    Ok(Some(from.max(first)..next))
}

#[cfg(test)]
mod tests;
