//! TCP of a network namespace: what it counts, and how it retransmits.

use std::path::Path;

use anyhow::{Context as _, Result};
use millrace_relay::gateway::in_namespace;

/// Makes a namespace's TCP retransmit only what was lost, and not what is late on a busy machine:
/// no tail loss probes, and a retransmission timeout of ten seconds at least (Linux 6.11).
pub fn retransmit_losses_only(namespace: &Path) -> Result<()> {
    for (name, value) in [("tcp_early_retrans", "0"), ("tcp_rto_min_us", "10000000")] {
        let path = Path::new("/proc/sys/net/ipv4").join(name);
        in_namespace(namespace, || std::fs::write(path, value))?
            .with_context(|| format!("set {name} to {value}"))?;
    }
    Ok(())
}

/// Segments that the TCP of these namespaces has sent again.
pub fn retransmissions(namespaces: &[&Path]) -> Result<u64> {
    namespaces.iter().map(|namespace| tcp_counter(namespace, "RetransSegs")).sum()
}

/// Segments that the TCP of these namespaces has sent again because they were lost. One that its
/// receiver got twice (RFC 2883) was not lost, but overtaken: a sender that is moved to another processor
/// sends by another queue.
pub fn lost_segments(namespaces: &[&Path]) -> Result<u64> {
    let again = retransmissions(namespaces)?;
    let twice = |namespace: &&Path| counter(namespace, "netstat", "TcpExt", "TCPDSACKRecvSegs");
    let twice: u64 = namespaces.iter().map(twice).sum::<Result<_>>()?;
    if again > 0 {
        println!("{again} segments were sent again, of which {twice} had arrived");
    }
    Ok(again.saturating_sub(twice))
}

/// A counter of a network namespace's TCP, by its name in RFC 4022 without the `tcp`.
pub fn tcp_counter(namespace: &Path, name: &str) -> Result<u64> {
    counter(namespace, "snmp", "Tcp", name)
}

/// A counter of a network namespace, by its name in a group of this file of `/proc/net`.
pub fn counter(namespace: &Path, file: &str, group: &str, name: &str) -> Result<u64> {
    let read = || std::fs::read_to_string(Path::new("/proc/thread-self/net").join(file));
    let text = in_namespace(namespace, read)??;
    let group = format!("{group}: ");
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(&group));
    let (names, values) =
        lines.next().zip(lines.next()).with_context(|| format!("no `{group}` in {file}"))?;
    let position = names.split(' ').position(|known| known == name).context(name.to_owned())?;
    Ok(values.split(' ').nth(position).context(name.to_owned())?.parse()?)
}
