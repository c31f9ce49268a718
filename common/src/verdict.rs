//! Verdicts: what became of a packet and why. One per-CPU counter each.

use crate::packet::Unsupported;

macro_rules! verdicts {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// What became of a packet, and why. The number is the index of its counter.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Verdict { $($(#[doc = $doc])+ $variant,)+ }

        impl Verdict {
            /// Every verdict, in the order of the counters.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// How operators see it: `action/reason`.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// In a sentence.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc,)+).trim_ascii(),)+ }
            }
        }
    };
}

verdicts! {
    /// Ingress: shorter than its headers.
    PassTruncated = "pass/truncated",
    /// Ingress: neither IPv4 nor IPv6.
    PassEtherType = "pass/ethertype",
    /// Ingress: more VLAN tags than two.
    PassTooManyTags = "pass/too_many_tags",
    /// Ingress: an impossible IPv4 header.
    PassMalformedIpv4 = "pass/malformed_ipv4",
    /// Ingress: IPv4 options.
    PassIpv4Options = "pass/ipv4_options",
    /// Ingress: an impossible IPv6 header.
    PassMalformedIpv6 = "pass/malformed_ipv6",
    /// Ingress: an IPv6 extension header.
    PassIpv6Extension = "pass/ipv6_extension",
    /// Ingress: a fragment.
    PassFragment = "pass/fragment",
    /// Ingress: neither TCP nor UDP.
    PassProtocol = "pass/protocol",
    /// Ingress: an impossible TCP header.
    PassMalformedTcp = "pass/malformed_tcp",
    /// Ingress: an impossible UDP header.
    PassMalformedUdp = "pass/malformed_udp",
    /// Ingress: no steering rule is for it.
    PassNoRule = "pass/no_rule",
    /// Ingress: for another host's hardware address, or for a group's.
    PassOtherHost = "pass/other_host",
    /// Ingress: a rule says so.
    PassRule = "pass/rule",
    /// Ingress: would be diverted, but its source is excluded.
    PassExcluded = "pass/excluded",
    /// Ingress: the loader has not configured the programs, or is of another ABI version.
    PassUnconfigured = "pass/unconfigured",
    /// Ingress: would be diverted, but the relay's heartbeat is too old.
    PassNoHeartbeat = "pass/no_heartbeat",
    /// Ingress: a SYN or datagram to a port on which no socket in the relay namespace waits.
    PassNoListener = "pass/no_listener",
    /// Ingress: a SYN for which the table of pending flows had no room.
    PassTableFull = "pass/table_full",
    /// Ingress: would be diverted, but the link to the relay namespace is gone.
    PassNoLink = "pass/no_link",
    /// Ingress: neither a SYN nor of a flow that the relay has: it began before the gateway was
    /// loaded, or while the relay was down.
    PassNoFlow = "pass/no_flow",
    /// Ingress: a rule says so.
    DropRule = "drop/rule",
    /// Ingress: a SYN, to the relay.
    DivertNew = "divert/new",
    /// Ingress: of a flow that is not accepted yet, or just closed, to the relay.
    DivertPending = "divert/pending",
    /// Ingress: of an accepted flow, to the relay.
    DivertEstablished = "divert/established",
    /// Ingress: of a flow that the table of pending flows has lost in a flood of SYNs, but for
    /// which the relay's stack has a socket.
    DivertSocket = "divert/socket",
    /// Ingress: as before, but the relay's stack has kept nothing either: the packet carries the
    /// SYN cookie that it was sent.
    DivertCookie = "divert/cookie",
    /// Ingress: by rule alone, in mode `all`.
    DivertRule = "divert/rule",
    /// Ingress: a fragment of a segment of a flow that the relay has, to the relay.
    DivertFragment = "divert/fragment",
    /// Ingress: an ICMP error about a segment of the relay's, to the relay.
    DivertReport = "divert/icmp_error",
    /// Ingress: a UDP datagram, to the relay.
    DivertDatagram = "divert/datagram",
    /// Egress: from the relay to the device that leads to the client.
    ReturnForwarded = "return/forwarded",
    /// Egress: the client's next hop is not known yet; the host's stack finds it. As for every
    /// packet that is left to the stack, it goes the slow way or nowhere, as the stack decides.
    ReturnNoNeighbour = "return/no_neighbour",
    /// Egress: the host has no route to the client but to itself; left to the host's stack.
    ReturnNoRoute = "return/no_route",
    /// Egress: the host's route to the client is a `blackhole`; left to the host's stack.
    ReturnBlackhole = "return/blackhole",
    /// Egress: the host's route to the client is `unreachable`; left to the host's stack.
    ReturnUnreachable = "return/unreachable",
    /// Egress: the host's route to the client is `prohibit`; left to the host's stack.
    ReturnProhibited = "return/prohibited",
    /// Egress: the host does not forward what comes in from the relay; left to the host's stack.
    ReturnForwardingOff = "return/forwarding_off",
    /// Egress: longer than the route to the client carries, and not to be fragmented; the relay's
    /// stack is told so by ICMP.
    ReturnTooLong = "return/fragmentation_needed",
    /// Egress: longer than the route to the client carries; the host's stack fragments it.
    ReturnFragmented = "return/fragmented",
    /// Egress: the device that leads to the client is not one of the instance's, or cannot send
    /// redirected frames; left to the host's stack.
    ReturnNoRedirect = "return/no_redirect",
    /// Egress: not a packet that the parser knows, or a route of another kind; left to the host's
    /// stack.
    ReturnStack = "return/stack",
    /// Egress: a reset for a connection that the relay never accepted, dropped, so that the client
    /// tries again and reaches its server in the ordinary way.
    ReturnResetHeld = "return/reset_held",
}

impl From<Unsupported> for Verdict {
    #[inline(always)]
    fn from(reason: Unsupported) -> Self {
        match reason {
            Unsupported::Truncated => Self::PassTruncated,
            Unsupported::EtherType => Self::PassEtherType,
            Unsupported::TooManyTags => Self::PassTooManyTags,
            Unsupported::MalformedIpv4 => Self::PassMalformedIpv4,
            Unsupported::Ipv4Options => Self::PassIpv4Options,
            Unsupported::MalformedIpv6 => Self::PassMalformedIpv6,
            Unsupported::Ipv6Extension => Self::PassIpv6Extension,
            Unsupported::Fragment => Self::PassFragment,
            Unsupported::Protocol => Self::PassProtocol,
            Unsupported::MalformedTcp => Self::PassMalformedTcp,
            Unsupported::MalformedUdp => Self::PassMalformedUdp,
        }
    }
}
