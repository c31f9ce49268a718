//! From the relay: to the client, past the host's stack.

use aya_ebpf::programs::XdpContext;
use millrace_common::packet::{TCP, parse};
use millrace_common::verdict::Verdict;

use crate::kernel::{self, Route};
use crate::maps;
use crate::packet::Packet;
use crate::related;

/// What becomes of a packet that came out of the relay namespace.
#[inline(always)]
pub fn verdict(ctx: &XdpContext) -> Verdict {
    let packet = Packet(ctx);
    let Ok(headers) = parse(&packet) else { return Verdict::ReturnStack };
    let Some(flow) = headers.flow(&packet) else { return Verdict::ReturnStack };
    if headers.tags > 0 {
        return Verdict::ReturnStack;
    }
    if headers.protocol == TCP && headers.refuses_connection() {
        let flow = flow.reversed();
        if !maps::is_established(&flow) {
            maps::forget_pending(&flow);
            return Verdict::ReturnResetHeld;
        }
    }
    match kernel::route(ctx, &headers, &flow) {
        Route::Direct { ifindex, source, destination } => {
            if maps::aim_at_client(ifindex).is_none() {
                return Verdict::ReturnNoRedirect;
            }
            if packet.set_link(destination, source).is_none() {
                return Verdict::ReturnStack;
            }
            Verdict::ReturnForwarded
        }
        Route::TooLong { mtu } => related::too_long(ctx, &headers, mtu),
        Route::None(reason) => reason,
    }
}
