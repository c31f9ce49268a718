//! What belongs to a diverted connection without being a segment of it: fragments of its segments, and
//! ICMP errors about them. Neither is frequent, and so both are read anew, apart from the usual way.

use aya_ebpf::programs::XdpContext;
use millrace_common::abi::{FRAGMENT_LIFE_NS, NEXT_HOP, NEXT_HOP_IPV6};
use millrace_common::flow::{Address, FlowKey};
use millrace_common::fragment::{self, FragmentState};
use millrace_common::icmp;
use millrace_common::packet::{Family, Headers, PacketBytes as _, TCP};
use millrace_common::rule::ActiveSet;
use millrace_common::verdict::Verdict;

use crate::ingress::divert;
use crate::kernel;
use crate::maps;
use crate::packet::Packet;

/// A fragment from a client: the first of a segment goes where its flow goes, the others follow it.
/// One that comes before the first takes the ordinary path, and its segment will be sent again.
#[inline(always)]
pub fn fragment(ctx: &XdpContext) -> Verdict {
    let packet = Packet(ctx);
    let Some(fragment) = fragment::fragment(&packet) else { return Verdict::PassFragment };
    let (Some(config), Some(heartbeat)) = (maps::config(), maps::heartbeat()) else {
        return Verdict::PassFragment;
    };
    if !maps::is_for_us(&packet) {
        return Verdict::PassFragment;
    }
    let (generation, now_ns) = (heartbeat.generation, kernel::monotonic_ns());
    let zone = maps::zone(&packet, fragment.tags, config.active_set);
    let key = fragment.key;
    match fragment.first {
        Some((ports, flags)) => {
            let flow = FlowKey { client: key.source, server: key.destination, ports };
            // A SYN belongs to no flow yet, and nobody has reason to fragment one.
            if flags.opens() || !maps::has(&flow, generation, zone) {
                maps::forget_fragments(&key, zone);
                return Verdict::PassFragment;
            }
            if is_blocked(ctx, config.active_set, &flow, fragment.tags) {
                maps::forget_fragments(&key, zone);
                return Verdict::DropSource;
            }
            maps::follow_fragments(&key, FragmentState { generation, stamp_ns: now_ns, zone });
        }
        None => {
            let Some(first) = maps::first_fragment(&key) else { return Verdict::PassFragment };
            let age_ns = now_ns.saturating_sub(first.stamp_ns);
            let follows = first.generation == generation && first.zone == zone;
            if !follows || age_ns >= FRAGMENT_LIFE_NS {
                return Verdict::PassFragment;
            }
        }
    }
    let active = config.active_set;
    if active.drops_sources() && maps::drops(ctx, active.set(), &key.source, fragment.tags) {
        return Verdict::DropSource;
    }
    divert(ctx, config, fragment.tags, Verdict::DivertFragment)
}

/// Whether a rule that names both ends drops what a flow's client sends. What follows the first fragment then
/// is of no segment that anybody has.
#[inline(always)]
fn is_blocked(ctx: &XdpContext, active: ActiveSet, flow: &FlowKey, tags: usize) -> bool {
    if !active.drops_sources() {
        return false;
    }
    let class = maps::port_class(active.set(), TCP, flow.ports);
    class.blocks() && maps::ruling(ctx, active.set(), class, flow, tags).blocks()
}

/// An ICMP packet from a client-facing device: an error about a segment of a flow that the relay has
/// belongs to the relay's stack, although it is addressed to the server.
#[inline(always)]
pub fn report(ctx: &XdpContext) -> Verdict {
    let packet = Packet(ctx);
    let Some(report) = icmp::report(&packet) else { return Verdict::PassProtocol };
    let (Some(config), Some(heartbeat)) = (maps::config(), maps::heartbeat()) else {
        return Verdict::PassProtocol;
    };
    let zone = maps::zone(&packet, report.tags, config.active_set);
    if !maps::is_for_us(&packet) || !maps::has(&report.flow, heartbeat.generation, zone) {
        return Verdict::PassProtocol;
    }
    divert(ctx, config, report.tags, Verdict::DivertReport)
}

/// Turns a packet of the relay's that is too long for its way into the ICMP error that says so. The
/// host's stack would send it to the server, in whose name the relay speaks.
#[inline(never)]
pub fn too_long(ctx: &XdpContext, headers: &Headers, mtu: u16) -> Verdict {
    let packet = Packet(ctx);
    let at = headers.network_at();
    let done = match headers.family {
        Family::Ipv4 => {
            let Some(words) = packet.words(at) else { return Verdict::ReturnStack };
            if !icmp::dont_fragment(&words) {
                return Verdict::ReturnFragmented;
            }
            let from = Address::from_ipv4(NEXT_HOP);
            packet.replace(&icmp::fragmentation_needed(&words, from, mtu))
        }
        Family::Ipv6 => {
            let Some(words) = packet.words(at) else { return Verdict::ReturnStack };
            let from = Address::from_ipv6(NEXT_HOP_IPV6);
            packet.replace(&icmp::packet_too_big(&words, from, mtu))
        }
    };
    if done.is_some() { Verdict::ReturnTooLong } else { Verdict::ReturnStack }
}
