//! The relay's sign of life, which the programs compare at every SYN.

use aya::maps::{Array, MapData};
use millrace_common::abi;
use rustix::time::{ClockId, clock_gettime};

use super::error::GatewayError;

/// Stamps the heartbeat of one run of the relay. Until the first [`Heartbeat::beat`] the gateway
/// diverts nothing to this run.
pub struct Heartbeat {
    map: Array<MapData, abi::Heartbeat>,
    generation: u64,
}

impl Heartbeat {
    pub(super) fn new(map: Array<MapData, abi::Heartbeat>, generation: u64) -> Self {
        Self { map, generation }
    }

    /// "Alive now". Call it several times per heartbeat timeout, from a thread that stops when the
    /// relay hangs.
    pub fn beat(&mut self) -> Result<(), GatewayError> {
        self.write(monotonic_ns())
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

/// The clock of `bpf_ktime_get_ns`.
pub(super) fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    // Neither is negative: the clock starts at boot.
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}
