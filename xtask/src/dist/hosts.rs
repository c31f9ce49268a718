//! A gateway host and a client, as network namespaces with a cable between them. Removed when dropped.

use std::{
    fs::File,
    io,
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use anyhow::{Context as _, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::process;

/// Begins the names of namespaces; the number of their process follows.
const PREFIX: &str = "mdist";
/// The gateway's client-facing device.
pub(super) const DEVICE: &str = "lan0";

/// Both hosts.
#[derive(Debug)]
pub(super) struct Hosts {
    gateway: Namespace,
    client: Namespace,
}

impl Hosts {
    /// Makes them. What a killed process has left is removed.
    pub(super) fn new() -> Result<Self> {
        remove_left_over()?;
        let hosts = Self { gateway: Namespace::new("g")?, client: Namespace::new("c")? };
        let (gateway, client) = (&hosts.gateway.0, &hosts.client.0);
        ip(&[
            "link", "add", DEVICE, "netns", gateway, "type", "veth", "peer", "name", "c0", "netns",
            client,
        ])?;
        ip(&["-n", gateway, "address", "add", "198.51.100.1/24", "dev", DEVICE])?;
        ip(&["-n", gateway, "link", "set", DEVICE, "up"])?;
        ip(&["-n", client, "address", "add", "198.51.100.7/24", "dev", "c0"])?;
        ip(&["-n", client, "link", "set", "c0", "up"])?;
        ip(&["-n", client, "route", "add", "default", "via", "198.51.100.1"])?;
        ip(&["netns", "exec", gateway, "sysctl", "-qw", "net.ipv4.ip_forward=1"])?;
        // A veth leaves checksums to hardware that does not exist.
        ip(&["netns", "exec", client, "ethtool", "-K", "c0", "tx", "off"])?;
        Ok(hosts)
    }

    /// The gateway's namespace.
    pub(super) fn gateway(&self) -> PathBuf {
        self.gateway.path()
    }

    /// Connects from the client's host.
    pub(super) fn connect(&self, server: SocketAddr) -> Result<TcpStream> {
        inside(&self.client.path(), || TcpStream::connect(server))?
            .with_context(|| format!("no connection to {server}"))
    }

    /// Has the gateway reach this address, which is on loopback, as if it were there.
    pub(super) fn forward(&self, address: SocketAddr) -> Result<()> {
        let listener = inside(&self.gateway(), || TcpListener::bind(address))?
            .with_context(|| format!("cannot listen on {address} in the gateway's namespace"))?;
        thread::spawn(move || {
            for inner in listener.incoming().flatten() {
                let Ok(outer) = TcpStream::connect(address) else { continue };
                let _ = copy(&inner, &outer).and_then(|()| copy(&outer, &inner));
            }
        });
        Ok(())
    }
}

/// Copies one direction, on a thread.
fn copy(from: &TcpStream, to: &TcpStream) -> io::Result<()> {
    let (mut from, mut to) = (from.try_clone()?, to.try_clone()?);
    thread::spawn(move || {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(std::net::Shutdown::Write);
    });
    Ok(())
}

/// Does something on a thread in a network namespace. Sockets stay there.
fn inside<T: Send>(namespace: &Path, work: impl FnOnce() -> T + Send) -> Result<T> {
    let file = File::open(namespace).with_context(|| format!("open {}", namespace.display()))?;
    let enter = || -> io::Result<T> {
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
        Ok(work())
    };
    let entered = thread::scope(|scope| scope.spawn(enter).join());
    Ok(entered.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?)
}

#[derive(Debug)]
struct Namespace(String);

impl Namespace {
    fn new(name: &str) -> Result<Self> {
        let name = format!("{PREFIX}{}-{name}", std::process::id());
        ip(&["netns", "add", &name])?;
        let made = Self(name);
        ip(&["-n", &made.0, "link", "set", "lo", "up"])?;
        Ok(made)
    }

    fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.0)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = ip(&["netns", "delete", &self.0]) {
            process::say(format!("{error:#}"));
        }
    }
}

fn remove_left_over() -> Result<()> {
    let names = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
    for name in names.filter_map(|entry| entry.file_name().into_string().ok()) {
        let number = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-'));
        if number.is_some_and(|(process, _)| !Path::new("/proc").join(process).exists()) {
            ip(&["netns", "delete", &name])?;
        }
    }
    Ok(())
}

fn ip(arguments: &[&str]) -> Result<()> {
    process::capture(Command::new("ip").args(arguments)).map(drop)
}
