//! The maps shared by the XDP programs and the relay: their names, sizes and plain values.

use crate::rule::ActiveSet;

/// Version of everything in this crate that crosses the kernel border.
///
/// It stands in the object file ([`SECTION`]) and in [`GatewayConfig`]; whoever finds another
/// number refuses to go on and names both. Raise it whenever a map, a key or a value changes.
pub const ABI_VERSION: u32 = 10;

/// ELF section of the eBPF object that holds [`ABI_VERSION`] as a little-endian `u32`.
pub const SECTION: &str = ".millrace.abi";

/// Names of the maps, which are also the names of their pins.
pub mod map {
    /// Array of one [`super::GatewayConfig`].
    pub const CONFIG: &str = "CONFIG";
    /// Array of one [`super::Heartbeat`].
    pub const HEARTBEAT: &str = "HEARTBEAT";
    /// Array of [`crate::rule::PortClass`] as `u32`, at [`crate::rule::PortClass::slot`].
    pub const PORT_CLASSES: &str = "PORT_CLASSES";
    /// LPM trie: [`crate::rule::RuleKey`] to [`crate::rule::Ruling`] as `u32`.
    pub const RULES: &str = "RULES";
    /// LRU hash: [`crate::flow::FlowKey`] to [`crate::flow::PendingState`]; flows seen but not
    /// accepted.
    pub const PENDING: &str = "PENDING";
    /// LRU hash: [`crate::fragment::FragmentKey`] to [`crate::fragment::FragmentState`]; segments of
    /// diverted flows that come in fragments.
    pub const FRAGMENTS: &str = "FRAGMENTS";
    /// Hash: [`crate::flow::ShortKey`] to [`crate::flow::FlowState`]; flows of IPv4 that the relay
    /// has accepted.
    pub const ESTABLISHED_IPV4: &str = "ESTABLISHED_IPV4";
    /// Hash: [`crate::flow::FlowKey`] to [`crate::flow::FlowState`]; those of IPv6.
    pub const ESTABLISHED_IPV6: &str = "ESTABLISHED_IPV6";
    /// Per-CPU array of `u64`, indexed by [`crate::verdict::Verdict`].
    pub const COUNTERS: &str = "COUNTERS";
    /// Device map; entry 0 is the gateway's end of the veth that leads to the relay namespace.
    pub const RELAY_LINK: &str = "RELAY_LINK";
    /// Array of [`crate::link::ClientDevice`], at [`crate::link::ClientDevice::slot`].
    pub const CLIENT_DEVICES: &str = "CLIENT_DEVICES";
    /// Hash: [`crate::link::HardwareAddress::number`] of an address that the gateway shares with
    /// others (VRRP) to anything; frames for it are looked at on every client-facing device.
    pub const SHARED_ADDRESSES: &str = "SHARED_ADDRESSES";
    /// Hash of devices by interface index: the client-facing ones, to which answers may be
    /// redirected. A device that is not here may not be able to send what XDP hands it.
    pub const CLIENT_LINKS: &str = "CLIENT_LINKS";
    /// Hash: [`super::Path`] to [`super::Offers`]; one entry for each that `load` has made.
    pub const OFFERS: &str = "OFFERS";
    /// Hash: [`super::Path`] to anything; where new connections pass, while
    /// [`super::Intake::PATHS_CLOSED`] is set.
    pub const CLOSED_PATHS: &str = "CLOSED_PATHS";
    /// Array of one [`crate::loss::LossSetup`].
    pub const LOSS_SETUP: &str = "LOSS_SETUP";
    /// Per-CPU hash: [`crate::loss::Loss`] to packets as `u64`.
    pub const LOSSES: &str = "LOSSES";
}

/// Most steering rules of a set, as they are written.
pub const MAX_RULES: u32 = 16_384;
/// Most sources that a set excludes.
pub const MAX_EXCLUSIONS: u32 = 4096;
/// Most sources whose packets a set drops.
pub const MAX_DROPPED_SOURCES: u32 = 65_536;
/// Most entries that the rules and sources of a set become: a rule has one in every class that
/// its ports belong to.
pub const MAX_SET_ENTRIES: u32 = 131_072;
/// UDP port of 127.0.0.1 in the relay namespace that a relay holds for as long as its process lives.
///
/// A listener outlives a killed process by some milliseconds: the kernel takes an `io_uring` apart in
/// its own time, and until then holds the sockets that accepts are going on for. No ring ever has
/// this one, and so the programs ask for it too.
pub const LIFE_PORT: u16 = 1;

/// Most flows between SYN and accept; the least recently used is evicted.
pub const MAX_PENDING: u32 = 262_144;
/// Most segments that are followed while they come in fragments; the least recently used is evicted.
pub const MAX_FRAGMENTS: u32 = 16_384;
/// A fragment that comes so long after its first one is of another segment with the same number, and
/// the stack has given the first one up (`net.ipv4.ipfrag_time`). Nanoseconds.
pub const FRAGMENT_LIFE_NS: u64 = 30_000_000_000;
/// The gateway's end of the veth, as the relay namespace's next hop, and as who tells the relay of a
/// packet that is too long. Its neighbour entry there is permanent. Link-local (RFC 3927), so that it
/// cannot be a client's; alike in every instance, for nothing is ever sent to it.
pub const NEXT_HOP: [u8; 4] = [169, 254, 77, 1];
/// The same for IPv6 (RFC 4291 section 2.5.6).
pub const NEXT_HOP_IPV6: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x4d, 0, 1];
/// Most accepted flows of each family; further connections are refused by the relay.
pub const MAX_ESTABLISHED: u32 = 2_097_152;

/// Most client-facing devices of an instance.
pub const MAX_CLIENT_LINKS: u32 = 64;
/// Most [paths](Path): two families of each of them.
pub const MAX_PATHS: u32 = 2 * MAX_CLIENT_LINKS;

/// Most hardware addresses that an instance shares with other gateways.
pub const MAX_SHARED_ADDRESSES: u32 = 64;

/// A SYN that comes so long after the first of its flow, which was diverted, was sent again because
/// nothing was answered: clients wait for a second (RFC 6298 section 2), and what a network doubles
/// comes at once. Nanoseconds.
pub const SENT_AGAIN_NS: u64 = 500_000_000;
/// One that comes so long after it is the last that is waited for: it goes to the server. The third of
/// a client that doubles its wait comes after 3 seconds. Nanoseconds.
pub const IN_VAIN_NS: u64 = 2_500_000_000;

/// What the loader tells the programs, and which rules are in force: each packet looks it up once.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GatewayConfig {
    /// [`ABI_VERSION`] of the loader; the programs pass everything while it is not theirs.
    pub abi_version: u32,
    /// Identifier of the relay namespace as seen from the gateway's (`ip netns set`, `RTM_NEWNSID`).
    pub relay_nsid: u32,
    /// A heartbeat older than this is that of a dead relay. Nanoseconds.
    pub heartbeat_timeout_ns: u64,
    /// Hardware address of the relay's end of the veth.
    pub relay_mac: [u8; 6],
    /// Which rules are in force.
    pub active_set: ActiveSet,
}

/// Written by the relay several times per timeout, read at every SYN.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heartbeat {
    /// `CLOCK_MONOTONIC` of the last beat, nanoseconds (`bpf_ktime_get_ns`); 0: no relay yet.
    pub stamp_ns: u64,
    /// Which run of the relay this is; a flow of another run is not honoured.
    pub generation: u64,
    /// What keeps new connections away although it lives.
    pub intake: Intake,
}

/// What keeps new connections away from a relay that lives: none of these bits, as a rule.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Intake(pub u64);

impl Intake {
    /// It has as many connections as it may have, or cannot accept more.
    pub const FULL: u64 = 1 << 0;
    /// What is diverted does not arrive at its device.
    pub const CUT: u64 = 1 << 1;
    /// On some paths nothing is answered: see [`map::CLOSED_PATHS`].
    pub const PATHS_CLOSED: u64 = 1 << 2;

    /// Nothing.
    #[inline(always)]
    pub const fn is_open(self) -> bool {
        self.0 == 0
    }

    /// Whether it is one of these bits.
    #[inline(always)]
    pub const fn has(self, bit: u64) -> bool {
        self.0 & bit != 0
    }
}

/// A way to clients and back.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Path {
    /// The client-facing device.
    pub ifindex: u32,
    /// 4 or 6.
    pub family: u32,
}

/// What became of SYNs that were diverted from a [`Path`]. Only what is seldom is counted, or what comes
/// once in a connection: by all processors together.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offers {
    /// Flows whose clients have answered the relay's answer.
    pub answered: u64,
    /// SYNs that were sent again ([`SENT_AGAIN_NS`]), and diverted again.
    pub repeated: u64,
    /// SYNs that were sent again for too long ([`IN_VAIN_NS`]), and passed.
    pub in_vain: u64,
    /// How often such a SYN came from another source than the one before.
    pub sources: u64,
    /// That source, or what is left of it.
    pub last_source: u64,
}

const _: () = assert!(size_of::<GatewayConfig>() == 24 && size_of::<Heartbeat>() == 24);
const _: () = assert!(size_of::<Path>() == 8 && size_of::<Offers>() == 40);

#[cfg(feature = "user")]
mod pod {
    #![allow(unsafe_code)]
    // SAFETY: repr(C), integers, byte arrays and a transparent u16, no padding (sizes asserted above).
    unsafe impl aya::Pod for super::GatewayConfig {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Heartbeat {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Path {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Offers {}
    // SAFETY: repr(C), integers and byte arrays only, no padding (size asserted beside it).
    unsafe impl aya::Pod for crate::flow::FlowKey {}
    // SAFETY: repr(C), integers and byte arrays only, no padding (size asserted beside it).
    unsafe impl aya::Pod for crate::flow::ShortKey {}
    // SAFETY: repr(C), integers only, no padding (size asserted beside it).
    unsafe impl aya::Pod for crate::link::ClientDevice {}
    // SAFETY: repr(C), integers only, no padding (sizes asserted beside them).
    unsafe impl aya::Pod for crate::loss::LossSetup {}
    // SAFETY: as above.
    unsafe impl aya::Pod for crate::loss::Loss {}
    // SAFETY: two u64, one of them transparent.
    unsafe impl aya::Pod for crate::flow::FlowState {}
    // SAFETY: three of the same.
    unsafe impl aya::Pod for crate::flow::PendingState {}
    // SAFETY: repr(C), integers, byte arrays and words only, no padding (sizes asserted beside it).
    unsafe impl aya::Pod for crate::trace::Desk {}
    // SAFETY: repr(C), integers only, no padding (size asserted beside it).
    unsafe impl aya::Pod for crate::rule::RuleKey {}
}
