//! Listening sockets. They are made inside the relay namespace: a socket, and the sockets that it accepts,
//! belong to the namespace in which it was made, whoever uses it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::config::{Config, Sharing};
use crate::engine::SocketOptions;
use crate::gateway::in_namespace;
use crate::model::ServiceId;

use super::RunError;

/// Most connections that wait to be accepted; `net.core.somaxconn` is another bound.
const BACKLOG: i32 = 4096;

/// Where a relay listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Network namespace; None: that of the process.
    pub namespace: Option<PathBuf>,
    /// Address; None: all addresses of both families.
    pub address: Option<IpAddr>,
    /// Also accept connections to addresses of other hosts, if their packets arrive here
    /// (`IP_TRANSPARENT`, ip(7)). Needs `CAP_NET_ADMIN`.
    pub transparent: bool,
}

/// The listeners of one worker.
pub(super) type Listeners = Vec<(ServiceId, OwnedFd)>;

/// Makes listeners of every port for every worker, in the name of the port's first service; the kernel spreads connections over the
/// workers (`SO_REUSEPORT`, socket(7)).
pub(super) fn open(
    config: &Config,
    place: &Place,
    workers: usize,
) -> Result<Vec<Listeners>, RunError> {
    let open_all = || {
        let addresses = place.address.map_or_else(every_address, |address| vec![address]);
        (0..workers).map(|_| open_services(config, place, &addresses)).collect()
    };
    match &place.namespace {
        Some(path) => in_namespace(path, open_all)?,
        None => open_all(),
    }
}

/// The wildcard address of each family in the calling thread's network namespace. IPv6 may be missing in the
/// kernel, or turned off.
fn every_address() -> Vec<IpAddr> {
    let mut addresses = vec![IpAddr::V4(Ipv4Addr::UNSPECIFIED)];
    if std::fs::read_to_string("/proc/sys/net/ipv6/conf/all/disable_ipv6")
        .is_ok_and(|value| value.trim() == "0")
    {
        addresses.push(IpAddr::V6(Ipv6Addr::UNSPECIFIED));
    }
    addresses
}

fn open_services(
    config: &Config,
    place: &Place,
    addresses: &[IpAddr],
) -> Result<Listeners, RunError> {
    let mut listeners = Vec::new();
    for (port, id) in Sharing::of(&config.services).ports() {
        let service = &config.services[id.index()];
        let options = service.tcp.options();
        for address in addresses {
            let address = SocketAddr::from((*address, port));
            let socket = listener(address, place.transparent, &options).map_err(|source| {
                RunError::Listen {
                    service: service.name.clone(),
                    address,
                    place: place
                        .namespace
                        .as_ref()
                        .map(|path| format!(" in namespace {}", path.display()))
                        .unwrap_or_default(),
                    hint: match source.kind() {
                        io::ErrorKind::AddrInUse => {
                            "; find the process that has the port with `ss -ltnp`, in the \
                             namespace with `ip netns exec`"
                        }
                        io::ErrorKind::PermissionDenied if place.transparent => {
                            "; a transparent listener needs root"
                        }
                        io::ErrorKind::PermissionDenied => "; a port below 1024 needs root",
                        _ => "",
                    },
                    source,
                }
            })?;
            listeners.push((id, socket));
        }
    }
    Ok(listeners)
}

/// A socket with a client's address, to connect to the client's server in its name. For a thread in the relay
/// namespace, where the server's answers are local.
pub(super) fn onward(client: SocketAddr, options: &SocketOptions) -> io::Result<OwnedFd> {
    let socket = Socket::new(Domain::for_address(client), Type::STREAM, Some(Protocol::TCP))?;
    // A listener may have the same port, at the wildcard address.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    options.set(&SockRef::from(&socket))?;
    set_transparent(&socket, client)?;
    socket.bind(&client.into())?;
    Ok(socket.into())
}

fn set_transparent(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    match address {
        SocketAddr::V4(_) => socket.set_ip_transparent_v4(true),
        SocketAddr::V6(_) => socket.set_ip_transparent_v6(true),
    }
}

fn listener(
    address: SocketAddr,
    transparent: bool,
    options: &SocketOptions,
) -> io::Result<OwnedFd> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    if address.is_ipv6() {
        // The other family has a listener of its own, so that its addresses are its own too.
        socket.set_only_v6(true)?;
    }
    // Accepted sockets inherit these.
    options.set(&SockRef::from(&socket))?;
    if transparent {
        set_transparent(&socket, address)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;
    use std::time::Duration;

    use crate::config::TcpSection;

    use super::*;

    /// An accepted connection of a service with these options.
    fn accepted(tcp: &TcpSection) -> Socket {
        let listener =
            Socket::from(listener((Ipv4Addr::LOCALHOST, 0).into(), false, &tcp.options()).unwrap());
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        let _client = TcpStream::connect(address).unwrap();
        listener.accept().unwrap().0
    }

    #[test]
    fn an_accepted_connection_has_the_options_of_its_service() {
        let tcp = TcpSection {
            keepalive_idle_s: 20,
            keepalive_interval_s: 7,
            keepalive_probes: 5,
            user_timeout_ms: 45_000,
        };
        for (tcp, user_timeout) in
            [(tcp, Some(Duration::from_secs(45))), (TcpSection { user_timeout_ms: 0, ..tcp }, None)]
        {
            let socket = accepted(&tcp);
            assert!(socket.keepalive().unwrap());
            assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(20));
            assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(7));
            assert_eq!(socket.tcp_keepalive_retries().unwrap(), 5);
            assert_eq!(socket.tcp_user_timeout().unwrap(), user_timeout);
        }
        let off = TcpSection { keepalive_idle_s: 0, ..tcp };
        assert!(!accepted(&off).keepalive().unwrap());
    }

    #[test]
    fn a_connection_to_the_server_has_them_too() {
        let tcp = TcpSection { keepalive_interval_s: 3, ..TcpSection::default() };
        // Only root may take a client's address.
        let Ok(socket) = onward((Ipv4Addr::LOCALHOST, 0).into(), &tcp.options()).map(Socket::from)
        else {
            assert!(!rustix::process::geteuid().is_root(), "root was refused");
            return;
        };
        assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_mins(1));
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(3));
    }
}
