//! From the clients: divert, pass or drop.

use aya_ebpf::programs::XdpContext;
use millrace_common::abi::{GatewayConfig, Heartbeat};
use millrace_common::flow::FlowKey;
use millrace_common::packet::{Headers, UDP, parse};
use millrace_common::rule::{Action, ActiveSet, PortClass};
use millrace_common::verdict::Verdict;

use crate::kernel::{self, Known};
use crate::maps;
use crate::packet::Packet;

/// What becomes of a packet that came in on a client-facing device.
#[inline(always)]
pub fn verdict(ctx: &XdpContext) -> Verdict {
    let packet = Packet(ctx);
    let headers = match parse(&packet) {
        Ok(headers) => headers,
        Err(reason) => return reason.into(),
    };
    let active = maps::active_set();
    let class = maps::port_class(active.set(), &headers);
    if class == PortClass::NO_RULE {
        return Verdict::PassNoRule;
    }
    let Some(config) = maps::config() else { return Verdict::PassUnconfigured };
    let Some(flow) = headers.flow(&packet) else { return Verdict::PassTruncated };
    let heartbeat = maps::heartbeat();
    let steering = Steering { ctx, headers, flow: &flow, active, class, config, heartbeat };
    if headers.protocol == UDP {
        steering.datagram()
    } else if headers.flags.opens() {
        steering.open()
    } else {
        steering.follow()
    }
}

/// A packet to a port that has rules, or had them, and all that decides about it.
struct Steering<'a> {
    ctx: &'a XdpContext,
    headers: Headers,
    /// Apart, for its address goes to the kernel: within, it would take all of this onto the stack.
    flow: &'a FlowKey,
    active: ActiveSet,
    class: PortClass,
    config: &'a GatewayConfig,
    heartbeat: Heartbeat,
}

impl Steering<'_> {
    /// A SYN. The server will have a connection whose SYN is passed: what an earlier one between
    /// the same ends has left must not divert its later packets.
    #[inline(always)]
    fn open(&self) -> Verdict {
        let verdict = self.offer();
        if !matches!(verdict, Verdict::DivertNew | Verdict::DivertRule | Verdict::DropRule) {
            maps::forget(self.flow);
        }
        verdict
    }

    /// Is there a relay, does it want the connection, is there room for it?
    #[inline(always)]
    fn offer(&self) -> Verdict {
        if let Some(verdict) = self.turned_away() {
            return verdict;
        }
        let nsid = self.config.relay_nsid;
        if !kernel::listens(self.ctx, self.flow, nsid) || !kernel::lives(self.ctx, nsid) {
            return Verdict::PassNoListener;
        }
        if self.active.flags().by_rule() {
            return self.divert(Verdict::DivertRule);
        }
        if maps::begin(self.flow, self.heartbeat.generation).is_none() {
            return Verdict::PassTableFull;
        }
        self.divert(Verdict::DivertNew)
    }

    /// A later segment of a connection: whose is it?
    #[inline(always)]
    fn follow(&self) -> Verdict {
        let by_rule = self.active.flags().by_rule();
        let mut kept_away = None;
        if by_rule && self.action() == Some(Action::Divert) {
            kept_away = self.kept_away();
            if kept_away.is_none() {
                return self.divert(Verdict::DivertRule);
            }
        }
        match maps::find(self.flow, self.heartbeat.generation) {
            Some(verdict) => self.divert(verdict),
            None => kept_away.unwrap_or_else(|| self.stray()),
        }
    }

    /// A segment that belongs to no flow we know of.
    #[inline(always)]
    fn stray(&self) -> Verdict {
        // Its flow was lost, if it was ours; then it acknowledges. Everything else is asked for its
        // rule only if it may be dropped by it.
        let acknowledges = self.headers.flags.acknowledges();
        if !acknowledges && !self.class.has_drop() {
            return Verdict::PassNoFlow;
        }
        match self.action() {
            Some(Action::Drop) => return Verdict::DropRule,
            Some(Action::Divert) if acknowledges => {}
            _ => return Verdict::PassNoFlow,
        }
        let verdict =
            match kernel::knows(self.ctx, &self.headers, self.flow, self.config.relay_nsid) {
                Known::Nothing => return Verdict::PassNoFlow,
                Known::Socket => Verdict::DivertSocket,
                Known::Cookie => Verdict::DivertCookie,
            };
        // If there is no room, the next segment is looked for in the same way.
        let _ = maps::begin(self.flow, self.heartbeat.generation);
        self.divert(verdict)
    }

    /// A UDP datagram: each is decided by itself.
    #[inline(always)]
    fn datagram(&self) -> Verdict {
        if let Some(verdict) = self.turned_away() {
            return verdict;
        }
        if !kernel::receives(self.ctx, self.flow, self.config.relay_nsid) {
            return Verdict::PassNoListener;
        }
        self.divert(Verdict::DivertDatagram)
    }

    /// What the rules say.
    #[inline(always)]
    fn action(&self) -> Option<Action> {
        maps::action(self.active.set(), self.class, self.flow)
    }

    /// What becomes of a packet that is not for the relay: by its rule, or although one diverts it.
    #[inline(always)]
    fn turned_away(&self) -> Option<Verdict> {
        match self.action() {
            None => Some(Verdict::PassNoRule),
            Some(Action::Pass) => Some(Verdict::PassRule),
            Some(Action::Drop) => Some(Verdict::DropRule),
            Some(Action::Divert) => self.kept_away(),
        }
    }

    /// Why a packet that a rule diverts is passed all the same, if it is: its source, or that the
    /// relay has not beaten for too long.
    #[inline(always)]
    fn kept_away(&self) -> Option<Verdict> {
        if self.active.flags().has_exclusions() && maps::excludes(self.active.set(), self.flow) {
            return Some(Verdict::PassExcluded);
        }
        let stamp_ns = self.heartbeat.stamp_ns;
        let age_ns = kernel::monotonic_ns().saturating_sub(stamp_ns);
        if stamp_ns == 0 || age_ns >= self.config.heartbeat_timeout_ns {
            return Some(Verdict::PassNoHeartbeat);
        }
        None
    }

    /// Aims the packet at the relay. It is changed only when the link is there: what goes up to the
    /// host after all must be as it came.
    #[inline(always)]
    fn divert(&self, verdict: Verdict) -> Verdict {
        if maps::aim_at_relay().is_none() {
            return Verdict::PassNoLink;
        }
        if Packet(self.ctx).readdress(self.headers.tags, self.config.relay_mac).is_none() {
            return Verdict::PassTruncated;
        }
        verdict
    }
}
