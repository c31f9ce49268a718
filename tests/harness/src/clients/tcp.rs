//! One TCP client, driven step by step.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use millrace_relay::gateway::in_namespace;
use socket2::{Domain, Socket, Type};

use crate::clients::wire::Wire;
use crate::net::ordinary::BANNER;
use crate::net::uninterrupted;

/// How long an answer is waited for.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A connection from a client host.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    wire: Wire,
    inbox: Vec<u8>,
}

impl Client {
    /// Connects out of a network namespace.
    pub fn connect(namespace: &Path, target: SocketAddr, wire: Wire) -> Result<Self> {
        let stream = in_namespace(namespace, || TcpStream::connect_timeout(&target, PATIENCE))?
            .with_context(|| format!("cannot connect to {target}"))?;
        Self::over(stream, wire)
    }

    /// Connects from one of this host's addresses.
    pub fn connect_from(source: IpAddr, target: SocketAddr, wire: Wire) -> Result<Self> {
        let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
        socket.bind(&SocketAddr::new(source, 0).into())?;
        socket
            .connect_timeout(&target.into(), PATIENCE)
            .with_context(|| format!("cannot connect from {source} to {target}"))?;
        Self::over(socket.into(), wire)
    }

    /// Connects out of a network namespace, from an address and port that other connections may have
    /// too: a connection is known by both its ends.
    pub fn connect_sharing(
        namespace: &Path,
        source: SocketAddr,
        target: SocketAddr,
        wire: Wire,
    ) -> Result<Self> {
        let socket = in_namespace(namespace, || -> std::io::Result<Socket> {
            let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
            // Of each of them, or the second bind(2) is refused (socket(7)).
            socket.set_reuse_address(true)?;
            socket.bind(&source.into())?;
            socket.connect_timeout(&target.into(), PATIENCE)?;
            Ok(socket)
        })?
        .with_context(|| format!("cannot connect from {source} to {target}"))?;
        Self::over(socket.into(), wire)
    }

    fn over(stream: TcpStream, wire: Wire) -> Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { stream, wire, inbox: Vec::new() })
    }

    /// Waits so long for what it receives.
    pub fn set_patience(&self, patience: Duration) -> Result<()> {
        Ok(self.stream.set_read_timeout(Some(patience))?)
    }

    /// The client's own address.
    pub fn address(&self) -> Result<SocketAddr> {
        Ok(self.stream.local_addr()?)
    }

    /// Sends one message.
    pub fn send(&mut self, message: &[u8]) -> Result<()> {
        self.send_bytes(&self.wire.framed(message))
    }

    /// Sends bytes as they are.
    pub fn send_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).context("cannot send")
    }

    /// The next message.
    pub fn receive(&mut self) -> Result<Vec<u8>> {
        loop {
            if let Some((message, rest)) = self.wire.split(&self.inbox) {
                let (message, consumed) = (message.to_owned(), self.inbox.len() - rest.len());
                self.inbox.drain(..consumed);
                return Ok(message);
            }
            let mut bytes = [0; 16 << 10];
            match uninterrupted(|| self.stream.read(&mut bytes)).context("no message came")? {
                0 => bail!("the connection ended with {} bytes of a message", self.inbox.len()),
                count => self.inbox.extend_from_slice(&bytes[..count]),
            }
        }
    }

    /// Ends the client's side of the connection.
    pub fn end(&self) -> Result<()> {
        Ok(self.stream.shutdown(Shutdown::Write)?)
    }

    /// Waits until the other side has ended the connection, in good order or by a reset.
    pub fn wait_end(&mut self) -> Result<()> {
        loop {
            let mut bytes = [0; 16 << 10];
            match uninterrupted(|| self.stream.read(&mut bytes)) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(()),
                Err(error) => return Err(error).context("the other side has not ended it"),
            }
        }
    }

    /// Whether the server's own listener speaks within this time. The connection is of no use after.
    pub fn is_greeted(mut self, patience: Duration) -> bool {
        let mut greeting = vec![0; BANNER.len()];
        let timeout_set = self.stream.set_read_timeout(Some(patience)).is_ok();
        timeout_set && self.stream.read_exact(&mut greeting).is_ok() && greeting == BANNER
    }

    /// Checks that the server's own listener has answered, and that it echoes.
    pub fn expect_ordinary(&mut self) -> Result<()> {
        let mut greeting = vec![0; BANNER.len()];
        self.stream.read_exact(&mut greeting).context("the server's own listener says nothing")?;
        ensure!(greeting == BANNER, "somebody else than the server's own listener answered");
        self.expect_echo(b"to the server itself")
    }

    /// Sends a message and checks that the same comes back.
    pub fn expect_echo(&mut self, message: &[u8]) -> Result<()> {
        self.send(message)?;
        let reply = self.receive()?;
        ensure!(reply == message, "another message came back: {}", reply.escape_ascii());
        Ok(())
    }
}
