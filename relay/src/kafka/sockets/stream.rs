//! A connection to a broker that is made: TCP as it is, or TLS (RFC 8446) over it.

use std::io::{self, IoSlice, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};

/// Bytes that wait in a connection with TLS: what is taken for sent beyond what the socket has taken.
const MOST_WAITING: usize = 256 << 10;

/// What bytes go over.
#[derive(Debug)]
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<Tls>),
}

/// TLS over a socket that does not block.
#[derive(Debug)]
pub(super) struct Tls {
    socket: TcpStream,
    tls: ClientConnection,
}

impl Stream {
    /// What there is; 0 bytes if the other side has ended it.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.read(buffer),
            Self::Tls(tls) => tls.read(buffer),
        }
    }

    /// Takes as much as may wait.
    pub(super) fn write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.write_vectored(slices),
            Self::Tls(tls) => tls.write(slices),
        }
    }

    /// Sends what was taken before, as far as the socket takes it.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(_) => Ok(()),
            Self::Tls(tls) => tls.push(),
        }
    }
}

impl Tls {
    /// Begins, with the broker of this name.
    pub(super) fn new(
        config: &Arc<ClientConfig>,
        host: &str,
        socket: TcpStream,
    ) -> io::Result<Box<Self>> {
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        let mut tls = ClientConnection::new(config.clone(), name).map_err(io::Error::other)?;
        tls.set_buffer_limit(Some(MOST_WAITING));
        Ok(Box::new(Self { socket, tls }))
    }

    /// Goes on with the handshake. False if it waits for the other side.
    pub(super) fn handshake(&mut self) -> io::Result<bool> {
        loop {
            self.push()?;
            if !self.tls.is_handshaking() {
                return Ok(true);
            }
            match self.pull() {
                Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, ENDED)),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
    }

    /// Records from the socket; 0 bytes if there are no more.
    fn pull(&mut self) -> io::Result<usize> {
        let bytes = self.tls.read_tls(&mut self.socket)?;
        if let Err(error) = self.tls.process_new_packets() {
            // The other side is told why, if it takes that at once.
            let _ = self.push();
            return Err(refused(&error));
        }
        Ok(bytes)
    }

    /// Records to the socket, until it takes no more.
    fn push(&mut self) -> io::Result<()> {
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut self.socket) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.tls.reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return other,
            }
            // An answer to what has come (a key update, for one) goes out with it.
            let bytes = self.pull()?;
            self.push()?;
            if bytes == 0 {
                return Ok(0);
            }
        }
    }

    fn write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.push()?;
        let taken = self.tls.writer().write_vectored(slices)?;
        self.push()?;
        if taken == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(taken) }
    }
}

/// What is said when the other side closes the connection before anything is agreed.
const ENDED: &str = "the broker closes the connection during the TLS handshake: does it speak TLS at this \
                     port, and does it ask for a certificate? See kafka.tls";

fn refused(error: &rustls::Error) -> io::Error {
    let hint = match error {
        rustls::Error::InvalidCertificate(_) => "; see kafka.tls.ca and kafka.brokers",
        rustls::Error::InvalidMessage(_) => "; does the broker speak TLS at this port?",
        rustls::Error::AlertReceived(_) => "; see kafka.tls.certificate",
        _ => "",
    };
    io::Error::new(io::ErrorKind::InvalidData, format!("TLS: {error}{hint}"))
}
