//! The gateway, and a device at which diverted and forwarded packets end: what is behind it is not
//! measured.

use anyhow::{Context as _, Result};
use aya::programs::Xdp;
use aya::programs::xdp::XdpMode;
use millrace_bench::packet_cost::Prologue;
use millrace_harness::gateway::test_run::{Bench, Family, RELAY_MAC};
use millrace_harness::net::netns::Host;

/// The gateway's link to the relay. The stack forwards to the servers by it, too.
const LINK: &str = "gw";
/// The other end of that link.
const END: &str = "relay0";
/// The client-facing device.
pub(crate) const INGRESS: &str = "eth1";

/// A gateway that can forward, and the end of the road.
#[derive(Debug)]
pub(crate) struct Road {
    pub(crate) bench: Bench,
    /// Drops whatever arrives, as long as it is here.
    end: Prologue,
}

impl Road {
    pub(crate) fn new() -> Result<Self> {
        let bench = Bench::new()?;
        let mac: Vec<_> = RELAY_MAC.iter().map(|byte| format!("{byte:02x}")).collect();
        let mac = mac.join(":");
        bench.relay.ip(&format!("link set dev {END} address {mac}"))?;
        let server = Family::Ipv4.server().ip();
        bench
            .gateway
            .ip(&format!("neigh replace {server} lladdr {mac} dev {LINK} nud permanent"))?;
        // Whoever sends is behind the client-facing device; nothing is ever sent there.
        for sources in ["10.80.0.0/12", "11.0.0.0/8"] {
            bench.gateway.ip(&format!("route add {sources} dev {INGRESS}"))?;
        }
        let mut end = Prologue::load()?;
        bench.relay.run(|| end.drop_mut()?.attach(END, XdpMode::Driver).context(END))??;
        Ok(Self { bench, end })
    }

    /// The program that drops.
    pub(crate) fn drop_program(&self) -> Result<&Xdp> {
        self.end.drop()
    }

    /// Packets that have come to the end of the road.
    pub(crate) fn arrived(&self) -> Result<u64> {
        received(&self.bench.relay, END)
    }
}

/// Packets that a device has received, those among them that a program has dropped.
pub(crate) fn received(host: &Host, device: &str) -> Result<u64> {
    let answer = host.ip(&format!("-json -statistics link show dev {device}"))?;
    let answer: serde_json::Value = serde_json::from_str(&answer)?;
    answer[0]["stats64"]["rx"]["packets"].as_u64().context("no count of received packets")
}
