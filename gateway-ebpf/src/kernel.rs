//! The kernel's helpers that the programs ask, wrapped.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{
    BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup as FibParameters,
    bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1,
};
use aya_ebpf::helpers::generated::{
    bpf_fib_lookup, bpf_ktime_get_ns, bpf_sk_release, bpf_skc_lookup_tcp,
};
use aya_ebpf::programs::XdpContext;
use millrace_common::flow::FlowKey;
use millrace_common::packet::Segment;

const AF_INET: u8 = 2;

/// `CLOCK_MONOTONIC` in nanoseconds.
#[inline(always)]
pub fn monotonic_ns() -> u64 {
    // SAFETY: takes nothing and cannot fail.
    unsafe { bpf_ktime_get_ns() }
}

/// Whether a socket in the namespace `nsid` listens for the connection that this flow begins.
///
/// It asks with client port 0, which no connection has: so that the answer is a listener, and not
/// what an earlier connection between the same ends has left in TIME-WAIT after its relay died.
#[inline(always)]
pub fn listens(ctx: &XdpContext, flow: &FlowKey, nsid: u32) -> bool {
    let (Some(client), Some(server)) = (flow.client.to_ipv4(), flow.server.to_ipv4()) else {
        return false;
    };
    let ipv4 = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 {
        saddr: u32::from_ne_bytes(client),
        daddr: u32::from_ne_bytes(server),
        sport: 0,
        dport: u16::from_ne_bytes(flow.server_port),
    };
    let mut tuple = bpf_sock_tuple { __bindgen_anon_1: bpf_sock_tuple__bindgen_ty_1 { ipv4 } };
    // SAFETY: the tuple lives on the stack for the call, and its size is that of the IPv4 variant,
    // by which the helper knows the family; the socket is released exactly if one was found.
    unsafe {
        let socket = bpf_skc_lookup_tcp(
            ctx.as_ptr(),
            &raw mut tuple,
            size_of::<bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1>() as u32,
            u64::from(nsid),
            0,
        );
        if socket.is_null() {
            return false;
        }
        bpf_sk_release(socket.cast());
    }
    true
}

/// Where the host would send a packet.
pub enum Route {
    /// Out of this device, between these hardware addresses.
    Direct {
        /// Of the device.
        ifindex: u32,
        /// The device's own.
        source: [u8; 6],
        /// The next hop's.
        destination: [u8; 6],
    },
    /// The next hop's hardware address is not known.
    NoNeighbour,
    /// Nowhere, or in a way that only the stack knows.
    Other,
}

/// Asks the host's routing what becomes of a packet that came in where this one did.
#[inline(always)]
pub fn route(ctx: &XdpContext, segment: &Segment) -> Route {
    let flow = &segment.flow;
    let (Some(source), Some(destination)) = (flow.client.to_ipv4(), flow.server.to_ipv4()) else {
        return Route::Other;
    };
    // SAFETY: integers, byte arrays and unions of them: all zero is a valid value.
    let mut fib: FibParameters = unsafe { core::mem::zeroed() };
    fib.family = AF_INET;
    fib.l4_protocol = flow.protocol;
    fib.sport = u16::from_ne_bytes(flow.client_port);
    fib.dport = u16::from_ne_bytes(flow.server_port);
    fib.__bindgen_anon_1.tot_len = segment.ip_length;
    fib.ifindex = ctx.ingress_ifindex() as u32;
    fib.__bindgen_anon_2.tos = segment.tos;
    fib.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(source);
    fib.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(destination);
    // SAFETY: the parameters live on the stack for the call, and their size is given.
    let answer =
        unsafe { bpf_fib_lookup(ctx.as_ptr(), &raw mut fib, size_of::<FibParameters>() as i32, 0) };
    match u32::try_from(answer) {
        Ok(BPF_FIB_LKUP_RET_SUCCESS) => {
            Route::Direct { ifindex: fib.ifindex, source: fib.smac, destination: fib.dmac }
        }
        Ok(BPF_FIB_LKUP_RET_NO_NEIGH) => Route::NoNeighbour,
        _ => Route::Other,
    }
}
