//! What the traced variants of the programs add: each packet of one client, with its verdict, as a
//! log record. They are loaded only by `relay trace`, which puts them in the others' place.

use aya_ebpf::Global;
use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuArray;
use aya_ebpf::programs::XdpContext;
use aya_log_ebpf::info;
use millrace_common::packet::{ends, parse};
use millrace_common::trace::{Client, Desk, Direction, Event};
use millrace_common::verdict::Verdict;

use crate::kernel;
use crate::packet::Packet;

const SECOND_NS: u64 = 1_000_000_000;

// SAFETY: the only symbol of this name in the object.
#[unsafe(no_mangle)]
static TRACED_CLIENT: Global<Client> = Global::new([0; 4]);
// SAFETY: the only symbol of this name in the object.
#[unsafe(no_mangle)]
static TRACE_LIMIT: Global<u32> = Global::new(0);

#[map]
static TRACE: PerCpuArray<Desk> = PerCpuArray::with_max_entries(1, 0);

/// Decides on a packet, and tells of it if it is the client's.
#[inline(always)]
pub fn told(
    ctx: &XdpContext,
    direction: Direction,
    decide: impl FnOnce(&XdpContext) -> Verdict,
) -> Verdict {
    // Noted before: the verdict may change the packet.
    let desk = note(ctx, direction);
    let verdict = decide(ctx);
    if let Some(desk) = desk {
        tell(ctx, desk, verdict);
    }
    verdict
}

/// Writes down what is known of a packet of the client.
#[inline(always)]
fn note(ctx: &XdpContext, direction: Direction) -> Option<&'static mut Desk> {
    let packet = Packet(ctx);
    let ends = ends(&packet)?;
    let client = match direction {
        Direction::FromClient => ends.source,
        Direction::ToClient => ends.destination,
    };
    if client.words() != TRACED_CLIENT.load() {
        return None;
    }
    let desk = TRACE.get_ptr_mut(0)?;
    // SAFETY: a value of this CPU's own, and XDP programs are not preempted by one another.
    let desk = unsafe { &mut *desk };
    let event = &mut desk.event;
    event.source = ends.source;
    event.destination = ends.destination;
    event.protocol = ends.protocol;
    event.ifindex = ctx.ingress_ifindex() as u32;
    event.length = (ctx.data_end() - ctx.data()) as u32;
    event.direction = direction as u8;
    event.source_port = [0; 2];
    event.destination_port = [0; 2];
    event.flags = 0;
    event.sequence = 0;
    if let Ok(headers) = parse(&packet) {
        event.source_port = headers.ports.source();
        event.destination_port = headers.ports.destination();
        event.flags = headers.flags.0;
        event.sequence = headers.sequence;
    }
    Some(desk)
}

/// Tells of a packet, unless this second has had enough of them.
#[inline(always)]
fn tell(ctx: &XdpContext, desk: &mut Desk, verdict: Verdict) {
    desk.event.at_ns = kernel::monotonic_ns();
    desk.event.verdict = verdict as u32;
    let second = desk.event.at_ns / SECOND_NS;
    if desk.second != second {
        desk.second = second;
        desk.told_in_second = 0;
    }
    if desk.told_in_second >= u64::from(TRACE_LIMIT.load()) {
        desk.withheld += 1;
        return;
    }
    desk.told_in_second += 1;
    desk.told += 1;
    // SAFETY: the event is plain bytes without padding (its size is asserted), and lives in the map.
    let bytes = unsafe { &*(&raw const desk.event).cast::<[u8; Event::LENGTH]>() };
    info!(ctx, "{:x}", &bytes[..]);
}
