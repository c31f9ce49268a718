//! What the errors of Produce mean (<https://kafka.apache.org/protocol#protocol_error_codes>).

/// What to do with a batch after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is written.
    Written,
    /// It is sent again, with the same numbers.
    Again {
        /// After what is known of the cluster was asked anew.
        refresh: bool,
    },
    /// Its numbers do not follow what the broker has.
    OutOfOrder,
    /// The broker does not take this identity any more.
    Fenced,
    /// It is never written.
    Refused,
}

/// What the code of an answer says. One that is not known, or says nothing, may stand for anything: the
/// batch is sent again, which writes nothing twice.
pub(super) const fn verdict(code: i16) -> Verdict {
    match code {
        // NONE, DUPLICATE_SEQUENCE_NUMBER
        0 | 46 => Verdict::Written,
        // OUT_OF_ORDER_SEQUENCE_NUMBER, UNKNOWN_PRODUCER_ID
        45 | 59 => Verdict::OutOfOrder,
        // INVALID_PRODUCER_EPOCH, INVALID_PRODUCER_ID_MAPPING, PRODUCER_FENCED
        47 | 49 | 90 => Verdict::Fenced,
        // MESSAGE_TOO_LARGE, INVALID_TOPIC_EXCEPTION, RECORD_LIST_TOO_LARGE, INVALID_REQUIRED_ACKS,
        // TOPIC_AUTHORIZATION_FAILED, CLUSTER_AUTHORIZATION_FAILED, INVALID_TIMESTAMP,
        // UNSUPPORTED_FOR_MESSAGE_FORMAT, POLICY_VIOLATION, UNSUPPORTED_COMPRESSION_TYPE, INVALID_RECORD
        10 | 17 | 18 | 21 | 29 | 31 | 32 | 43 | 44 | 76 | 87 => Verdict::Refused,
        // UNKNOWN_TOPIC_OR_PARTITION, LEADER_NOT_AVAILABLE, NOT_LEADER_OR_FOLLOWER, BROKER_NOT_AVAILABLE,
        // REPLICA_NOT_AVAILABLE, NETWORK_EXCEPTION, KAFKA_STORAGE_ERROR, FENCED_LEADER_EPOCH,
        // UNKNOWN_LEADER_EPOCH, UNKNOWN_TOPIC_ID, INCONSISTENT_TOPIC_ID
        3 | 5 | 6 | 8 | 9 | 13 | 56 | 74 | 75 | 100 | 103 => Verdict::Again { refresh: true },
        _ => Verdict::Again { refresh: false },
    }
}

/// Errors about a topic, or about a producer's id, that do not pass by themselves.
pub(super) const fn is_for_good(code: i16) -> bool {
    matches!(verdict(code), Verdict::Refused)
}

/// `UNKNOWN_TOPIC_OR_PARTITION`
pub(super) const UNKNOWN_TOPIC_OR_PARTITION: i16 = 3;
