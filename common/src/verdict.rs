//! Verdicts: what became of a packet, and why. Each has a counter per CPU.

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

            /// From its number.
            #[inline(always)]
            pub const fn of_number(number: u32) -> Option<Self> {
                match number {
                    $(_ if number == Self::$variant as u32 => Some(Self::$variant),)+
                    _ => None,
                }
            }

            /// Its name for operators: `action/reason`.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// Its meaning, in a sentence.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc,)+).trim_ascii(),)+ }
            }
        }
    };
}

verdicts! {
    /// Ingress: the packet is shorter than its headers.
    PassTruncated = "pass/truncated",
    /// Ingress: neither IPv4 nor IPv6.
    PassEtherType = "pass/ethertype",
    /// Ingress: more than two VLAN tags.
    PassTooManyTags = "pass/too_many_tags",
    /// Ingress: the IPv4 header has a version or length that RFC 791 forbids.
    PassMalformedIpv4 = "pass/malformed_ipv4",
    /// Ingress: the packet has IPv4 options.
    PassIpv4Options = "pass/ipv4_options",
    /// Ingress: the IPv6 header has another version, or an IPv4-mapped address.
    PassMalformedIpv6 = "pass/malformed_ipv6",
    /// Ingress: the packet has an IPv6 extension header.
    PassIpv6Extension = "pass/ipv6_extension",
    /// Ingress: the packet is a fragment.
    PassFragment = "pass/fragment",
    /// Ingress: neither TCP nor UDP.
    PassProtocol = "pass/protocol",
    /// Ingress: the TCP header has a length that RFC 9293 forbids, or does not fit the packet.
    PassMalformedTcp = "pass/malformed_tcp",
    /// Ingress: the UDP length is below 8, or does not fit the packet.
    PassMalformedUdp = "pass/malformed_udp",
    /// Ingress: no steering rule matches.
    PassNoRule = "pass/no_rule",
    /// Ingress: the frame is for another host's hardware address, or for a group's.
    PassOtherHost = "pass/other_host",
    /// Ingress: the relay has a connection between the same ends, whose packets come from another zone
    /// (`gateway.zones`): another device or VLAN.
    PassOtherZone = "pass/other_zone",
    /// Ingress: a `pass` rule decides.
    PassRule = "pass/rule",
    /// Ingress: the packet would be diverted, but its source is excluded.
    PassExcluded = "pass/excluded",
    /// Ingress: the programs are not configured, or by a loader of another ABI version.
    PassUnconfigured = "pass/unconfigured",
    /// Ingress: the packet would be diverted, but the relay's heartbeat is too old.
    PassNoHeartbeat = "pass/no_heartbeat",
    /// Ingress: a SYN or datagram to a port that no socket in the relay namespace listens on.
    PassNoListener = "pass/no_listener",
    /// Ingress: a SYN that would be diverted, but the relay has as many connections as it may have, or
    /// cannot accept more.
    PassRelayFull = "pass/relay_full",
    /// Ingress: a SYN that would be diverted, but such SYNs are not answered: this one was sent again
    /// and again, or nothing arrives at the relay, or no client of this device and family has got an
    /// answer.
    PassUnanswered = "pass/unanswered",
    /// Ingress: a SYN, but the table of pending flows had no room for its flow.
    PassTableFull = "pass/table_full",
    /// Ingress: the packet would be diverted, but the link to the relay namespace is gone.
    PassNoLink = "pass/no_link",
    /// Ingress: a segment of a connection that the relay does not have: the connection began before
    /// the gateway was loaded, or while the relay was down.
    PassNoFlow = "pass/no_flow",
    /// Ingress: a SYN or datagram that would be diverted, or in mode `all` a segment of no accepted
    /// connection, but the host has no route to its source, or, where that is asked too, one that leads
    /// out of another device than the one by which it came in.
    PassReversePath = "pass/reverse_path",
    /// Ingress: a `drop` rule decides.
    DropRule = "drop/rule",
    /// Ingress: a `drop` rule names the packet's source.
    DropSource = "drop/source",
    /// Ingress: to the relay, a SYN.
    DivertNew = "divert/new",
    /// Ingress: to the relay, a segment of a connection that is not accepted yet, or was just closed.
    DivertPending = "divert/pending",
    /// Ingress: to the relay, a segment of a connection that the relay has accepted.
    DivertEstablished = "divert/established",
    /// Ingress: to the relay, a segment of a connection that a SYN flood has pushed out of the table of
    /// pending flows, and for which the relay's stack has a socket.
    DivertSocket = "divert/socket",
    /// Ingress: to the relay, a segment of a connection that a SYN flood has pushed out of the table. The
    /// relay's stack keeps no state for it: the segment carries the SYN cookie that the stack sent.
    DivertCookie = "divert/cookie",
    /// Ingress: to the relay, because a rule alone decides in mode `all`.
    DivertRule = "divert/rule",
    /// Ingress: to the relay, a fragment of a segment of a connection that the relay has.
    DivertFragment = "divert/fragment",
    /// Ingress: to the relay, an ICMP error about a segment that the relay has sent.
    DivertReport = "divert/icmp_error",
    /// Ingress: to the relay, a UDP datagram.
    DivertDatagram = "divert/datagram",
    /// Egress: redirected to the device towards the client.
    ReturnForwarded = "return/forwarded",
    /// Egress: the hardware address of the next hop is unknown. The host's stack resolves it; like every
    /// packet that is left to the stack, this one takes the slow path, or the stack discards it.
    ReturnNoNeighbour = "return/no_neighbour",
    /// Egress: the host has no route to the client, or only to itself; left to the host's stack.
    ReturnNoRoute = "return/no_route",
    /// Egress: the host's route to the client is a `blackhole`; left to the host's stack.
    ReturnBlackhole = "return/blackhole",
    /// Egress: the host's route to the client is `unreachable`; left to the host's stack.
    ReturnUnreachable = "return/unreachable",
    /// Egress: the host's route to the client is `prohibit`; left to the host's stack.
    ReturnProhibited = "return/prohibited",
    /// Egress: forwarding is off at the gateway's end of the link; left to the host's stack.
    ReturnForwardingOff = "return/forwarding_off",
    /// Egress: the packet is longer than the MTU of the route and must not be fragmented; it goes back to
    /// the relay as the ICMP error that says so.
    ReturnTooLong = "return/fragmentation_needed",
    /// Egress: the packet is longer than the MTU of the route; the host's stack fragments it.
    ReturnFragmented = "return/fragmented",
    /// Egress: the device towards the client is not one of the instance's, or cannot send redirected
    /// frames; left to the host's stack.
    ReturnNoRedirect = "return/no_redirect",
    /// Egress: the parser does not know the packet, or only the stack knows the route; left to the host's
    /// stack.
    ReturnStack = "return/stack",
    /// Egress: a reset for a connection that the relay never accepted; dropped, so that the client
    /// retries and reaches its server over the ordinary path.
    ReturnResetHeld = "return/reset_held",
    /// Egress: the relay's answer to a SYN, dropped, because the client has sent the SYN again meanwhile
    /// and its server has it.
    ReturnAnswerHeld = "return/answer_held",
}

impl Verdict {
    /// Whether the packet was aimed at the relay's device.
    pub fn is_diversion(self) -> bool {
        self.name().starts_with("divert/")
    }

    /// Whether the packet is the relay's, and went up to the host's stack.
    pub fn leaves_answer_to_stack(self) -> bool {
        let others = [Self::ReturnForwarded, Self::ReturnResetHeld, Self::ReturnAnswerHeld];
        self.name().starts_with("return/") && !others.contains(&self)
    }
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
