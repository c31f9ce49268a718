//! What is said when the cluster does not make a topic, or a partition.

use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::TopicError;
use super::fit::Wanted;

/// A topic that was asked for in vain.
pub(super) struct Refused {
    /// It, and what it needs.
    topic: String,
    reason: String,
    forbidden: bool,
}

impl Refused {
    /// The cluster has said no.
    pub(super) fn by_cluster(wanted: &Wanted, code: RDKafkaErrorCode) -> Self {
        let forbidden = matches!(
            code,
            RDKafkaErrorCode::TopicAuthorizationFailed
                | RDKafkaErrorCode::ClusterAuthorizationFailed
        );
        Self { topic: described(wanted), reason: code.to_string(), forbidden }
    }

    /// The cluster was not asked, or has not answered.
    pub(super) fn by_client(wanted: &Wanted, error: &KafkaError) -> Self {
        let mut reason =
            error.rdkafka_error_code().map_or_else(|| error.to_string(), |code| code.to_string());
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::OperationTimedOut) {
            reason.push_str("; no controller has answered");
        }
        Self { topic: described(wanted), reason, forbidden: false }
    }
}

/// As whoever makes it by hand needs to know it.
fn described(wanted: &Wanted) -> String {
    let number = wanted.partitions;
    let partitions = if number == 1 { "partition" } else { "partitions" };
    let properties =
        wanted.properties().into_iter().map(|(name, value)| format!(" {name}={value}"));
    format!("{} ({number} {partitions},{})", wanted.name, properties.collect::<String>())
}

/// Names each of them, and what to do.
pub(super) fn told(refused: &[Refused]) -> TopicError {
    let each = refused.iter().map(|refused| format!("{}: {}", refused.topic, refused.reason));
    let missing = each.collect::<Vec<_>>().join("; ");
    let remedy = if refused.iter().any(|refused| refused.forbidden) {
        "Grant this relay's user CREATE and ALTER on them (docs/brokers.md), or have somebody \
         with these rights create them as listed here"
    } else {
        "Have them created as listed here by the cluster's own tools (docs/brokers.md)"
    };
    TopicError::Refused { missing, remedy }
}
