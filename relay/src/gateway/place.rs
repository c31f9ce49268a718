//! Where the gateway's devices are. The relay may run in any network namespace, and the relay namespace
//! knows the gateway's by a number alone.

use std::fs::File;
use std::path::PathBuf;

use super::error::GatewayError;
use super::rtnetlink::{Link, Links};

/// The namespaces of the calling thread and of the host's first process.
const NEAREST: [&str; 2] = ["/proc/thread-self/ns/net", "/proc/1/ns/net"];
/// Those that have names (ip-netns(8)).
const NAMED: &str = "/run/netns";

/// Finds the network namespace of the gateway's devices; `relays` is the relay's end of the veth, whose
/// other end is there. The file keeps the namespace alive, so it should not be kept.
pub(super) fn find(links: &Links, relays: &Link) -> Result<File, GatewayError> {
    let named = std::fs::read_dir(NAMED).into_iter().flatten().flatten();
    let candidates = NEAREST.into_iter().map(PathBuf::from).chain(named.map(|entry| entry.path()));
    for path in candidates {
        let Ok(file) = File::open(path) else { continue };
        if links.is_gateways(&file, relays)? {
            return Ok(file);
        }
    }
    Err(GatewayError::NamespaceHidden)
}
