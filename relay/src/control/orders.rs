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
use crate::worker::Orders;

use super::asking::{ANSWER_TIMEOUT, connect, read_answer};

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
}

/// What has come of it.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    /// So many connections.
    Disconnected(u64),
    /// Why not.
    Failed(String),
}

/// The socket's path.
pub(super) fn socket(config: &Config) -> PathBuf {
    config.run_directory().join(SOCKET)
}

/// Reads an order, has the workers carry it out, and says what has come of it.
pub(super) async fn answer(mut stream: UnixStream, orders: Orders) {
    let mut line = String::new();
    let (reader, mut writer) = stream.split();
    if BufReader::new(reader.take(MAX_ORDER_BYTES)).read_line(&mut line).await.is_err() {
        return;
    }
    let answer = match serde_json::from_str(&line) {
        Ok(Order::Disconnect(clients)) => disconnect_clients(clients, &orders).await,
        Err(error) => Answer::Failed(format!("the relay does not know this order: {error}")),
    };
    let text = serde_json::to_vec(&answer).unwrap_or_default();
    let _ = writer.write_all(&text).await;
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
    let Some(mut stream) = connect(&socket(config))? else { return Ok(None) };
    let mut order = serde_json::to_string(&Order::Disconnect(clients))?;
    order.push('\n');
    stream.write_all(order.as_bytes())?;
    match serde_json::from_slice(&read_answer(&mut stream)?)? {
        Answer::Disconnected(connections) => Ok(Some(connections)),
        Answer::Failed(why) => Err(io::Error::other(why)),
    }
}
