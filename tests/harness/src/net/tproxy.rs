//! The other way to have a proxy answer for a server: netfilter's TPROXY on the forwarding host.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, Socket, Type};

use crate::net::netns::Host;
use crate::system::process::run_ok;

const BACKLOG: i32 = 4096;
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);

/// Has the host deliver to itself what comes to a TCP port by this device, whatever its
/// destination: the rules of the kernel's `Documentation/networking/tproxy.rst`.
pub fn intercept(host: &Host, device: &str, port: u16) -> Result<()> {
    // A marked packet is for this host, whatever its destination.
    host.ip("rule add fwmark 1 lookup 100")?;
    host.ip("route add local 0.0.0.0/0 dev lo table 100")?;
    host.sysctl("net/ipv4/conf/all/rp_filter", "0")?;
    let rules = format!(
        "table ip intercept {{ chain prerouting {{ \
           type filter hook prerouting priority mangle; policy accept; \
           iifname != {device} accept; \
           meta l4proto tcp socket transparent 1 meta mark set 1 accept; \
           tcp dport {port} tproxy to :{port} meta mark set 1 accept; \
         }}; }}"
    );
    run_ok("nft", host.command("nft").arg(rules), PATIENCE).map(drop)
}

/// A listener that takes connections to any address, if the packets come here.
pub fn listen(host: &Host, port: u16) -> Result<TcpListener> {
    let listen = || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_ip_transparent_v4(true)?;
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
        socket.listen(BACKLOG)?;
        Ok::<_, std::io::Error>(TcpListener::from(socket))
    };
    host.run(listen)?.with_context(|| format!("cannot listen in {}", host.name()))
}
