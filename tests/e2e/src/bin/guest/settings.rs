//! What an operator sets in the relay namespace: whether this kernel has it there.

use anyhow::{Result, ensure};
use millrace_harness::gateway::fake_relay::{PORT, diverts};
use millrace_harness::net::netns::Topology;
use millrace_relay::codec::Framing;
use millrace_relay::config::Sysctls;
use millrace_relay::gateway;
use serde_json::json;

use crate::Finding;
use crate::checks::{Guest, finding};

/// Those of the table in docs/design/gateway.md.
const SYSCTLS: [(&str, &str); 11] = [
    ("net.core.somaxconn", "1024"),
    ("net.ipv4.tcp_congestion_control", "reno"),
    ("net.ipv4.tcp_fin_timeout", "20"),
    ("net.ipv4.tcp_max_syn_backlog", "1024"),
    ("net.ipv4.tcp_max_tw_buckets", "1000"),
    ("net.ipv4.tcp_mtu_probing", "2"),
    ("net.ipv4.tcp_notsent_lowat", "16384"),
    ("net.ipv4.tcp_retries2", "8"),
    ("net.ipv4.tcp_rmem", "4096 16384 4194304"),
    ("net.ipv4.tcp_slow_start_after_idle", "0"),
    ("net.ipv4.tcp_wmem", "4096 16384 4194304"),
];

pub(crate) fn in_force(_: &mut Guest) -> Result<Finding> {
    let topology = Topology::new(1, 1)?;
    let mut config = topology.config(PORT, Framing::Lines);
    config.gateway.coalesce_us = 250;
    config.gateway.sysctls = Sysctls::new(SYSCTLS);
    let loaded = topology.load(&config)?;
    let status = topology.gateway.run(|| gateway::status(&config))??.namespace;
    ensure!(status.coalesce_us == 250, "{status:?}");
    ensure!(status.sysctls.len() == SYSCTLS.len(), "{status:?}");
    for (setting, (name, value)) in status.sysctls.iter().zip(SYSCTLS) {
        ensure!(setting.name == name && setting.now.as_deref() == Some(value), "{setting:?}");
        ensure!(setting.configured.is_none(), "{setting:?}");
    }
    diverts(&topology, &config, 100_000)?;
    loaded.unload()?;
    Ok(finding(
        format!("{} settings of the relay namespace and 250 µs are in force", SYSCTLS.len()),
        json!({ "sysctls": SYSCTLS.len() }),
    ))
}
