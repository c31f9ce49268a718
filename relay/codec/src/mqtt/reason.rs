//! Reason codes, and what they are for a client of the older version.

use millrace_model::CloseReason;

/// A reason code of MQTT 5.0 (section 2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reason(pub(super) u8);

impl Reason {
    pub(super) const SUCCESS: Self = Self(0x00);
    pub(super) const NO_SUBSCRIPTION_EXISTED: Self = Self(0x11);
    pub(super) const UNSPECIFIED: Self = Self(0x80);
    pub(super) const MALFORMED: Self = Self(0x81);
    pub(super) const PROTOCOL_ERROR: Self = Self(0x82);
    pub(super) const IMPLEMENTATION_SPECIFIC: Self = Self(0x83);
    pub(super) const UNSUPPORTED_VERSION: Self = Self(0x84);
    pub(super) const CLIENT_ID_INVALID: Self = Self(0x85);
    pub(super) const BAD_USER_OR_PASSWORD: Self = Self(0x86);
    pub(super) const SERVER_UNAVAILABLE: Self = Self(0x88);
    pub(super) const SERVER_BUSY: Self = Self(0x89);
    pub(super) const SHUTTING_DOWN: Self = Self(0x8B);
    pub(super) const BAD_AUTHENTICATION_METHOD: Self = Self(0x8C);
    pub(super) const KEEP_ALIVE_TIMEOUT: Self = Self(0x8D);
    pub(super) const SESSION_TAKEN_OVER: Self = Self(0x8E);
    pub(super) const TOPIC_FILTER_INVALID: Self = Self(0x8F);
    pub(super) const TOPIC_NAME_INVALID: Self = Self(0x90);
    pub(super) const PACKET_ID_NOT_FOUND: Self = Self(0x92);
    pub(super) const RECEIVE_MAXIMUM_EXCEEDED: Self = Self(0x93);
    pub(super) const TOPIC_ALIAS_INVALID: Self = Self(0x94);
    pub(super) const PACKET_TOO_LARGE: Self = Self(0x95);
    pub(super) const QUOTA_EXCEEDED: Self = Self(0x97);
    pub(super) const ADMINISTRATIVE_ACTION: Self = Self(0x98);
    pub(super) const RETAIN_NOT_SUPPORTED: Self = Self(0x9A);
    pub(super) const SHARED_NOT_SUPPORTED: Self = Self(0x9E);

    /// The return code of a CONNACK of MQTT 3.1.1 (table 3.1). Where the older version has none, it
    /// closes without a word.
    pub(super) const fn return_code(self) -> Option<u8> {
        match self {
            Self::UNSUPPORTED_VERSION => Some(1),
            Self::CLIENT_ID_INVALID => Some(2),
            Self::SERVER_UNAVAILABLE | Self::SERVER_BUSY | Self::QUOTA_EXCEEDED => Some(3),
            Self::BAD_USER_OR_PASSWORD => Some(4),
            _ => None,
        }
    }

    /// How a connection that ends for this is counted.
    pub(super) const fn close_reason(self) -> CloseReason {
        match self {
            Self::PACKET_TOO_LARGE => CloseReason::OversizedMessage,
            Self::BAD_USER_OR_PASSWORD => CloseReason::NotAuthorized,
            Self::RECEIVE_MAXIMUM_EXCEEDED => CloseReason::MemoryLimit,
            Self::UNSUPPORTED_VERSION
            | Self::BAD_AUTHENTICATION_METHOD
            | Self::SERVER_BUSY
            | Self::QUOTA_EXCEEDED
            | Self::RETAIN_NOT_SUPPORTED => CloseReason::Unsupported,
            _ => CloseReason::Malformed,
        }
    }

    /// What a client of MQTT 5.0 is told when the relay ends its connection; nothing if the
    /// connection is no more.
    pub(super) const fn of_close(reason: CloseReason) -> Option<Self> {
        Some(match reason {
            CloseReason::TakenOver => Self::SESSION_TAKEN_OVER,
            CloseReason::RelayStop => Self::SHUTTING_DOWN,
            CloseReason::IdleTimeout => Self::KEEP_ALIVE_TIMEOUT,
            CloseReason::ClosedByServer | CloseReason::Disconnected => Self::ADMINISTRATIVE_ACTION,
            CloseReason::ServerAway | CloseReason::NoServer => Self::SERVER_BUSY,
            CloseReason::SlowReader | CloseReason::MemoryLimit => Self::QUOTA_EXCEEDED,
            CloseReason::RefusedByKafka => Self::IMPLEMENTATION_SPECIFIC,
            CloseReason::EndOfStream | CloseReason::ConnectionFailed => return None,
            _ => Self::UNSPECIFIED,
        })
    }
}
