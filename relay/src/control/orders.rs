//! An operator's orders to a running relay, by a socket of their own: one order as a line of JSON, and one
//! answer.

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::time::Instant;

use crate::config::Config;
use crate::prefix::Prefix;
use crate::tune::{Difference, Entry, Reload, Source as _};
use crate::worker::Orders;

use super::asking::{ANSWER_TIMEOUT, connect, read_answer};
use super::tuning::Tuner;

/// In the instance's run-time directory, whose owner alone gets in.
pub(super) const SOCKET: &str = "orders.sock";
/// An order is not longer.
const MAX_ORDER_BYTES: u64 = 4096;
/// Interval between two looks for what the workers have done.
const LOOK: Duration = Duration::from_millis(5);
/// Time for the workers; less than who has asked waits.
const WORKERS_TIMEOUT: Duration = ANSWER_TIMEOUT.saturating_sub(Duration::from_secs(1));

/// What a relay is told to do.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
enum Order {
    /// Close the connections of clients whose addresses lie there.
    Disconnect(Prefix),
    /// Say the values of all settings that are in force.
    Settings,
    /// Change a setting.
    Set { path: String, value: String },
    /// Read the configuration again, and change what it changes; or only look what that would be.
    Reload { only_look: bool },
}

/// A setting of a running relay.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct InForce {
    /// Its path.
    pub path: String,
    /// Its value.
    pub value: String,
    /// Whether it can be changed while the relay runs.
    pub live: bool,
    /// How it is changed, if not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed_by: Option<String>,
}

impl From<&Entry> for InForce {
    fn from(entry: &Entry) -> Self {
        Self {
            path: entry.path.clone(),
            value: entry.text.clone(),
            live: entry.fixed.is_none(),
            changed_by: entry.fixed.map(str::to_owned),
        }
    }
}

/// What has come of it.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    /// So many connections.
    Disconnected(u64),
    /// The settings.
    Settings(Vec<InForce>),
    /// The value of a setting that is in force now.
    Set(String),
    /// What has come of the configuration.
    Reloaded(Reload),
    /// Why not.
    Failed(String),
}

/// The socket's path.
pub(super) fn socket(config: &Config) -> PathBuf {
    config.run_directory().join(SOCKET)
}

/// Reads an order, has the workers carry it out, and says what has come of it.
pub(super) async fn answer(mut stream: UnixStream, orders: Orders, tuner: Tuner) {
    let mut line = String::new();
    let (reader, mut writer) = stream.split();
    if BufReader::new(reader.take(MAX_ORDER_BYTES)).read_line(&mut line).await.is_err() {
        return;
    }
    let answer = match serde_json::from_str(&line) {
        Ok(Order::Disconnect(clients)) => disconnect_clients(clients, &orders).await,
        Ok(Order::Settings) => {
            Answer::Settings(tuner.values().entries().iter().map(InForce::from).collect())
        }
        Ok(Order::Set { path, value }) => set_setting(path, value, tuner).await,
        Ok(Order::Reload { only_look }) => reload_configuration(only_look, tuner).await,
        Err(error) => Answer::Failed(format!("the relay does not know this order: {error}")),
    };
    let text = serde_json::to_vec(&answer).unwrap_or_default();
    let _ = writer.write_all(&text).await;
}

async fn set_setting(path: String, value: String, tuner: Tuner) -> Answer {
    // It waits for the workers, and the heartbeat must not.
    match tokio::task::spawn_blocking(move || tuner.set(&path, &value)).await {
        Ok(Ok(now)) => Answer::Set(now),
        Ok(Err(refusal)) => {
            tracing::warn!("a setting was not changed: {refusal}");
            Answer::Failed(refusal.to_string())
        }
        Err(error) => Answer::Failed(error.to_string()),
    }
}

/// Reads the configuration again. What has come of it is logged.
pub(super) async fn reload(only_look: bool, tuner: Tuner) -> Result<Reload, String> {
    // It waits for the workers, and the heartbeat must not.
    let done = tokio::task::spawn_blocking(move || tuner.reload(only_look)).await;
    let done = done.map_err(|error| error.to_string()).flatten();
    if only_look {
        return done;
    }
    match &done {
        Err(problem) => tracing::error!("the configuration was not reloaded: {problem}"),
        Ok(reload) if !reload.applied => {
            for Difference { path, from, to, .. } in &reload.restart {
                tracing::error!(
                    path,
                    from,
                    to,
                    "the configuration was not reloaded: this needs a restart"
                );
            }
        }
        Ok(_) => {}
    }
    done
}

async fn reload_configuration(only_look: bool, tuner: Tuner) -> Answer {
    match reload(only_look, tuner).await {
        Ok(reload) => Answer::Reloaded(reload),
        Err(problem) => Answer::Failed(problem),
    }
}

async fn disconnect_clients(clients: Prefix, orders: &Orders) -> Answer {
    let deadline = Instant::now() + WORKERS_TIMEOUT;
    let late = || {
        Answer::Failed(format!(
            "not every worker of the relay has done it within {WORKERS_TIMEOUT:?}; `relay status` \
             shows whether one hangs"
        ))
    };
    let given = loop {
        match orders.disconnect(clients) {
            Some(given) => break given,
            None if Instant::now() >= deadline => return late(),
            None => tokio::time::sleep(LOOK).await,
        }
    };
    loop {
        match given.connections() {
            Some(connections) => {
                tracing::info!(%clients, connections, "an operator has disconnected clients");
                return Answer::Disconnected(connections);
            }
            None if Instant::now() >= deadline => return late(),
            None => tokio::time::sleep(LOOK).await,
        }
    }
}

/// Has the running relay close the connections of clients whose addresses lie in a prefix, and gives how
/// many that were. `None` if no relay runs.
pub fn disconnect(config: &Config, clients: Prefix) -> io::Result<Option<u64>> {
    match give(config, &Order::Disconnect(clients))? {
        None => Ok(None),
        Some(Answer::Disconnected(connections)) => Ok(Some(connections)),
        Some(answer) => Err(failed(answer)),
    }
}

/// The settings of the running relay, by path. `None` if no relay runs.
pub fn settings(config: &Config) -> io::Result<Option<Vec<InForce>>> {
    match give(config, &Order::Settings)? {
        None => Ok(None),
        Some(Answer::Settings(settings)) => Ok(Some(settings)),
        Some(answer) => Err(failed(answer)),
    }
}

/// Changes a setting of the running relay, and gives its value in force. `None` if no relay runs.
pub fn set(config: &Config, path: &str, value: &str) -> io::Result<Option<String>> {
    match give(config, &Order::Set { path: path.to_owned(), value: value.to_owned() })? {
        None => Ok(None),
        Some(Answer::Set(now)) => Ok(Some(now)),
        Some(answer) => Err(failed(answer)),
    }
}

/// Has the running relay read its configuration again and change what it changes, or only say what that would
/// be. `None` if no relay runs.
pub fn reload_running(config: &Config, only_look: bool) -> io::Result<Option<Reload>> {
    match give(config, &Order::Reload { only_look })? {
        None => Ok(None),
        Some(Answer::Reloaded(reload)) => Ok(Some(reload)),
        Some(answer) => Err(failed(answer)),
    }
}

fn failed(answer: Answer) -> io::Error {
    match answer {
        Answer::Failed(why) => io::Error::other(why),
        Answer::Disconnected(_) | Answer::Settings(_) | Answer::Set(_) | Answer::Reloaded(_) => {
            io::Error::other("it gave another answer than was asked for; is it of another version?")
        }
    }
}

/// Gives the running relay an order. `None` if none runs.
fn give(config: &Config, order: &Order) -> io::Result<Option<Answer>> {
    let Some(mut stream) = connect(&socket(config))? else { return Ok(None) };
    let mut order = serde_json::to_string(order)?;
    order.push('\n');
    if order.len() as u64 > MAX_ORDER_BYTES {
        return Err(io::Error::other(format!("an order has at most {MAX_ORDER_BYTES} bytes")));
    }
    stream.write_all(order.as_bytes())?;
    Ok(Some(serde_json::from_slice(&read_answer(&mut stream)?)?))
}
