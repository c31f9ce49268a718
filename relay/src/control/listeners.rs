//! Listening sockets, made inside the relay namespace: a socket belongs to the namespace in which it
//! was made, whoever uses it, and so do those it accepts.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};

use crate::config::Config;
use crate::gateway::in_namespace;
use crate::route::ServiceId;

use super::RunError;

/// Connections that wait to be accepted; `net.core.somaxconn` bounds it too.
const BACKLOG: i32 = 4096;
/// A client that has been silent for so long is asked whether it is still there.
const KEEPALIVE: Duration = Duration::from_mins(1);

/// The listeners of one worker.
pub(super) type Listeners = Vec<(ServiceId, OwnedFd)>;

/// Makes a listener of every service for every worker; the kernel spreads connections over them
/// (`SO_REUSEPORT`, socket(7)).
pub(super) fn open(
    config: &Config,
    namespace: Option<&Path>,
    address: IpAddr,
    workers: usize,
) -> Result<Vec<Listeners>, RunError> {
    let open_all = || (0..workers).map(|_| open_services(config, namespace, address)).collect();
    match namespace {
        Some(path) => in_namespace(path, open_all)?,
        None => open_all(),
    }
}

fn open_services(
    config: &Config,
    namespace: Option<&Path>,
    address: IpAddr,
) -> Result<Listeners, RunError> {
    let services = config.services.iter().zip((0..).map(ServiceId));
    services
        .map(|(service, id)| {
            let address = SocketAddr::from((address, service.port));
            let socket = listener(address).map_err(|source| RunError::Listen {
                service: service.name.clone(),
                address,
                place: namespace
                    .map(|path| format!(" in namespace {}", path.display()))
                    .unwrap_or_default(),
                hint: match source.kind() {
                    io::ErrorKind::AddrInUse => {
                        "; find who has the port with `ss -ltnp`, there with `ip netns exec`"
                    }
                    io::ErrorKind::PermissionDenied => "; a port below 1024 wants root",
                    _ => "",
                },
                source,
            })?;
            Ok((id, socket))
        })
        .collect()
}

fn listener(address: SocketAddr) -> io::Result<OwnedFd> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    // Accepted sockets inherit these.
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE))?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}
