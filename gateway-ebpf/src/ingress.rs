//! From the clients: divert, pass or drop.

use aya_ebpf::programs::XdpContext;
use millrace_common::abi::{GatewayConfig, Heartbeat, Intake};
use millrace_common::flow::{FlowKey, PendingState};
use millrace_common::packet::{Headers, TCP, parse};
use millrace_common::plain::Plain;
use millrace_common::rule::{Action, ActiveSet, PortClass, Ruling};
use millrace_common::verdict::Verdict;
use millrace_common::zone::Zone;

use crate::apart;
use crate::kernel::{self, Known};
use crate::maps::{self, Offer, Owner, Pending};
use crate::packet::Packet;
use crate::reverse_path;

/// What becomes of a packet that came in on a client-facing device.
#[inline(always)]
pub fn verdict(ctx: &XdpContext) -> Verdict {
    let decided = match Plain::of(&Packet(ctx)).and_then(|plain| usual(ctx, &plain)) {
        Some(decided) => decided,
        None => intricate(ctx),
    };
    match decided {
        Decided::As(verdict) => verdict,
        Decided::Unaccepted => apart::unaccepted(ctx),
        Decided::Answer => apart::answered_by_server(ctx),
    }
}

/// What the first questions have found out.
enum Decided {
    /// Everything.
    As(Verdict),
    /// It is of no accepted connection: [`unaccepted`].
    Unaccepted,
    /// It may be a server's answer: [`answer`].
    Answer,
}

/// What nearly all packets are comes first, and needs no more than this: a plain TCP segment to a port
/// without rules, or of a connection that the relay has. These are the questions of [`Ruled::of`], in the
/// same order. None where sources are dropped: then [`intricate`] asks about it.
#[inline(always)]
fn usual(ctx: &XdpContext, plain: &Plain<'_, Packet<'_>>) -> Option<Decided> {
    let packet = Packet(ctx);
    let Some(config) = maps::config() else {
        return Some(Decided::As(Verdict::PassUnconfigured));
    };
    let active = config.active_set;
    if maps::port_class(active.set(), TCP, plain.ports) == PortClass::NO_RULE {
        return Some(unruled(active, TCP));
    }
    if active.drops_sources() {
        return None;
    }
    if !maps::is_for_us(&packet) {
        return Some(Decided::As(Verdict::PassOtherHost));
    }
    let Some(heartbeat) = maps::heartbeat() else {
        return Some(Decided::As(Verdict::PassUnconfigured));
    };
    // Read anew, for it is the same in every set of rules: kept for the few who ask, it would cost all 1 ns.
    let zone = || maps::zone(&packet, 0, config.active_set);
    if plain.flags.opens() || !maps::has_accepted_plain(plain, heartbeat.generation, zone) {
        return Some(Decided::Unaccepted);
    }
    Some(Decided::As(divert(ctx, config, 0, Verdict::DivertEstablished)))
}

/// A packet to a port without rules.
#[inline(always)]
fn unruled(active: ActiveSet, protocol: u8) -> Decided {
    if active.hands_on() && protocol == TCP {
        Decided::Answer
    } else {
        Decided::As(Verdict::PassNoRule)
    }
}

/// The same of every packet, whatever it is.
#[inline(always)]
fn intricate(ctx: &XdpContext) -> Decided {
    let ruled = match Ruled::of(ctx) {
        Ok(ruled) => ruled,
        Err(Decided::As(Verdict::PassFragment)) => {
            return Decided::As(apart::fragment(ctx));
        }
        Err(Decided::As(Verdict::PassProtocol)) => {
            return Decided::As(apart::report(ctx));
        }
        Err(decided) => return decided,
    };
    if ruled.active.drops_sources() && apart::is_dropped(ctx) {
        return Decided::As(Verdict::DropSource);
    }
    let generation = ruled.heartbeat.generation;
    let has_accepted =
        || maps::has_accepted(&Packet(ctx), &ruled.headers, generation, || ruled.zone());
    if ruled.continues() && has_accepted() {
        return Decided::As(ruled.divert(Verdict::DivertEstablished));
    }
    Decided::Unaccepted
}

/// What becomes of a packet of no accepted connection.
///
/// Called, and from the beginning: what it wants to know is not kept on the stack while the flow of
/// every other packet is looked up. That saves those 1 ns of 66, and costs these 10 of 100 or more.
#[inline(always)]
pub fn unaccepted(ctx: &XdpContext) -> Verdict {
    let ruled = match Ruled::of(ctx) {
        Ok(ruled) => ruled,
        Err(Decided::As(verdict)) => return verdict,
        // The rules have changed this instant.
        Err(_) => return Verdict::PassNoRule,
    };
    let Some(flow) = ruled.headers.flow(&Packet(ctx)) else { return Verdict::PassTruncated };
    let (continues, is_tcp) = (ruled.continues(), ruled.headers.protocol == TCP);
    let zone = ruled.zone();
    let steering = Steering { ruled, flow: &flow, zone };
    if continues {
        steering.follow()
    } else if is_tcp {
        steering.open()
    } else {
        steering.datagram()
    }
}

/// Whether a packet to a port that has rules, or had them, is dropped for its source: by a rule that names
/// both ends; or because nothing of this source is wanted, and it belongs to a connection that the relay has,
/// or a rule is for its destination. Everything else takes the ordinary path, where the host's firewall sees
/// it.
///
/// Called, and only where there are such rules.
#[inline(always)]
pub fn is_dropped(ctx: &XdpContext) -> bool {
    let Ok(ruled) = Ruled::of(ctx) else { return false };
    let Some(flow) = ruled.headers.flow(&Packet(ctx)) else { return false };
    let all = maps::drops(ctx, ruled.active.set(), &flow.client, ruled.headers.tags);
    if !all && !ruled.class.blocks() {
        return false;
    }
    let ruling = ruled.ruling(&flow);
    let has = || maps::has(&flow, ruled.heartbeat.generation, ruled.zone());
    ruling.blocks() || all && (ruling.action().is_some() || ruled.headers.protocol == TCP && has())
}

/// Aims a packet at the relay. It is changed only when the link is there: what goes up to the host
/// after all must be as it came.
#[inline(always)]
pub fn divert(ctx: &XdpContext, config: &GatewayConfig, tags: usize, verdict: Verdict) -> Verdict {
    if maps::aim_at_relay().is_none() {
        return Verdict::PassNoLink;
    }
    if Packet(ctx).readdress(tags, &config.relay_mac).is_none() {
        return Verdict::PassTruncated;
    }
    verdict
}

/// What becomes of a TCP segment to a port without rules, where the relay hands connections on: it
/// may be a server's answer to one of those, to the port of a client.
#[inline(always)]
pub fn answer(ctx: &XdpContext) -> Verdict {
    let packet = Packet(ctx);
    let headers = match parse(&packet) {
        Ok(headers) => headers,
        Err(reason) => return reason.into(),
    };
    let (Some(config), Some(heartbeat)) = (maps::config(), maps::heartbeat()) else {
        return Verdict::PassUnconfigured;
    };
    let active = config.active_set;
    if headers.flags.opens() || !maps::is_from_server(active.set(), &headers) {
        return Verdict::PassNoRule;
    }
    if !maps::is_for_us(&packet) {
        return Verdict::PassNoRule;
    }
    let (generation, zone) = (heartbeat.generation, maps::zone(&packet, headers.tags, active));
    let verdict = if maps::has_accepted(&packet, &headers, generation, || zone) {
        Verdict::DivertEstablished
    } else {
        let Some(flow) = headers.flow(&packet) else { return Verdict::PassTruncated };
        match settled_owner(&flow, generation, zone) {
            Owner::Nobody => match maps::pending_owner(&flow, generation, zone) {
                Owner::Nobody => return Verdict::PassNoRule,
                Owner::Relay => Verdict::DivertPending,
                Owner::OtherZone => return Verdict::PassOtherZone,
            },
            Owner::Relay => Verdict::DivertEstablished,
            Owner::OtherZone => return Verdict::PassOtherZone,
        }
    };
    Ruled { ctx, headers, config, active, class: PortClass::FLOWS_ONLY, heartbeat }.divert(verdict)
}

/// Whose an accepted flow is that [`maps::has_accepted`] has not found, which finds only what is known to
/// be in a packet's zone. A segment shows the zone of a flow, where that is not known yet.
#[inline(always)]
fn settled_owner(flow: &FlowKey, generation: u64, zone: Zone) -> Owner {
    if zone == Zone::ANY {
        return Owner::Nobody;
    }
    let owner = maps::accepted_owner(flow, generation, zone);
    if owner == Owner::Relay {
        maps::settle(flow, zone);
    }
    owner
}

/// Whether the relay has a connection between these ends in another zone: one that it has not closed, or
/// of which its stack has anything left. The stack could not tell the two apart. So a SYN from this zone is
/// the server's, and disturbs nothing.
///
/// Called, and only where there are zones: within [`Steering::open`], it would make the verifier's work a
/// quarter more.
#[inline(never)]
fn is_anothers(ctx: &XdpContext, flow: &FlowKey, generation: u64, zone: Zone, nsid: u32) -> bool {
    maps::accepted_owner(flow, generation, zone) == Owner::OtherZone
        || maps::pending_owner(flow, generation, zone) == Owner::OtherZone
            && kernel::occupied(ctx, flow, nsid)
}

/// A packet to a port that has rules, or had them.
struct Ruled<'a> {
    ctx: &'a XdpContext,
    headers: Headers,
    config: &'a GatewayConfig,
    /// Read once: all questions of a packet are to the same set of rules.
    active: ActiveSet,
    class: PortClass,
    heartbeat: &'a Heartbeat,
}

impl<'a> Ruled<'a> {
    /// What the headers say and the maps know, or what becomes of the packet without more ado.
    #[inline(always)]
    fn of(ctx: &'a XdpContext) -> Result<Self, Decided> {
        let headers = parse(&Packet(ctx)).map_err(|reason| Decided::As(reason.into()))?;
        let config = maps::config().ok_or(Decided::As(Verdict::PassUnconfigured))?;
        let active = config.active_set;
        let class = maps::port_class(active.set(), headers.protocol, headers.ports);
        if class == PortClass::NO_RULE {
            return Err(unruled(active, headers.protocol));
        }
        if !maps::is_for_us(&Packet(ctx)) {
            return Err(Decided::As(Verdict::PassOtherHost));
        }
        let heartbeat = maps::heartbeat().ok_or(Decided::As(Verdict::PassUnconfigured))?;
        Ok(Self { ctx, headers, config, active, class, heartbeat })
    }

    /// Whether it is a TCP segment that opens nothing.
    #[inline(always)]
    fn continues(&self) -> bool {
        self.headers.protocol == TCP && !self.headers.flags.opens()
    }

    /// Where it comes from.
    #[inline(always)]
    fn zone(&self) -> Zone {
        maps::zone(&Packet(self.ctx), self.headers.tags, self.active)
    }

    /// What the rules say of a packet of this flow.
    #[inline(always)]
    fn ruling(&self, flow: &FlowKey) -> Ruling {
        maps::ruling(self.ctx, self.active.set(), self.class, flow, self.headers.tags)
    }

    /// [`divert`], of this packet.
    #[inline(always)]
    fn divert(&self, verdict: Verdict) -> Verdict {
        divert(self.ctx, self.config, self.headers.tags, verdict)
    }
}

/// Such a packet, and its flow.
struct Steering<'a> {
    ruled: Ruled<'a>,
    /// Apart, for its address goes to the kernel: within, it would take all of this onto the stack.
    flow: &'a FlowKey,
    /// Where it comes from.
    zone: Zone,
}

impl Steering<'_> {
    /// A SYN. The server will have a connection whose SYN is passed: what an earlier one between
    /// the same ends has left must not divert its later packets. But a SYN ends no connection that
    /// the relay has, for anybody can send one: it goes to the relay's stack, which asks the client
    /// (RFC 9293 section 3.10.7.4).
    #[inline(always)]
    fn open(&self) -> Verdict {
        let Ruled { ctx, config, heartbeat, .. } = &self.ruled;
        let (generation, nsid) = (heartbeat.generation, config.relay_nsid);
        if self.zone != Zone::ANY && is_anothers(ctx, self.flow, generation, self.zone, nsid) {
            return match self.action() {
                Some(Action::Drop) => Verdict::DropRule,
                _ => Verdict::PassOtherZone,
            };
        }
        let verdict = self.offer();
        if matches!(verdict, Verdict::DivertNew | Verdict::DivertRule | Verdict::DropRule) {
            return verdict;
        }
        match self.kept() {
            Some(kept) => self.ruled.divert(kept),
            None => {
                maps::leave_to_server(self.flow);
                verdict
            }
        }
    }

    /// The verdict of a segment of a connection that the relay has: its flow is known, its process
    /// lives, and its stack has a socket for it.
    #[inline(always)]
    fn kept(&self) -> Option<Verdict> {
        let Ruled { ctx, config, heartbeat, .. } = &self.ruled;
        let (generation, zone) = (heartbeat.generation, self.zone);
        let known = if maps::accepted_owner(self.flow, generation, zone) == Owner::Relay {
            Verdict::DivertEstablished
        } else if maps::pending_owner(self.flow, generation, zone) == Owner::Relay {
            Verdict::DivertPending
        } else {
            return None;
        };
        let nsid = config.relay_nsid;
        (kernel::lives(ctx, nsid) && kernel::holds(ctx, self.flow, nsid)).then_some(known)
    }

    /// Is there a relay, does it want the connection, is there room for it?
    #[inline(always)]
    fn offer(&self) -> Verdict {
        let now_ns = kernel::monotonic_ns();
        if let Some(verdict) = self.turned_away(now_ns).or_else(|| self.refused()) {
            return verdict;
        }
        let nsid = self.ruled.config.relay_nsid;
        if !kernel::listens(self.ruled.ctx, self.flow, nsid) || !kernel::lives(self.ruled.ctx, nsid)
        {
            return Verdict::PassNoListener;
        }
        if self.comes_astray() {
            return Verdict::PassReversePath;
        }
        if self.ruled.active.flags().by_rule() {
            return self.ruled.divert(Verdict::DivertRule);
        }
        let generation = self.ruled.heartbeat.generation;
        match maps::offer(self.flow, generation, self.zone, now_ns, self.ifindex()) {
            Offer::Made => self.ruled.divert(Verdict::DivertNew),
            Offer::InVain => Verdict::PassUnanswered,
            Offer::NoRoom => Verdict::PassTableFull,
        }
    }

    /// Why a relay that lives does not get this connection.
    #[inline(always)]
    fn refused(&self) -> Option<Verdict> {
        let intake = self.ruled.heartbeat.intake;
        if intake.is_open() {
            None
        } else if intake.has(Intake::FULL) {
            Some(Verdict::PassRelayFull)
        } else if intake.has(Intake::CUT) || maps::is_closed(self.flow, self.ifindex()) {
            Some(Verdict::PassUnanswered)
        } else {
            None
        }
    }

    /// Whether an answer would not go back where the packet came from, as far as that is asked here.
    #[inline(always)]
    fn comes_astray(&self) -> bool {
        let headers = &self.ruled.headers;
        reverse_path::fails(
            self.ruled.ctx,
            self.flow,
            headers.protocol,
            headers.traffic_class,
            headers.tags > 0,
        )
    }

    /// The device on which it came in.
    #[inline(always)]
    fn ifindex(&self) -> u32 {
        self.ruled.ctx.ingress_ifindex() as u32
    }

    /// A later segment of a connection that the relay has not accepted, or no longer has.
    #[inline(always)]
    fn follow(&self) -> Verdict {
        // A flow that the relay has accepted is in its zone where a rule alone decides too.
        match settled_owner(self.flow, self.ruled.heartbeat.generation, self.zone) {
            Owner::Nobody => {}
            Owner::Relay => return self.ruled.divert(Verdict::DivertEstablished),
            Owner::OtherZone => return Verdict::PassOtherZone,
        }
        let mut kept_away = None;
        if self.ruled.active.flags().by_rule() && self.action() == Some(Action::Divert) {
            kept_away = self.kept_away(kernel::monotonic_ns());
            // Where its SYN went, for which the same was asked.
            if kept_away.is_none() && self.comes_astray() {
                kept_away = Some(Verdict::PassReversePath);
            }
            if kept_away.is_none() {
                return self.ruled.divert(Verdict::DivertRule);
            }
        }
        let generation = self.ruled.heartbeat.generation;
        let servers = match maps::pending(self.flow, generation, self.zone, self.ifindex()) {
            Pending::Relay => return self.ruled.divert(Verdict::DivertPending),
            Pending::OtherZone => return kept_away.unwrap_or(Verdict::PassOtherZone),
            Pending::Server => true,
            Pending::Unknown => false,
        };
        kept_away.unwrap_or_else(|| self.stray(servers))
    }

    /// A segment that belongs to no flow we know of, or to one that the server has.
    #[inline(always)]
    fn stray(&self, servers: bool) -> Verdict {
        // Its flow was lost, if it was ours; then it acknowledges. Everything else is asked for its
        // rule only if it may be dropped by it.
        let acknowledges = !servers && self.ruled.headers.flags.acknowledges();
        if !acknowledges && !self.ruled.class.has_drop() {
            return Verdict::PassNoFlow;
        }
        match self.action() {
            Some(Action::Drop) => return Verdict::DropRule,
            Some(Action::Divert) if acknowledges => {}
            _ => return Verdict::PassNoFlow,
        }
        let verdict = match kernel::knows(
            self.ruled.ctx,
            &self.ruled.headers,
            self.flow,
            self.ruled.config.relay_nsid,
        ) {
            Known::Nothing => return Verdict::PassNoFlow,
            Known::Socket => Verdict::DivertSocket,
            Known::Cookie => Verdict::DivertCookie,
        };
        maps::answered(self.flow, self.ifindex());
        let generation = self.ruled.heartbeat.generation;
        // If there is no room, the next segment is looked for in the same way.
        let state = PendingState { generation, offered_ns: 0, zone: self.zone };
        let _ = maps::begin(self.flow, state);
        self.ruled.divert(verdict)
    }

    /// A UDP datagram: each is decided by itself.
    #[inline(always)]
    fn datagram(&self) -> Verdict {
        if let Some(verdict) = self.turned_away(kernel::monotonic_ns()) {
            return verdict;
        }
        if !kernel::receives(self.ruled.ctx, self.flow, self.ruled.config.relay_nsid) {
            return Verdict::PassNoListener;
        }
        if self.comes_astray() {
            return Verdict::PassReversePath;
        }
        self.ruled.divert(Verdict::DivertDatagram)
    }

    /// What the rules say.
    #[inline(always)]
    fn action(&self) -> Option<Action> {
        self.ruled.ruling(self.flow).action()
    }

    /// What becomes of a packet that is not for the relay: by its rule, or although one diverts it.
    #[inline(always)]
    fn turned_away(&self, now_ns: u64) -> Option<Verdict> {
        match self.action() {
            None => Some(Verdict::PassNoRule),
            Some(Action::Pass) => Some(Verdict::PassRule),
            Some(Action::Drop) => Some(Verdict::DropRule),
            Some(Action::Divert) => self.kept_away(now_ns),
        }
    }

    /// Why a packet that a rule diverts is passed all the same, if it is: its source, or that the
    /// relay has not beaten for too long.
    #[inline(always)]
    fn kept_away(&self, now_ns: u64) -> Option<Verdict> {
        let Ruled { ctx, active, headers, .. } = &self.ruled;
        if active.flags().has_exclusions()
            && maps::excludes(ctx, active.set(), self.flow, headers.tags)
        {
            return Some(Verdict::PassExcluded);
        }
        let stamp_ns = self.ruled.heartbeat.stamp_ns;
        let age_ns = now_ns.saturating_sub(stamp_ns);
        if stamp_ns == 0 || age_ns >= self.ruled.config.heartbeat_timeout_ns {
            return Some(Verdict::PassNoHeartbeat);
        }
        None
    }
}
