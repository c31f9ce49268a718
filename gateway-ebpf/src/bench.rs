//! Programs of the benchmarks, in an object of their own that no gateway loads: [`drop`] is the
//! floor and the end of the road, [`vary`] makes packets of many flows out of one frame and hands
//! each to the program under test.
#![no_std]
#![no_main]

mod object;

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::macros::{map, xdp};
use aya_ebpf::maps::{Array, PerCpuArray, ProgramArray};
use aya_ebpf::programs::XdpContext;
use millrace_common::bench::{Variation, below, next_random, updated_checksum};

#[map]
static VARIATION: Array<[u32; Variation::WORDS]> = Array::with_max_entries(1, 0);
#[map]
static UNDER_TEST: ProgramArray = ProgramArray::with_max_entries(1, 0);
#[map]
static RANDOM: PerCpuArray<u32> = PerCpuArray::with_max_entries(1, 0);

/// The least that a program can do with a packet.
#[xdp(frags)]
pub fn drop(_: XdpContext) -> u32 {
    xdp_action::XDP_DROP
}

/// Gives the packet another source, and a port, and goes on as the program under test.
#[xdp(frags)]
pub fn vary(ctx: XdpContext) -> u32 {
    if rewrite(&ctx).is_some() {
        // SAFETY: the context is this program's own.
        unsafe { UNDER_TEST.tail_call(&ctx, 0) };
    }
    xdp_action::XDP_ABORTED
}

#[inline(always)]
fn rewrite(ctx: &XdpContext) -> Option<()> {
    let variation = Variation::from_words(*VARIATION.get(0)?);
    let state = RANDOM.get_ptr_mut(0)?;
    // SAFETY: a value of this CPU's own, and XDP programs are not preempted by one another.
    let first = next_random(unsafe { *state });
    let second = next_random(first);
    // SAFETY: as above.
    unsafe { *state = second };

    let source = variation.first_source + below(variation.sources, first);
    // Of two bytes: the verifier does not follow the compiler's test for a single one.
    let (source_field, hops_field) =
        (at::<4>(ctx, variation.source_at)?, at::<2>(ctx, variation.hops_at)?);
    // SAFETY: `at` has checked the bounds; bytes need no alignment; this program alone has the
    // packet while it runs.
    let (before, [hops, next]) = unsafe { (u32::from_be_bytes(*source_field), *hops_field) };
    // SAFETY: as above.
    unsafe { (*source_field, *hops_field) = (source.to_be_bytes(), [Variation::HOPS, next]) };
    if variation.checksum_at > 0 {
        let field = at::<2>(ctx, variation.checksum_at)?;
        // SAFETY: as above.
        let checksum = u16::from_be_bytes(unsafe { *field });
        let checksum = updated_checksum(checksum, before, source);
        // The upper byte of its word.
        let (hops, after) = (u32::from(hops) << 8, u32::from(Variation::HOPS) << 8);
        let checksum = updated_checksum(checksum, hops, after);
        // SAFETY: as above.
        unsafe { *field = checksum.to_be_bytes() };
    }
    let (high, low) = (at::<4>(ctx, 0)?, at::<2>(ctx, 4)?);
    // SAFETY: as above.
    unsafe {
        (*high, *low) =
            (variation.link_high.to_be_bytes(), (variation.link_low as u16).to_be_bytes());
    }
    let is_other = second < variation.others;
    let port = if is_other { variation.other_port } else { variation.port };
    let field = at::<2>(ctx, variation.port_at)?;
    // SAFETY: as above.
    unsafe { *field = (port as u16).to_be_bytes() };
    Some(())
}

/// The address of `N` bytes of the packet at an offset that only the map knows.
#[inline(always)]
fn at<const N: usize>(ctx: &XdpContext, offset: u32) -> Option<*mut [u8; N]> {
    let start = ctx.data() + (offset & Variation::MAX_OFFSET) as usize;
    if start + N > ctx.data_end() {
        return None;
    }
    Some(start as *mut [u8; N])
}
