//! The section `[service.mqtt]`.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::passwords::Passwords;

/// Settings and limits of a service with `protocol = "mqtt"`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct MqttSection {
    /// File of users and hashes of their passwords, relative to the configuration. Without one,
    /// everybody may connect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub passwords: Option<PathBuf>,
    /// What is in it.
    #[serde(skip)]
    pub users: Option<Passwords>,
    /// Maximum time for which a session outlives its connection, in seconds. A client of MQTT 3.1.1, which
    /// cannot ask for a time, gets all of it.
    pub session_expiry_s: u32,
    /// Maximum number of sessions. Beyond it, sessions of absent clients are removed, the first to expire
    /// first.
    pub max_sessions: u32,
    /// Memory of all sessions, in bytes. Beyond it, sessions of absent clients are removed; if that is not
    /// enough, no further subscription is granted.
    pub max_session_bytes: usize,
    /// Maximum number of messages of QoS 1 and 2 that a client has sent and that are not acknowledged.
    pub receive_maximum: u16,
    /// Maximum number of replies of QoS 1 and 2 that were sent to a client and that it has not acknowledged;
    /// a client of MQTT 5.0 may ask for fewer. Further replies wait in the relay.
    pub send_maximum: u16,
    /// Maximum bytes of the replies that wait for those; further replies stay in Kafka.
    pub max_waiting_bytes: usize,
    /// Longest keep-alive of a client of MQTT 5.0, in seconds; 0: any, and none.
    pub max_keep_alive_s: u16,
    /// Maximum number of subscriptions of one client.
    pub max_subscriptions: u16,
    /// Whether servers get a record of each SUBSCRIBE and UNSUBSCRIBE.
    pub tell_subscriptions: bool,
}

impl Default for MqttSection {
    fn default() -> Self {
        Self {
            passwords: None,
            users: None,
            session_expiry_s: 86_400,
            max_sessions: 100_000,
            // 100,000 of them with two short filters each are about 70 MiB.
            max_session_bytes: 128 << 20,
            receive_maximum: 256,
            // As mosquitto has it (`max_inflight_messages`). The standard's own number is what a
            // client of 5.0 takes that names none, 65,535 (section 3.1.2.11.3), which says nothing of
            // what it can keep; and 3.1.1 has none, so that a small device could be flooded. All 20 are
            // sent again when a client comes back, and one round trip confirms 20.
            send_maximum: 20,
            max_waiting_bytes: 1 << 20,
            max_keep_alive_s: 0,
            max_subscriptions: 100,
            tell_subscriptions: false,
        }
    }
}

impl MqttSection {
    /// Reads the other files that this names.
    pub fn load(&mut self, folder: &Path) -> Result<(), String> {
        if let Some(passwords) = &mut self.passwords {
            *passwords = folder.join(&*passwords);
            self.users = Some(Passwords::read(passwords)?);
        }
        Ok(())
    }
}
