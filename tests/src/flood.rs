//! A generator that costs as little as it can: the same bytes again and again over many loopback
//! connections, so many messages a write. It checks nothing; the checking client is
//! [`crate::load`].

use std::io::Write as _;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};

const PATIENCE: Duration = Duration::from_mins(2);

/// What to send: lines, which every receiver here understands.
#[derive(Clone, Copy, Debug)]
pub struct Flood {
    /// Connections.
    pub connections: u32,
    /// Messages of all connections together; a multiple of connections × messages a write.
    pub messages: u64,
    /// Bytes of a message, without its line feed.
    pub size: usize,
    /// Messages in each write, which is one segment if it fits.
    pub per_write: u32,
}

impl Flood {
    /// Bytes on the wire for all messages.
    pub fn bytes(&self) -> u64 {
        self.messages * (self.size as u64 + 1)
    }

    /// Opens the connections; nothing is sent yet.
    pub fn connect(&self, target: SocketAddr) -> Result<Connected> {
        let streams = (0..self.connections)
            .map(|_| {
                let stream = TcpStream::connect_timeout(&target, PATIENCE)
                    .with_context(|| format!("cannot connect to {target}"))?;
                stream.set_nodelay(true)?;
                stream.set_write_timeout(Some(PATIENCE))?;
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
    /// Sends everything, a write to each connection in turn, and ends the connections' sides.
    pub fn send(&self) -> Result<()> {
        let Flood { connections, messages, size, per_write } = self.flood;
        let line: Vec<u8> = (b'a'..=b'z').cycle().take(size).chain([b'\n']).collect();
        let write = line.repeat(per_write as usize);
        for _ in 0..messages / u64::from(connections) / u64::from(per_write) {
            for mut stream in &self.streams {
                stream.write_all(&write).context("the receiver takes no more")?;
            }
        }
        for stream in &self.streams {
            stream.shutdown(Shutdown::Write)?;
        }
        Ok(())
    }
}
