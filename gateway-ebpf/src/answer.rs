//! From the relay: what [`crate::egress`] has left to the stack, sent on before the stack has it.
//!
//! The stack would forward such a packet too, but through the host's firewall, which has not seen
//! what the packet answers. It belongs to no connection then, and many a host drops those. From here
//! the kernel asks for the next hop's hardware address and sends the packet
//! (`bpf_redirect_neigh`), to whatever kind of device. What is longer than its route allows, or has
//! no route, goes on to the stack, whose errors do not pass that part of the firewall.

use aya_ebpf::bindings::{
    BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, TC_ACT_OK, TC_ACT_REDIRECT,
    bpf_fib_lookup as FibParameters, bpf_redir_neigh, bpf_redir_neigh__bindgen_ty_1,
};
use aya_ebpf::helpers::generated::{bpf_fib_lookup, bpf_redirect_neigh};
use aya_ebpf::programs::TcContext;
use millrace_common::packet::{
    ETHERNET_LENGTH, ETHERTYPE_AT, ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPV4_LENGTH, IPV6_LENGTH, TCP,
    TCP_LENGTH,
};

use crate::kernel::{AF_INET, AF_INET6};

/// What becomes of a packet that goes up to the host's stack.
#[inline(always)]
pub fn action(ctx: &TcContext) -> i32 {
    let Some(mut fib) = parameters(ctx) else { return TC_ACT_OK };
    let size = size_of::<FibParameters>() as i32;
    // SAFETY: the context is this program's own; the parameters live on the stack for the call, and
    // their size is given.
    let found = unsafe { bpf_fib_lookup(ctx.skb.skb.cast(), &raw mut fib, size, 0) };
    if !matches!(u32::try_from(found), Ok(BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_NO_NEIGH)) {
        return TC_ACT_OK;
    }
    // The look-up has put the next hop into the destination's place. Its family may be another.
    // SAFETY: integers alone, in every variant.
    let next_hop = unsafe {
        if fib.family == AF_INET {
            bpf_redir_neigh__bindgen_ty_1 { ipv4_nh: fib.__bindgen_anon_4.ipv4_dst }
        } else {
            bpf_redir_neigh__bindgen_ty_1 { ipv6_nh: fib.__bindgen_anon_4.ipv6_dst }
        }
    };
    let mut neighbour =
        bpf_redir_neigh { nh_family: u32::from(fib.family), __bindgen_anon_1: next_hop };
    let size = size_of::<bpf_redir_neigh>() as i32;
    // SAFETY: as above.
    let aimed = unsafe { bpf_redirect_neigh(fib.ifindex, &raw mut neighbour, size, 0) };
    if aimed == i64::from(TC_ACT_REDIRECT) { TC_ACT_REDIRECT } else { TC_ACT_OK }
}

/// What the route look-up wants to know; `None` of what is neither IPv4 nor IPv6, or has options.
#[inline(always)]
fn parameters(ctx: &TcContext) -> Option<FibParameters> {
    // SAFETY: integers, byte arrays and unions of them: all zero is a valid value.
    let mut fib: FibParameters = unsafe { core::mem::zeroed() };
    // SAFETY: fields of this program's own context.
    let gso_size = unsafe {
        fib.ifindex = (*ctx.skb.skb).ifindex;
        (*ctx.skb.skb).gso_size
    };
    let (length, header_length) = match u16::from_be_bytes(ctx.load(ETHERTYPE_AT).ok()?) {
        ETHERTYPE_IPV4 => {
            let header: [u8; IPV4_LENGTH] = ctx.load(ETHERNET_LENGTH).ok()?;
            let [0x45, tos, a, b, _, _, _, _, _, protocol, _, _, addresses @ ..] = header else {
                return None;
            };
            let [s0, s1, s2, s3, d0, d1, d2, d3] = addresses;
            fib.family = AF_INET;
            fib.l4_protocol = protocol;
            fib.__bindgen_anon_2.tos = tos;
            fib.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes([s0, s1, s2, s3]);
            fib.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes([d0, d1, d2, d3]);
            (u16::from_be_bytes([a, b]), IPV4_LENGTH)
        }
        ETHERTYPE_IPV6 => {
            let start: [u8; 8] = ctx.load(ETHERNET_LENGTH).ok()?;
            let [a, b, _, _, c, d, next_header, _] = start;
            fib.family = AF_INET6;
            fib.l4_protocol = next_header;
            // The traffic class, without the flow label.
            fib.__bindgen_anon_2.flowinfo = u32::from_ne_bytes([a & 0x0f, b & 0xf0, 0, 0]);
            fib.__bindgen_anon_3.ipv6_src = ctx.load(ETHERNET_LENGTH + 8).ok()?;
            fib.__bindgen_anon_4.ipv6_dst = ctx.load(ETHERNET_LENGTH + 24).ok()?;
            (u16::from_be_bytes([c, d]).saturating_add(IPV6_LENGTH as u16), IPV6_LENGTH)
        }
        _ => return None,
    };
    fib.__bindgen_anon_1.tot_len = length;
    if fib.l4_protocol == TCP {
        let transport_at = ETHERNET_LENGTH + header_length;
        let header: [u8; TCP_LENGTH] = ctx.load(transport_at).ok()?;
        let [s0, s1, d0, d1, _, _, _, _, _, _, _, _, words, ..] = header;
        fib.sport = u16::from_ne_bytes([s0, s1]);
        fib.dport = u16::from_ne_bytes([d0, d1]);
        // Segments that the device has merged are sent as they came.
        if gso_size > 0 {
            let headers = header_length as u32 + u32::from(words >> 4) * 4;
            fib.__bindgen_anon_1.tot_len = (headers + gso_size) as u16;
        }
    }
    Some(fib)
}
