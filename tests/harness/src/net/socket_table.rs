//! What the kernel's tables of sockets say (proc(5), `/proc/net/tcp` and its like).
//!
//! A socket outlives its `drop` for as long as a child that another thread has just made is between
//! its beginning and its `exec`: who wants it gone has to wait until it is.

use anyhow::Result;

/// The inode of the socket with these ports in `table` (`tcp`, `tcp6`, `udp`, `udp6`), in the calling
/// thread's network namespace. It is 0 when no process has the socket any more, as in TIME-WAIT.
pub fn inode(table: &str, local: u16, remote: u16) -> Result<Option<u64>> {
    let table = std::fs::read_to_string(format!("/proc/thread-self/net/{table}"))?;
    Ok(table.lines().find_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let [_, own, other, _, _, _, _, _, _, inode, ..] = fields[..] else { return None };
        let has_port = |address: &str, port: u16| {
            address.rsplit_once(':').is_some_and(|(_, hex)| hex == format!("{port:04X}"))
        };
        (has_port(own, local) && has_port(other, remote)).then(|| inode.parse().ok())?
    }))
}
