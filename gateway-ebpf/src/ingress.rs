//! From the clients: divert or pass.

use aya_ebpf::programs::XdpContext;
use millrace_common::abi::{GatewayConfig, Heartbeat};
use millrace_common::flow::FlowKey;
use millrace_common::packet::parse;
use millrace_common::verdict::Verdict;

use crate::packet::Packet;
use crate::{kernel, maps};

/// What becomes of a packet that came in on a client-facing device.
#[inline(always)]
pub fn verdict(ctx: &XdpContext) -> Verdict {
    let segment = match parse(&Packet(ctx)) {
        Ok(segment) => segment,
        Err(reason) => return reason.into(),
    };
    if !maps::rule_covers(&segment.flow) {
        return Verdict::PassNoRule;
    }
    let Some(config) = maps::config() else { return Verdict::PassUnconfigured };
    let heartbeat = maps::heartbeat();
    if !segment.flags.opens() {
        return follow(ctx, config, heartbeat, &segment.flow);
    }
    let verdict = open(ctx, config, heartbeat, &segment.flow);
    if verdict != Verdict::DivertNew {
        // The server will have this connection: what an earlier one between the same ends has
        // left must not divert its later packets.
        maps::forget(&segment.flow);
    }
    verdict
}

/// A SYN: is there a relay, does it want the connection, is there room for it?
#[inline(always)]
fn open(ctx: &XdpContext, config: &GatewayConfig, heartbeat: Heartbeat, flow: &FlowKey) -> Verdict {
    let age_ns = kernel::monotonic_ns().saturating_sub(heartbeat.stamp_ns);
    if heartbeat.stamp_ns == 0 || age_ns >= config.heartbeat_timeout_ns {
        return Verdict::PassNoHeartbeat;
    }
    if !kernel::listens(ctx, flow, config.relay_nsid) {
        return Verdict::PassNoListener;
    }
    if maps::begin(flow, heartbeat.generation).is_none() {
        return Verdict::PassTableFull;
    }
    divert(ctx, config, Verdict::DivertNew)
}

/// A later packet: whose is the flow?
#[inline(always)]
fn follow(
    ctx: &XdpContext,
    config: &GatewayConfig,
    heartbeat: Heartbeat,
    flow: &FlowKey,
) -> Verdict {
    let (state, verdict) = match maps::find(flow) {
        Some(maps::Held::Established(state)) => (state, Verdict::DivertEstablished),
        Some(maps::Held::Pending(state)) => (state, Verdict::DivertPending),
        None => return Verdict::PassNoFlow,
    };
    if state.generation != heartbeat.generation {
        return Verdict::PassNoFlow;
    }
    divert(ctx, config, verdict)
}

/// Aims the packet at the relay. The address is rewritten only when the link is there: a packet
/// that goes up to the host after all must still be addressed to it.
#[inline(always)]
fn divert(ctx: &XdpContext, config: &GatewayConfig, verdict: Verdict) -> Verdict {
    if maps::aim_at_relay().is_none() {
        return Verdict::PassNoLink;
    }
    if Packet(ctx).set_destination(config.relay_mac).is_none() {
        return Verdict::PassTruncated;
    }
    verdict
}
