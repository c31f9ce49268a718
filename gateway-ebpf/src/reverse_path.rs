//! Whether a packet comes from where an answer to it would go: what `rp_filter` asks of what the host's
//! stack sees. Asked of what begins something new, never of a connection that the relay has.

use aya_ebpf::programs::XdpContext;
use millrace_common::flow::FlowKey;
use millrace_common::link::ReversePath;

use crate::kernel;
use crate::maps;

/// Whether the host's routing says that a packet cannot have come from its source by this device, as far
/// as that is asked there. The ordinary path is for such a packet: the host's own `rp_filter` drops it, and
/// logs it, if it would have without us.
///
/// Called: what is looked up has no room on the stack of what else a SYN is asked.
#[inline(never)]
pub fn fails(
    ctx: &XdpContext,
    flow: &FlowKey,
    protocol: u8,
    traffic_class: u8,
    is_tagged: bool,
) -> bool {
    let check = maps::reverse_path(ctx.ingress_ifindex() as u32);
    if check == ReversePath::Off {
        return false;
    }
    // Without the link nothing is diverted, which another verdict tells.
    let Some(relay_link) = maps::relay_link() else { return false };
    let strict = check == ReversePath::Strict && !is_tagged;
    !kernel::leads_back(ctx, flow, (protocol, traffic_class), (relay_link, strict))
}
