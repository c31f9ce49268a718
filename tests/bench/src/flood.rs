//! A generator that costs as little as it can: the same bytes again and again over many loopback
//! connections, so many messages a write. It checks nothing; the checking client is
//! [`millrace_harness::clients::load`].

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use millrace_harness::clients::speech::{RECEIVE_MAXIMUM, Speaker, Speech, payload};

const PATIENCE: Duration = Duration::from_mins(2);

/// What to send.
#[derive(Clone, Copy, Debug)]
pub struct Flood {
    /// In which protocol: lines are what every receiver here understands.
    pub speech: Speech,
    /// Connections.
    pub connections: u32,
    /// Messages of all connections together; a multiple of connections × messages a write.
    pub messages: u64,
    /// Bytes of a message, without what its protocol adds.
    pub size: usize,
    /// Messages in each write, which is one segment if it fits.
    pub per_write: u32,
}

impl Flood {
    /// A message on the wire.
    pub fn message(&self) -> Vec<u8> {
        self.speech.message(&payload(self.size))
    }

    /// Bytes on the wire for all messages.
    pub fn bytes(&self) -> u64 {
        self.messages * self.message().len() as u64
    }

    /// Opens the connections and greets; no message is sent yet.
    pub fn connect(&self, target: SocketAddr) -> Result<Connected> {
        let streams = (0..self.connections)
            .map(|number| {
                let name = format!("client-{number}");
                let stream = Speaker::connect(self.speech, target, &name)?.into_stream();
                stream.set_write_timeout(Some(PATIENCE))?;
                stream.set_read_timeout(Some(PATIENCE))?;
                Ok(stream)
            })
            .collect::<Result<_>>()?;
        Ok(Connected { flood: *self, streams })
    }
}

/// Connections that wait for their turn.
#[derive(Debug)]
pub struct Connected {
    flood: Flood,
    streams: Vec<TcpStream>,
}

impl Connected {
    /// The connections, for who wants to use them otherwise.
    pub fn into_streams(self) -> Vec<TcpStream> {
        self.streams
    }

    /// Sends everything, a write to each connection in turn, and ends the connections' sides. Where
    /// the protocol acknowledges, no more is left unacknowledged than it allows.
    pub fn send(&self) -> Result<()> {
        let Flood { speech, connections, messages, size, per_write } = self.flood;
        let message = self.flood.message();
        let mut write = message.repeat(per_write as usize);
        let acknowledgement = speech.acknowledgement_bytes();
        let mut missing = vec![0; self.streams.len()];
        for number in 0..messages / u64::from(connections) / u64::from(per_write) {
            speech.number(&mut write, message.len(), size, number * u64::from(per_write));
            for (mut stream, missing) in self.streams.iter().zip(&mut missing) {
                stream.write_all(&write).context("the receiver takes no more")?;
                if let Some(bytes) = acknowledgement {
                    *missing += bytes * per_write as usize;
                    let most = bytes * (RECEIVE_MAXIMUM - per_write) as usize;
                    read_until(stream, missing, most)?;
                }
            }
        }
        for stream in &self.streams {
            stream.shutdown(Shutdown::Write)?;
        }
        Ok(())
    }
}

/// Reads until no more than so many bytes are missing.
fn read_until(mut stream: &TcpStream, missing: &mut usize, most: usize) -> Result<()> {
    let mut bytes = [0; 4096];
    while *missing > most {
        let length = stream.read(&mut bytes).context("no acknowledgement comes")?;
        ensure!(length > 0, "the receiver has closed a connection");
        *missing = missing.checked_sub(length).context("more came than was asked for")?;
    }
    Ok(())
}
