//! The kernel's helpers that the programs ask, wrapped.

use core::mem::MaybeUninit;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{
    BPF_FIB_LKUP_RET_BLACKHOLE, BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_FWD_DISABLED,
    BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_NOT_FWDED, BPF_FIB_LKUP_RET_PROHIBIT,
    BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LKUP_RET_UNREACHABLE, bpf_fib_lookup as FibParameters,
    bpf_sock, bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1,
    bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2,
};
use aya_ebpf::helpers::generated::{
    bpf_fib_lookup, bpf_ktime_get_ns, bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp,
    bpf_tcp_check_syncookie,
};
use aya_ebpf::programs::XdpContext;
use millrace_common::abi::LIFE_PORT;
use millrace_common::flow::{Address, FlowKey};
use millrace_common::packet::{Family, Headers, IPV4_LENGTH, IPV6_LENGTH, TCP_LENGTH};
use millrace_common::verdict::Verdict;

use crate::packet::Packet;

/// Address families (`linux/socket.h`).
pub const AF_INET: u8 = 2;
pub const AF_INET6: u8 = 10;

/// States of `net/tcp_states.h`.
const TCP_ESTABLISHED: u32 = 1;
const TCP_FIN_WAIT1: u32 = 4;
const TCP_FIN_WAIT2: u32 = 5;
const TCP_TIME_WAIT: u32 = 6;
const TCP_CLOSE_WAIT: u32 = 8;
const TCP_LAST_ACK: u32 = 9;
const TCP_LISTEN: u32 = 10;
const TCP_CLOSING: u32 = 11;
const TCP_NEW_SYN_RECV: u32 = 12;

/// `CLOCK_MONOTONIC` in nanoseconds.
#[inline(always)]
pub fn monotonic_ns() -> u64 {
    // SAFETY: takes nothing and cannot fail.
    unsafe { bpf_ktime_get_ns() }
}

type LookUp =
    unsafe fn(*mut core::ffi::c_void, *mut bpf_sock_tuple, u32, u64, u64) -> *mut bpf_sock;

/// Looks a socket of the namespace `nsid` up, null if there is none; the caller releases it.
#[inline(always)]
fn socket(look_up: LookUp, ctx: &XdpContext, flow: &FlowKey, nsid: u32) -> *mut bpf_sock {
    let (sport, dport) =
        (u16::from_ne_bytes(flow.ports.source()), u16::from_ne_bytes(flow.ports.destination()));
    // The helper knows the family by the tuple's size.
    let (tuple, size) =
        if let (Some(client), Some(server)) = (flow.client.to_ipv4(), flow.server.to_ipv4()) {
            let saddr = u32::from_ne_bytes(client);
            let daddr = u32::from_ne_bytes(server);
            let ipv4 = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 { saddr, daddr, sport, dport };
            (bpf_sock_tuple__bindgen_ty_1 { ipv4 }, size_of_val(&ipv4))
        } else {
            let (saddr, daddr) = (flow.client.words(), flow.server.words());
            let ipv6 = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 { saddr, daddr, sport, dport };
            (bpf_sock_tuple__bindgen_ty_1 { ipv6 }, size_of_val(&ipv6))
        };
    let mut tuple = bpf_sock_tuple { __bindgen_anon_1: tuple };
    // SAFETY: the tuple lives on the stack for the call, and `size` bytes of it are initialised.
    unsafe { look_up(ctx.as_ptr(), &raw mut tuple, size as u32, u64::from(nsid), 0) }
}

/// The state of a socket that a look-up has found.
#[inline(always)]
fn state(socket: *mut bpf_sock) -> u32 {
    // SAFETY: the caller holds the socket; one aligned word, which the verifier allows to read of
    // any socket. Volatile, for it must be read as the word it is.
    unsafe { (&raw const (*socket).state).read_volatile() }
}

/// Whether a look-up found a socket, which is let go of.
#[inline(always)]
fn found(socket: *mut bpf_sock) -> bool {
    if socket.is_null() {
        return false;
    }
    // SAFETY: a socket that a look-up has given, released once.
    unsafe { bpf_sk_release(socket.cast()) };
    true
}

/// Whether a socket in the namespace `nsid` listens for the connection that this flow begins.
///
/// It asks with client port 0, which no connection has: so that the answer is a listener, and not
/// what an earlier connection between the same ends has left in TIME-WAIT after its relay died.
#[inline(always)]
pub fn listens(ctx: &XdpContext, flow: &FlowKey, nsid: u32) -> bool {
    let flow = FlowKey { ports: flow.ports.without_source(), ..*flow };
    found(socket(bpf_skc_lookup_tcp, ctx, &flow, nsid))
}

/// Whether a relay lives in the namespace `nsid`; see [`LIFE_PORT`].
#[inline(always)]
pub fn lives(ctx: &XdpContext, nsid: u32) -> bool {
    let loopback = Address::from_ipv4([127, 0, 0, 1]);
    let flow = FlowKey::new((loopback, 0), (loopback, LIFE_PORT));
    found(socket(bpf_sk_lookup_udp, ctx, &flow, nsid))
}

/// Whether a UDP socket in the namespace `nsid` waits for this flow's datagrams.
#[inline(always)]
pub fn receives(ctx: &XdpContext, flow: &FlowKey, nsid: u32) -> bool {
    found(socket(bpf_sk_lookup_udp, ctx, flow, nsid))
}

/// The state of what the stack of the namespace `nsid` has for a segment between these ends: a
/// connection, or a listener.
#[inline(always)]
fn tcp_state(ctx: &XdpContext, flow: &FlowKey, nsid: u32) -> Option<u32> {
    let socket = socket(bpf_skc_lookup_tcp, ctx, flow, nsid);
    if socket.is_null() {
        return None;
    }
    let state = state(socket);
    // SAFETY: found above, released once.
    unsafe { bpf_sk_release(socket.cast()) };
    Some(state)
}

/// Whether the stack of the namespace `nsid` has a connection between exactly these ends: one whose
/// handshake is done and that has not ended on both sides.
#[inline(always)]
pub fn holds(ctx: &XdpContext, flow: &FlowKey, nsid: u32) -> bool {
    matches!(
        tcp_state(ctx, flow, nsid),
        Some(
            TCP_ESTABLISHED
                | TCP_FIN_WAIT1
                | TCP_FIN_WAIT2
                | TCP_CLOSE_WAIT
                | TCP_LAST_ACK
                | TCP_CLOSING
        )
    )
}

/// Whether the stack of the namespace `nsid` has anything between exactly these ends, in whatever state: a
/// handshake that has begun, and what an ended connection has left, too.
#[inline(always)]
pub fn occupied(ctx: &XdpContext, flow: &FlowKey, nsid: u32) -> bool {
    tcp_state(ctx, flow, nsid).is_some_and(|state| state != TCP_LISTEN)
}

/// What a namespace's stack knows of a connection.
pub enum Known {
    /// Nothing.
    Nothing,
    /// It has a socket for it, accepted or not.
    Socket,
    /// It has sent the SYN cookie that the segment carries.
    Cookie,
}

/// Asks the stack of the namespace `nsid` for a connection to which a segment of no known flow may
/// belong. One that is closed on this side counts as long as a relay lives, for it may have bytes on
/// their way yet; in TIME-WAIT, to which the kernel brings it when those are acknowledged, it is left
/// to wait for the client's FIN. If no relay lives, these are what a dead one has left.
#[inline(always)]
pub fn knows(ctx: &XdpContext, headers: &Headers, flow: &FlowKey, nsid: u32) -> Known {
    let socket = socket(bpf_skc_lookup_tcp, ctx, flow, nsid);
    if socket.is_null() {
        return Known::Nothing;
    }
    let state = state(socket);
    let cookie = state == TCP_LISTEN && carries_cookie(ctx, headers, socket);
    // SAFETY: found above, released once.
    unsafe { bpf_sk_release(socket.cast()) };
    let closed = match state {
        TCP_ESTABLISHED | TCP_CLOSE_WAIT | TCP_NEW_SYN_RECV => return Known::Socket,
        TCP_FIN_WAIT1 | TCP_FIN_WAIT2 | TCP_CLOSING | TCP_LAST_ACK => true,
        TCP_TIME_WAIT => headers.flags.finishes(),
        _ => false,
    };
    if cookie {
        Known::Cookie
    } else if closed && lives(ctx, nsid) {
        Known::Socket
    } else {
        Known::Nothing
    }
}

/// Whether a segment carries a SYN cookie that this listener has sent. Cheap where none has been
/// sent lately.
#[inline(always)]
fn carries_cookie(ctx: &XdpContext, headers: &Headers, listener: *mut bpf_sock) -> bool {
    let packet = Packet(ctx);
    let Some(tcp) = packet.at::<TCP_LENGTH>(headers.transport_at()) else { return false };
    let (ip, length) = match headers.family {
        Family::Ipv4 => match packet.at::<IPV4_LENGTH>(headers.network_at()) {
            Some(ip) => (ip.cast::<core::ffi::c_void>(), IPV4_LENGTH),
            None => return false,
        },
        Family::Ipv6 => match packet.at::<IPV6_LENGTH>(headers.network_at()) {
            Some(ip) => (ip.cast::<core::ffi::c_void>(), IPV6_LENGTH),
            None => return false,
        },
    };
    // SAFETY: both headers lie within the packet, as `at` has checked; the listener is held by the
    // caller.
    let answer = unsafe {
        bpf_tcp_check_syncookie(listener.cast(), ip, length as u32, tcp.cast(), TCP_LENGTH as u32)
    };
    answer == 0
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
    /// The way there carries no packet of this length; so long a one it carries.
    TooLong {
        /// Of the IP packet in bytes.
        mtu: u16,
    },
    /// In no way that a program could take: what the verdict says.
    None(Verdict),
}

/// Tells a route look-up of a packet by its protocol and traffic class, and by where it comes from and goes
/// to: addresses, and ports in network byte order.
#[inline(always)]
fn describe(
    fib: &mut FibParameters,
    (protocol, traffic_class): (u8, u8),
    (source, sport): (&Address, [u8; 2]),
    (destination, dport): (&Address, [u8; 2]),
) {
    fib.l4_protocol = protocol;
    fib.sport = u16::from_ne_bytes(sport);
    fib.dport = u16::from_ne_bytes(dport);
    if let (Some(source), Some(destination)) = (source.to_ipv4(), destination.to_ipv4()) {
        fib.family = AF_INET;
        fib.__bindgen_anon_2.tos = traffic_class;
        fib.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(source);
        fib.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(destination);
    } else {
        fib.family = AF_INET6;
        fib.__bindgen_anon_2.flowinfo = (u32::from(traffic_class) << 20).to_be();
        fib.__bindgen_anon_3.ipv6_src = source.words();
        fib.__bindgen_anon_4.ipv6_dst = destination.words();
    }
}

/// Asks the host's routing what becomes of a packet that came in where this one did.
#[inline(always)]
pub fn route(ctx: &XdpContext, headers: &Headers, flow: &FlowKey) -> Route {
    // SAFETY: integers, byte arrays and unions of them: all zero is a valid value.
    let mut fib: FibParameters = unsafe { core::mem::zeroed() };
    let (from, to) = (flow.ports.source(), flow.ports.destination());
    let kind = (headers.protocol, headers.traffic_class);
    describe(&mut fib, kind, (&flow.client, from), (&flow.server, to));
    // Only a jumbogram is longer, and the parser refuses those.
    fib.__bindgen_anon_1.tot_len = headers.ip_length.min(u32::from(u16::MAX)) as u16;
    fib.ifindex = ctx.ingress_ifindex() as u32;
    // SAFETY: the parameters live on the stack for the call, and their size is given.
    let answer =
        unsafe { bpf_fib_lookup(ctx.as_ptr(), &raw mut fib, size_of::<FibParameters>() as i32, 0) };
    Route::None(match u32::try_from(answer) {
        Ok(BPF_FIB_LKUP_RET_SUCCESS) => {
            let (source, destination) = (fib.smac, fib.dmac);
            return Route::Direct { ifindex: fib.ifindex, source, destination };
        }
        Ok(BPF_FIB_LKUP_RET_NO_NEIGH) => Verdict::ReturnNoNeighbour,
        Ok(BPF_FIB_LKUP_RET_NOT_FWDED) => Verdict::ReturnNoRoute,
        Ok(BPF_FIB_LKUP_RET_BLACKHOLE) => Verdict::ReturnBlackhole,
        Ok(BPF_FIB_LKUP_RET_UNREACHABLE) => Verdict::ReturnUnreachable,
        Ok(BPF_FIB_LKUP_RET_PROHIBIT) => Verdict::ReturnProhibited,
        Ok(BPF_FIB_LKUP_RET_FWD_DISABLED) => Verdict::ReturnForwardingOff,
        Ok(BPF_FIB_LKUP_RET_FRAG_NEEDED) => {
            // SAFETY: a u16 whichever it is; the kernel has put the MTU there (Linux 5.12).
            return Route::TooLong { mtu: unsafe { fib.__bindgen_anon_1.mtu_result } };
        }
        _ => Verdict::ReturnStack,
    })
}

/// Whether the host would send an answer back where a packet came from: as what comes from the relay, for
/// so it would come. `strict`: out of the device by which the packet came in; otherwise it is enough that
/// there is a route at all.
///
/// Where the kernel does not say, it is as if it had not been asked: the device of a route with an
/// encapsulation of its own (`BPF_FIB_LKUP_RET_UNSUPP_LWT`), and everything while the link does not
/// forward (`BPF_FIB_LKUP_RET_FWD_DISABLED`).
#[inline(always)]
pub fn leads_back(
    ctx: &XdpContext,
    flow: &FlowKey,
    (protocol, traffic_class): (u8, u8),
    (relay_link, strict): (u32, bool),
) -> bool {
    let mut space = MaybeUninit::<FibParameters>::uninit();
    let words = space.as_mut_ptr().cast::<u32>();
    for index in 0..size_of::<FibParameters>() / size_of::<u32>() {
        // SAFETY: within the parameters. Volatile, or it becomes a call, and the stack has no room for
        // one more.
        unsafe { words.add(index).write_volatile(0) };
    }
    // SAFETY: integers, byte arrays and unions of them, all zero.
    let fib = unsafe { space.assume_init_mut() };
    let (from, to) = (flow.ports.destination(), flow.ports.source());
    describe(fib, (protocol, traffic_class), (&flow.server, from), (&flow.client, to));
    fib.ifindex = relay_link;
    // SAFETY: the parameters live on the stack for the call, and their size is given. Their length of 0
    // has no MTU asked for.
    let answer = unsafe { bpf_fib_lookup(ctx.as_ptr(), fib, size_of::<FibParameters>() as i32, 0) };
    match u32::try_from(answer) {
        // The kernel names the device of both (Linux 5.10, commit d1c362e1dd68).
        Ok(BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_NO_NEIGH) => {
            !strict || fib.ifindex == ctx.ingress_ifindex() as u32
        }
        Ok(
            BPF_FIB_LKUP_RET_BLACKHOLE
            | BPF_FIB_LKUP_RET_UNREACHABLE
            | BPF_FIB_LKUP_RET_PROHIBIT
            | BPF_FIB_LKUP_RET_NOT_FWDED,
        ) => false,
        _ => true,
    }
}
