//! The relay's sign of life, which the programs compare at every SYN.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::time::Duration;

use aya::maps::{Array, MapData};
use millrace_common::abi::{self, GatewayConfig, LIFE_PORT, map};
use rustix::time::{ClockId, clock_gettime};
use socket2::{Domain, Protocol, Socket, Type};

use super::error::GatewayError;
use super::host::in_namespace;

/// Stamps the heartbeat of one run of the relay. Until the first [`Heartbeat::beat`] the gateway
/// diverts nothing to this run.
pub struct Heartbeat {
    map: Array<MapData, abi::Heartbeat>,
    config: Array<MapData, GatewayConfig>,
    generation: u64,
    /// Held for as long as this lives; see [`abi::LIFE_PORT`].
    _life: Socket,
}

impl Heartbeat {
    pub(super) fn new(
        map: Array<MapData, abi::Heartbeat>,
        config: Array<MapData, GatewayConfig>,
        generation: u64,
        namespace: &Path,
    ) -> Result<Self, GatewayError> {
        let life = in_namespace(namespace, life_socket)?.map_err(GatewayError::io(format!(
            "bind UDP port {LIFE_PORT} of 127.0.0.1 in the relay namespace, which shows that the \
             relay lives"
        )))?;
        Ok(Self { map, config, generation, _life: life })
    }

    /// "Serving now". Call it several times per heartbeat timeout, from a thread that stops when the
    /// relay hangs.
    pub fn beat(&mut self) -> Result<(), GatewayError> {
        self.beat_of(Duration::ZERO)
    }

    /// "Serving so long ago": the programs reckon the heartbeat's age from then.
    pub fn beat_of(&mut self, ago: Duration) -> Result<(), GatewayError> {
        let ago_ns = u64::try_from(ago.as_nanos()).unwrap_or(u64::MAX);
        self.write(monotonic_ns().saturating_sub(ago_ns).max(1))
    }

    /// From this age on the programs take a heartbeat for that of a dead relay. It may change while
    /// the instance is loaded.
    pub fn timeout(&self) -> Result<Duration, GatewayError> {
        let config = self.config.get(&0, 0);
        let config = config.map_err(GatewayError::bpf(format!("read the map {}", map::CONFIG)))?;
        Ok(Duration::from_nanos(config.heartbeat_timeout_ns))
    }

    /// New connections take the ordinary path from now on; those that the relay has stay with it.
    /// For a graceful stop.
    pub fn stop(&mut self) -> Result<(), GatewayError> {
        self.write(0)
    }

    fn write(&mut self, stamp_ns: u64) -> Result<(), GatewayError> {
        let value = abi::Heartbeat { stamp_ns, generation: self.generation };
        self.map.set(0, value, 0).map_err(GatewayError::bpf("write the heartbeat"))
    }
}

/// A relay that was killed may still have its own when the next one comes.
fn life_socket() -> std::io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddrV4::new(Ipv4Addr::LOCALHOST, LIFE_PORT).into())?;
    Ok(socket)
}

/// The clock of `bpf_ktime_get_ns`.
pub(super) fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    // Neither is negative: the clock starts at boot.
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}
