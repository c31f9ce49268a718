//! On the kernel's tracepoints: what becomes of packets that were aimed at a device and did not get
//! there. Only errors are counted; where there are none, nothing is looked at.

use aya_ebpf::helpers::bpf_probe_read_kernel;
use aya_ebpf::macros::{map, raw_tracepoint};
use aya_ebpf::maps::{Array, PerCpuHashMap};
use aya_ebpf::programs::RawTracePointContext;
use millrace_common::loss::{Loss, LossSetup, MAX_LOSSES};

#[map]
static LOSS_SETUP: Array<LossSetup> = Array::with_max_entries(1, 0);
#[map]
static LOSSES: PerCpuHashMap<Loss, u64> = PerCpuHashMap::with_max_entries(MAX_LOSSES, 0);

/// A packet that the kernel did not queue for its device. The tracepoint fires for errors alone; its
/// arguments are device, program, target, error, kind of the map, its id, and the key there.
#[raw_tracepoint(tracepoint = "xdp_redirect_err")]
pub fn refused(ctx: RawTracePointContext) {
    let Some(setup) = LOSS_SETUP.get(0) else { return };
    let map: u32 = ctx.arg(5);
    let ifindex = if map == setup.relay_link {
        setup.gateway_ifindex
    } else if map == setup.client_links {
        ctx.arg(6)
    } else {
        return;
    };
    count(ifindex, ctx.arg(3), 1);
}

/// Queued packets, up to sixteen of them, that were handed to their device. The tracepoint fires each
/// time; its arguments are the devices from and to, the packets sent and dropped, and the error.
#[raw_tracepoint(tracepoint = "xdp_devmap_xmit")]
pub fn unsent(ctx: RawTracePointContext) {
    let dropped: i32 = ctx.arg(3);
    if dropped <= 0 {
        return;
    }
    let Some(setup) = LOSS_SETUP.get(0) else { return };
    let (from, to): (u64, u64) = (ctx.arg(0), ctx.arg(1));
    let (Some(from), Some(to)) = (ifindex(from, setup), ifindex(to, setup)) else { return };
    if from == setup.gateway_ifindex || to == setup.gateway_ifindex {
        count(to, ctx.arg(4), dropped as u64);
    }
}

/// The index of a device of the gateway's network namespace: elsewhere, others may have the same.
#[inline(always)]
fn ifindex(device: u64, setup: &LossSetup) -> Option<u32> {
    let at = |start: u64, offset: u32| (start + u64::from(offset)) as *const u32;
    // SAFETY: the helper checks the address, and says so if nothing can be read there.
    unsafe {
        let net: u64 = bpf_probe_read_kernel(at(device, setup.net_at).cast()).ok()?;
        let number = bpf_probe_read_kernel(at(net, setup.number_at)).ok()?;
        if number != setup.namespace {
            return None;
        }
        bpf_probe_read_kernel(at(device, setup.ifindex_at)).ok()
    }
}

#[inline(always)]
fn count(ifindex: u32, error: i32, packets: u64) {
    let loss = Loss { ifindex, errno: error.unsigned_abs() };
    match LOSSES.get_ptr_mut(loss) {
        // SAFETY: a value of this processor's own, and these tracepoints are not interrupted by each
        // other.
        Some(counter) => unsafe { *counter += packets },
        // If there is no room, the loss shows in the totals alone.
        None => drop(LOSSES.insert(loss, packets, 0)),
    }
}
