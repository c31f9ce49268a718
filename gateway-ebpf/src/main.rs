//! The XDP programs of the gateway, in the order in which a diverted connection meets them:
//! [`ingress`] on the client-facing devices, [`pass`] on the relay's end of the veth, [`egress`] on
//! the gateway's end, and behind it, for what it leaves to the stack, [`answer`]. [`trace`] has what
//! is added to them while a client is watched: then other programs run, and these know nothing of
//! it. [`apart`] is what the verifier looks at by itself. [`losses`] has two on the kernel's tracepoints,
//! which count what these have aimed in vain.
//!
//! `docs/design/gateway.md` says what is decided and why; every decision is one [`Verdict`], counted
//! per CPU and turned into an XDP action in one place, [`conclude`].
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod answer;
mod apart;
mod egress;
mod ingress;
mod kernel;
mod losses;
mod maps;
mod object;
mod packet;
mod related;
mod reverse_path;
mod trace;

use aya_ebpf::bindings::{TC_ACT_OK, xdp_action};
use aya_ebpf::helpers::generated::bpf_skb_vlan_pop;
use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use millrace_common::abi::ABI_VERSION;
use millrace_common::packet::MAX_TAGS;
use millrace_common::trace::Direction;
use millrace_common::verdict::Verdict;

/// Diverts what the relay serves; everything else goes on as if this program were not there.
#[xdp(frags)]
pub fn ingress(ctx: XdpContext) -> u32 {
    conclude(ingress::verdict(&ctx))
}

/// Sends the relay's packets to the device that leads to their client.
#[xdp(frags)]
pub fn egress(ctx: XdpContext) -> u32 {
    conclude(egress::verdict(&ctx))
}

/// Sends what [`egress`] leaves to the stack past the host's firewall. Of the traffic control, not of
/// XDP: there the kernel can ask for a neighbour.
#[classifier]
pub fn answer(ctx: TcContext) -> i32 {
    answer::action(&ctx)
}

/// At the relay's end of the veth, where a device runs [`ingress`] in generic mode: takes the tags off
/// that the kernel keeps beside the packet, where XDP cannot see them. The relay's device has no VLANs
/// and would drop such a packet.
#[classifier]
pub fn untag(ctx: TcContext) -> i32 {
    for _ in 0..MAX_TAGS {
        // SAFETY: a field of this program's own context; the helper changes its packet alone.
        unsafe {
            if (*ctx.skb.skb).vlan_present == 0 || bpf_skb_vlan_pop(ctx.skb.skb) != 0 {
                break;
            }
        }
    }
    TC_ACT_OK
}

/// [`ingress`], while `relay trace` watches a client.
#[xdp(frags)]
pub fn ingress_traced(ctx: XdpContext) -> u32 {
    conclude(trace::told(&ctx, Direction::FromClient, ingress::verdict))
}

/// [`egress`], while `relay trace` watches a client.
#[xdp(frags)]
pub fn egress_traced(ctx: XdpContext) -> u32 {
    conclude(trace::told(&ctx, Direction::ToClient, egress::verdict))
}

/// Lets everything in. A veth accepts redirected frames only if its other end polls, and it polls
/// if a program is attached there.
#[xdp(frags)]
pub fn pass(_: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// Counts a verdict and says what it means to the kernel. The redirecting verdicts are reached only
/// after the redirect's target has been set.
#[inline(always)]
fn conclude(verdict: Verdict) -> u32 {
    maps::count(verdict);
    match verdict {
        Verdict::PassTruncated
        | Verdict::PassEtherType
        | Verdict::PassTooManyTags
        | Verdict::PassMalformedIpv4
        | Verdict::PassIpv4Options
        | Verdict::PassMalformedIpv6
        | Verdict::PassIpv6Extension
        | Verdict::PassFragment
        | Verdict::PassProtocol
        | Verdict::PassMalformedTcp
        | Verdict::PassMalformedUdp
        | Verdict::PassNoRule
        | Verdict::PassOtherHost
        | Verdict::PassOtherZone
        | Verdict::PassRule
        | Verdict::PassExcluded
        | Verdict::PassUnconfigured
        | Verdict::PassNoHeartbeat
        | Verdict::PassNoListener
        | Verdict::PassRelayFull
        | Verdict::PassUnanswered
        | Verdict::PassTableFull
        | Verdict::PassNoLink
        | Verdict::PassNoFlow
        | Verdict::PassReversePath
        | Verdict::ReturnNoNeighbour
        | Verdict::ReturnNoRoute
        | Verdict::ReturnBlackhole
        | Verdict::ReturnUnreachable
        | Verdict::ReturnProhibited
        | Verdict::ReturnForwardingOff
        | Verdict::ReturnFragmented
        | Verdict::ReturnNoRedirect
        | Verdict::ReturnStack => xdp_action::XDP_PASS,
        Verdict::DivertNew
        | Verdict::DivertPending
        | Verdict::DivertEstablished
        | Verdict::DivertSocket
        | Verdict::DivertCookie
        | Verdict::DivertRule
        | Verdict::DivertDatagram
        | Verdict::DivertFragment
        | Verdict::DivertReport
        | Verdict::ReturnForwarded => xdp_action::XDP_REDIRECT,
        Verdict::ReturnTooLong => xdp_action::XDP_TX,
        Verdict::DropRule
        | Verdict::DropSource
        | Verdict::ReturnResetHeld
        | Verdict::ReturnAnswerHeld => xdp_action::XDP_DROP,
    }
}

// SAFETY: the loader reads this section as four little-endian bytes (`abi::SECTION`).
#[unsafe(link_section = ".millrace.abi")]
// SAFETY: the only symbol of this name in the object.
#[unsafe(no_mangle)]
static MILLRACE_ABI: [u8; 4] = ABI_VERSION.to_le_bytes();
