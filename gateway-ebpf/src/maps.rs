//! The maps, and the few questions that the programs ask of them.

use core::arch::asm;

use aya_ebpf::bindings::{BPF_ANY, BPF_F_NO_PREALLOC, xdp_action};
use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::maps::{Array, DevMap, DevMapHash, HashMap, LpmTrie, LruHashMap, PerCpuArray};
use aya_ebpf::programs::XdpContext;
use millrace_common::abi::{
    ABI_VERSION, GatewayConfig, Heartbeat, IN_VAIN_NS, MAX_CLIENT_LINKS, MAX_ESTABLISHED,
    MAX_FRAGMENTS, MAX_PATHS, MAX_PENDING, MAX_SET_ENTRIES, MAX_SHARED_ADDRESSES, Offers, Path,
    SENT_AGAIN_NS,
};
use millrace_common::flow::{Address, FlowKey, FlowState, PendingState, Ports, ShortKey};
use millrace_common::fragment::{FragmentKey, FragmentState};
use millrace_common::link::{ClientDevice, HardwareAddress, ReversePath};
use millrace_common::packet::{Family, Headers, vlans};
use millrace_common::plain::Plain;
use millrace_common::rule::{Action, ActiveSet, Place, PortClass, RuleKey, Ruling, SetIndex};
use millrace_common::verdict::Verdict;
use millrace_common::zone::Zone;

use crate::packet::Packet;

#[map]
static CONFIG: Array<GatewayConfig> = Array::with_max_entries(1, 0);
#[map]
static HEARTBEAT: Array<Heartbeat> = Array::with_max_entries(1, 0);
#[map]
static PORT_CLASSES: Array<u32> = Array::with_max_entries(PortClass::SLOTS, 0);
#[map]
static RULES: LpmTrie<RuleKey, u32> = LpmTrie::with_max_entries(2 * MAX_SET_ENTRIES, 0);
#[map]
static PENDING: LruHashMap<FlowKey, PendingState> = LruHashMap::with_max_entries(MAX_PENDING, 0);
/// Not preallocated: its size is a limit, and few hosts come near it.
#[map]
static ESTABLISHED_IPV4: HashMap<ShortKey, FlowState> =
    HashMap::with_max_entries(MAX_ESTABLISHED, BPF_F_NO_PREALLOC);
/// As before.
#[map]
static ESTABLISHED_IPV6: HashMap<FlowKey, FlowState> =
    HashMap::with_max_entries(MAX_ESTABLISHED, BPF_F_NO_PREALLOC);
#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Verdict::ALL.len() as u32, 0);
#[map]
static RELAY_LINK: DevMap = DevMap::with_max_entries(1, 0);
#[map]
static CLIENT_LINKS: DevMapHash = DevMapHash::with_max_entries(MAX_CLIENT_LINKS, 0);
#[map]
static OFFERS: HashMap<Path, Offers> = HashMap::with_max_entries(MAX_PATHS, 0);
#[map]
static CLOSED_PATHS: HashMap<Path, u32> = HashMap::with_max_entries(MAX_PATHS, 0);

#[map]
static FRAGMENTS: LruHashMap<FragmentKey, FragmentState> =
    LruHashMap::with_max_entries(MAX_FRAGMENTS, 0);
#[map]
static CLIENT_DEVICES: Array<ClientDevice> = Array::with_max_entries(ClientDevice::SLOTS, 0);
#[map]
static SHARED_ADDRESSES: HashMap<u64, u32> =
    HashMap::with_max_entries(MAX_SHARED_ADDRESSES, BPF_F_NO_PREALLOC);

/// Counts a verdict.
#[inline(always)]
pub fn count(verdict: Verdict) {
    if let Some(counter) = COUNTERS.get_ptr_mut(verdict as u32) {
        // SAFETY: a value of this CPU's own, and XDP programs are not preempted by one another.
        unsafe { *counter += 1 };
    }
}

/// Whether a frame is for this host, and not seen only because its device looks at others' too.
#[inline(always)]
pub fn is_for_us(packet: &Packet<'_>) -> bool {
    let slot = ClientDevice::slot(packet.0.ingress_ifindex() as u32);
    let Some(device) = CLIENT_DEVICES.get(slot) else { return false };
    let Some(address) = HardwareAddress::of_destination(packet) else { return false };
    device.is(address) || is_shared(address)
}

/// Apart, for it is seldom asked.
#[inline(never)]
fn is_shared(address: HardwareAddress) -> bool {
    SHARED_ADDRESSES.get_ptr(address.number()).is_some()
}

/// The zone that a frame with so many tags comes from.
#[inline(always)]
pub fn zone(packet: &Packet<'_>, tags: usize, active: ActiveSet) -> Zone {
    let zones = active.zones();
    let vlans = if zones.by_vlan { vlans(packet, tags) } else { 0 };
    let zone = Zone::new(zones, packet.0.ingress_ifindex() as u32, vlans);
    Zone::of_number(opaque(zone.number()))
}

/// The same number. It is swapped to and fro: of such a number the verifier knows nothing, and so does not go on
/// from here once for each way in which it may have come about.
#[inline(always)]
fn opaque(mut number: u64) -> u64 {
    // SAFETY: changes nothing but this number, and that not in the end.
    unsafe {
        asm!(
            "{number} = be64 {number}",
            "{number} = be64 {number}",
            number = inout(reg) number,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    number
}

/// How far sources are checked on a client-facing device.
#[inline(always)]
pub fn reverse_path(ifindex: u32) -> ReversePath {
    CLIENT_DEVICES.get(ClientDevice::slot(ifindex)).map_or(ReversePath::Off, |it| it.reverse_path())
}

/// The gateway's end of the link to the relay, by which its answers come in; `None` if it is gone.
#[inline(always)]
pub fn relay_link() -> Option<u32> {
    RELAY_LINK.get_ifindex(0)
}

/// The class of the port that a packet goes to.
#[inline(always)]
pub fn port_class(set: SetIndex, protocol: u8, ports: Ports) -> PortClass {
    let slot = PortClass::slot(set, protocol, ports.destination());
    PortClass(PORT_CLASSES.get(slot).copied().unwrap_or_default())
}

/// Whether the port that a TCP segment comes from has rules, or had them: as a server's has.
#[inline(always)]
pub fn is_from_server(set: SetIndex, headers: &Headers) -> bool {
    let slot = PortClass::slot(set, headers.protocol, headers.ports.source());
    PORT_CLASSES.get(slot).is_some_and(|class| *class != PortClass::NO_RULE.0)
}

/// What the rules of a class say about a packet of a flow, which has so many VLAN tags.
///
/// Called: rules are asked in several places, and what is looked up has no room on the stack of what else
/// a packet is asked.
#[inline(never)]
pub fn ruling(
    ctx: &XdpContext,
    set: SetIndex,
    class: PortClass,
    flow: &FlowKey,
    tags: usize,
) -> Ruling {
    if !class.has_rules() {
        return Ruling::NONE;
    }
    let key = |place| RuleKey::new(set, class.number(), place, flow.server);
    of_all_places(ctx, class, tags, |place| look_up(key(place), &flow.client))
}

/// What is said of a source alone, whatever the destination: the same of packets from a place.
#[inline(never)]
pub fn source_ruling(ctx: &XdpContext, set: SetIndex, source: &Address, tags: usize) -> Ruling {
    let slot = PortClass::sources_slot(set);
    let named = PORT_CLASSES.get(slot).copied().map_or(PortClass::FLOWS_ONLY, PortClass);
    let key = |place| RuleKey::new(set, RuleKey::SOURCES, place, *source);
    of_all_places(ctx, named, tags, |place| look_up_once(key(place)))
}

/// What counts of all that is found: for any place, and for that of a packet, as far as the class names one.
#[inline(always)]
fn of_all_places(
    ctx: &XdpContext,
    class: PortClass,
    tags: usize,
    look_up: impl Fn(Place) -> Ruling,
) -> Ruling {
    let mut best = look_up(Place::ANY);
    if !class.names_places() {
        return best;
    }
    let (device, vlans) = place(ctx, tags);
    for named in Place::KINDS {
        if class.names(named) {
            best = opaque_ruling(best.max(look_up(Place::new(named, device, vlans))));
        }
    }
    best
}

/// [`opaque`].
#[inline(always)]
fn opaque_ruling(ruling: Ruling) -> Ruling {
    Ruling::of_number(opaque(u64::from(ruling.number())) as u32)
}

/// The number of the device by which a packet came, and its VLANs.
#[inline(always)]
fn place(ctx: &XdpContext, tags: usize) -> (u16, u32) {
    let slot = ClientDevice::slot(ctx.ingress_ifindex() as u32);
    let device = CLIENT_DEVICES.get(slot).map_or(0, |device| device.number());
    (opaque(u64::from(device)) as u16, opaque(u64::from(vlans(&Packet(ctx), tags))) as u32)
}

#[inline(always)]
fn look_up_once(key: RuleKey) -> Ruling {
    let found = RULES.get(Key::new(RuleKey::ALL_BITS, key)).copied();
    opaque_ruling(found.map_or(Ruling::NONE, Ruling::of_number))
}

/// The same; and where the rules name sources, what they say of this one.
#[inline(never)]
fn look_up(key: RuleKey, source: &Address) -> Ruling {
    let found = look_up_once(key);
    match found.group() {
        None => found,
        Some(group) => look_up_once(key.in_group(group, *source)),
    }
}

/// Whether a set drops whatever comes from a source.
#[inline(always)]
pub fn drops(ctx: &XdpContext, set: SetIndex, source: &Address, tags: usize) -> bool {
    source_ruling(ctx, set, source, tags).action() == Some(Action::Drop)
}

/// Whether a flow's client is excluded from diversion, or, as was asked before, dropped.
#[inline(always)]
pub fn excludes(ctx: &XdpContext, set: SetIndex, flow: &FlowKey, tags: usize) -> bool {
    source_ruling(ctx, set, &flow.client, tags) != Ruling::NONE
}

/// The configuration, if the loader is of this object's ABI version.
#[inline(always)]
pub fn config() -> Option<&'static GatewayConfig> {
    CONFIG.get(0).filter(|config| config.abi_version == ABI_VERSION)
}

/// The relay's last beat; all zero before the first. It is read where it is, for most packets want
/// only a part of it.
#[inline(always)]
pub fn heartbeat() -> Option<&'static Heartbeat> {
    HEARTBEAT.get(0)
}

/// Whether a flow's state is that of the relay's present run, and known to be in the zone of a packet,
/// which is asked for only where there are zones.
///
/// # Safety
/// The state is an element of a flow map. It may be reused for another flow while it is read: it
/// holds aligned u64, which are read whole; what is read is then another flow's of this relay, and the
/// packet is diverted as it would have been a moment earlier.
#[inline(always)]
unsafe fn is_present(
    state: *const FlowState,
    generation: u64,
    zone: impl FnOnce() -> Zone,
) -> bool {
    // SAFETY: see above.
    let (present, of) = unsafe { ((*state).generation, (*state).zone) };
    present == generation && (of == Zone::ANY || of == zone())
}

/// Whether the relay's present run has accepted the flow of a packet, and has it in the packet's zone.
/// Asked before `PENDING` is: a flow that the relay closes is in there before it is taken out here, and
/// so is never missed.
#[inline(always)]
pub fn has_accepted(
    packet: &Packet<'_>,
    headers: &Headers,
    generation: u64,
    zone: impl FnOnce() -> Zone,
) -> bool {
    let state = match headers.family {
        Family::Ipv4 => headers.short_flow(packet).and_then(|key| ESTABLISHED_IPV4.get_ptr(key)),
        Family::Ipv6 => headers.flow(packet).and_then(|key| ESTABLISHED_IPV6.get_ptr(key)),
    };
    // SAFETY: an element of a flow map.
    state.is_some_and(|state| unsafe { is_present(state, generation, zone) })
}

/// The same of a plain segment.
#[inline(always)]
pub fn has_accepted_plain(
    plain: &Plain<'_, Packet<'_>>,
    generation: u64,
    zone: impl FnOnce() -> Zone,
) -> bool {
    let state = match plain.family {
        Family::Ipv4 => plain.short_flow().and_then(|key| ESTABLISHED_IPV4.get_ptr(key)),
        Family::Ipv6 => plain.flow().and_then(|key| ESTABLISHED_IPV6.get_ptr(key)),
    };
    // SAFETY: an element of a flow map.
    state.is_some_and(|state| unsafe { is_present(state, generation, zone) })
}

/// Where a segment belongs whose flow the relay has not accepted, or no longer has.
pub enum Pending {
    /// To the relay's present run: its flow is on its way, or was just closed.
    Relay,
    /// To the server, whatever the relay's stack knows.
    Server,
    /// Not to the relay's flow between these ends: that is in another zone.
    OtherZone,
    /// Nobody knows.
    Unknown,
}

/// Looks a flow up at a segment that continues it. The first one is its client's answer to what the
/// relay's stack has answered to its SYN.
#[inline(always)]
pub fn pending(flow: &FlowKey, generation: u64, zone: Zone, ifindex: u32) -> Pending {
    let Some(state) = PENDING.get_ptr_mut(flow) else { return Pending::Unknown };
    // SAFETY: an element of a flow map, whose aligned u64 are read and written whole. It may be
    // reused for another flow meanwhile: that one then counts as answered, once.
    let state = unsafe { &mut *state };
    if state.generation == PendingState::SERVERS.generation {
        return Pending::Server;
    }
    if state.generation != generation {
        return Pending::Unknown;
    }
    if !state.zone.admits(zone) {
        return Pending::OtherZone;
    }
    if state.zone == Zone::UNKNOWN {
        state.zone = zone;
    }
    if state.offered_ns != 0 {
        state.offered_ns = 0;
        answered(flow, ifindex);
    }
    Pending::Relay
}

/// How a flow stands to the relay and to the zone of a packet between its ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// It is not the relay's.
    Nobody,
    /// It is the relay's, and the packet may belong to it.
    Relay,
    /// It is the relay's, and the packet comes from another zone.
    OtherZone,
}

impl Owner {
    #[inline(always)]
    fn of(state: Option<(u64, Zone)>, generation: u64, zone: Zone) -> Self {
        match state {
            Some((present, of)) if present == generation => {
                if of.admits(zone) {
                    Self::Relay
                } else {
                    Self::OtherZone
                }
            }
            _ => Self::Nobody,
        }
    }
}

/// Whose a flow is that is on its way, or was just closed.
#[inline(always)]
pub fn pending_owner(flow: &FlowKey, generation: u64, zone: Zone) -> Owner {
    // SAFETY: an element of a flow map; see [`is_present`].
    let state = PENDING.get_ptr(flow).map(|state| unsafe { ((*state).generation, (*state).zone) });
    Owner::of(state, generation, zone)
}

/// Whether a connection is the server's, although its SYN was diverted before.
#[inline(always)]
pub fn is_servers(flow: &FlowKey) -> bool {
    pending_owner(flow, PendingState::SERVERS.generation, Zone::ANY) == Owner::Relay
}

/// [`has_accepted`] of a flow that is known otherwise than by a packet's own headers; also where its zone
/// is not known yet.
#[inline(always)]
pub fn accepted_owner(flow: &FlowKey, generation: u64, zone: Zone) -> Owner {
    // SAFETY: an element of a flow map; see [`is_present`].
    let state = accepted(flow).map(|state| unsafe { ((*state).generation, (*state).zone) });
    Owner::of(state, generation, zone)
}

/// Whether the relay's present run has a flow, or had it a moment ago, and a packet of this zone may belong
/// to it.
#[inline(always)]
pub fn has(flow: &FlowKey, generation: u64, zone: Zone) -> bool {
    accepted_owner(flow, generation, zone) == Owner::Relay
        || pending_owner(flow, generation, zone) == Owner::Relay
}

/// Has an accepted flow whose zone is not known be in this one: a flood has evicted what its SYN had left,
/// or the relay has opened it itself.
#[inline(never)]
pub fn settle(flow: &FlowKey, zone: Zone) {
    if let Some(state) = accepted(flow) {
        // SAFETY: an element of a flow map; see [`pending`].
        let of = unsafe { &mut (*state).zone };
        if *of == Zone::UNKNOWN {
            *of = zone;
        }
    }
}

#[inline(always)]
fn accepted(flow: &FlowKey) -> Option<*mut FlowState> {
    match flow.short() {
        Some(key) => ESTABLISHED_IPV4.get_ptr_mut(key),
        None => ESTABLISHED_IPV6.get_ptr_mut(flow),
    }
}

/// Has the later fragments of a segment follow the first.
#[inline(always)]
pub fn follow_fragments(key: &FragmentKey, state: FragmentState) {
    // Without room the segment is lost as it would be without all of this, and is sent again.
    let _ = FRAGMENTS.insert(key, state, u64::from(BPF_ANY));
}

/// Has fragments of this number and zone follow nobody: they are another segment's now.
#[inline(always)]
pub fn forget_fragments(key: &FragmentKey, zone: Zone) {
    if first_fragment(key).is_some_and(|first| first.zone == zone) {
        let _ = FRAGMENTS.remove(key);
    }
}

/// The first fragment that one of this number follows.
#[inline(always)]
pub fn first_fragment(key: &FragmentKey) -> Option<FragmentState> {
    // SAFETY: an element of the map. It may be reused for another segment while it is read; its words
    // are a present relay's then, or the fragment is passed.
    FRAGMENTS.get_ptr(key).map(|state| unsafe { *state })
}

/// Whether a relay has accepted a flow.
#[inline(always)]
pub fn is_established(flow: &FlowKey) -> bool {
    accepted(flow).is_some()
}

/// A flow at its SYN.
pub enum Offer {
    /// To be diverted.
    Made,
    /// It was diverted before, and for so long in vain that the server should have it.
    InVain,
    /// There is no room for it.
    NoRoom,
}

/// Takes a flow up at its SYN.
#[inline(always)]
#[must_use]
pub fn offer(flow: &FlowKey, generation: u64, zone: Zone, now_ns: u64, ifindex: u32) -> Offer {
    if let Some(state) = PENDING.get_ptr(flow) {
        // SAFETY: an element of a flow map; see [`pending`].
        let PendingState { generation: present, offered_ns, zone: of } = unsafe { *state };
        if present == generation && of == zone && offered_ns != 0 {
            return offer_again(flow, now_ns.saturating_sub(offered_ns), ifindex);
        }
    }
    match begin(flow, PendingState { generation, offered_ns: now_ns, zone }) {
        Some(()) => Offer::Made,
        None => Offer::NoRoom,
    }
}

/// Takes a flow up.
#[inline(always)]
#[must_use]
pub fn begin(flow: &FlowKey, state: PendingState) -> Option<()> {
    PENDING.insert(flow, state, u64::from(BPF_ANY)).ok()
}

/// A SYN that comes after another one of its flow, which nobody has answered so far.
#[inline(never)]
fn offer_again(flow: &FlowKey, age_ns: u64, ifindex: u32) -> Offer {
    if age_ns < SENT_AGAIN_NS {
        return Offer::Made;
    }
    let in_vain = age_ns >= IN_VAIN_NS;
    if let Some(offers) = OFFERS.get_ptr_mut(path(flow, ifindex)) {
        // SAFETY: an element of the map, read and written by aligned words. It may be reused for another
        // path meanwhile, which then counts one too many.
        let offers = unsafe { &mut *offers };
        add(if in_vain { &mut offers.in_vain } else { &mut offers.repeated });
        let [a, b, c, d] = flow.client.words();
        let source = (u64::from(a ^ c) << 32 | u64::from(b ^ d)).rotate_left(1) | 1;
        if offers.last_source != source {
            if offers.last_source != 0 {
                add(&mut offers.sources);
            }
            offers.last_source = source;
        }
    }
    if in_vain { Offer::InVain } else { Offer::Made }
}

/// The client of a flow has answered.
#[inline(never)]
pub fn answered(flow: &FlowKey, ifindex: u32) {
    if let Some(offers) = OFFERS.get_ptr_mut(path(flow, ifindex)) {
        // SAFETY: as above.
        add(unsafe { &mut (*offers).answered });
    }
}

/// Adds one to what other processors add to as well.
#[inline(always)]
fn add(counter: &mut u64) {
    // SAFETY: one atomic addition (RFC 9669 section 5.3) to a valid, aligned u64. The target has no
    // atomics in Rust's library.
    unsafe {
        core::arch::asm!(
            "lock *(u64 *)({counter} + 0) += {one}",
            counter = in(reg) counter,
            one = in(reg) 1_u64,
        );
    }
}

#[inline(always)]
fn path(flow: &FlowKey, ifindex: u32) -> Path {
    Path { ifindex, family: if flow.client.is_mapped() { 4 } else { 6 } }
}

/// Whether nothing that is diverted from where this flow comes is answered.
#[inline(never)]
pub fn is_closed(flow: &FlowKey, ifindex: u32) -> bool {
    CLOSED_PATHS.get_ptr(path(flow, ifindex)).is_some()
}

/// Takes a flow out of `PENDING`. That it is not there is as good.
#[inline(always)]
pub fn forget_pending(flow: &FlowKey) {
    let _ = PENDING.remove(flow);
}

/// The server will have a connection: what an earlier one between the same ends has left must not
/// divert its packets, and what the relay's stack may have of an earlier SYN of its own neither.
#[inline(always)]
pub fn leave_to_server(flow: &FlowKey) {
    if let Some(state) = PENDING.get_ptr_mut(flow) {
        // SAFETY: an element of a flow map; see [`pending`].
        unsafe { *state = PendingState::SERVERS };
    }
    let _ = match flow.short() {
        Some(key) => ESTABLISHED_IPV4.remove(key),
        None => ESTABLISHED_IPV6.remove(flow),
    };
}

/// Flags of a redirect: what the helper answers if the map has no such entry.
const PASS_IF_NONE: u64 = xdp_action::XDP_PASS as u64;

/// Sets the link to the relay as the redirect's target; `None` if the link is gone.
#[inline(always)]
#[must_use]
pub fn aim_at_relay() -> Option<()> {
    RELAY_LINK.redirect(0, PASS_IF_NONE).ok().map(drop)
}

/// Sets a client-facing device as the redirect's target; `None` if it is not one of ours.
#[inline(always)]
#[must_use]
pub fn aim_at_client(ifindex: u32) -> Option<()> {
    CLIENT_LINKS.redirect(ifindex, PASS_IF_NONE).ok().map(drop)
}
