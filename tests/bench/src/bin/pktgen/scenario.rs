//! What is sent, and what the gateway knows when it comes.

use std::net::{IpAddr, Ipv4Addr};

use clap::ValueEnum;
use millrace_bench::packet_cost::{OTHER_PORT, Sources, segment};
use millrace_common::bench::Variation;
use millrace_common::verdict::Verdict;
use millrace_harness::gateway::test_run::{CLIENT_PORT, Family, GATEWAY_MAC, PORT};
use millrace_harness::net::frames::Frame;
use millrace_harness::net::frames::flag::SYN;
use millrace_harness::net::pktgen::Traffic;

use crate::engine::Engine;

/// Rules of the scenarios that are not about rules.
const FEW_RULES: usize = 8;
/// Ordinary packets of [`Scenario::Mixture`], of five.
const ORDINARY: u32 = 4;

/// A kind of traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scenario {
    /// A program that only drops: the floor
    Drop,
    /// A program that only passes: the stack forwards; the floor of what is passed
    Pass,
    /// To a port without a rule
    NoRule,
    /// Of one established flow
    #[value(name = "flows-1")]
    OneFlow,
    /// Of 1,000 established flows
    #[value(name = "flows-1000")]
    ThousandFlows,
    /// Of 1,000,000 established flows
    #[value(name = "flows-1000000")]
    MillionFlows,
    /// Of 1,000 established flows, with 10,000 rules
    #[value(name = "rules-10000")]
    ManyRules,
    /// SYNs from a million sources, with 10,000 rules
    SynFlood,
    /// 80 % without a rule, 20 % of 1,000,000 established flows
    Mixture,
}

/// A quick look has fewer flows and rules than a full run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    /// Large numbers of either are divided by it.
    pub(crate) divisor: u32,
}

impl Scenario {
    /// As it is called on the command line.
    pub(crate) fn name(self) -> String {
        self.to_possible_value().expect("none is skipped").get_name().to_owned()
    }

    /// The program that gets the packets.
    pub(crate) const fn program(self) -> &'static str {
        match self {
            Self::Drop => "drop",
            Self::Pass => "pass",
            _ => "ingress",
        }
    }

    /// Steering rules.
    pub(crate) const fn rules(self, size: Size) -> usize {
        match self {
            Self::ManyRules | Self::SynFlood => 10_000 / size.divisor as usize,
            _ => FEW_RULES,
        }
    }

    /// Established flows.
    pub(crate) const fn flows(self, size: Size) -> u32 {
        match self {
            Self::Drop | Self::Pass | Self::NoRule | Self::SynFlood => 0,
            Self::OneFlow => 1,
            Self::ThousandFlows | Self::ManyRules => 1000,
            Self::MillionFlows | Self::Mixture => 1_000_000 / size.divisor,
        }
    }

    /// The verdicts that the packets may get; none where our program does not see them.
    pub(crate) const fn verdicts(self, engine: Engine) -> &'static [Verdict] {
        match (self, engine) {
            (Self::Drop | Self::Pass, _) => &[],
            (Self::NoRule, _) => &[Verdict::PassNoRule],
            (Self::SynFlood, _) => &[Verdict::DivertNew],
            (Self::Mixture, Engine::LiveFrames) => {
                &[Verdict::PassNoRule, Verdict::DivertEstablished]
            }
            (Self::Mixture, Engine::Kernel) => &[Verdict::PassNoRule, Verdict::DivertDatagram],
            (_, Engine::LiveFrames) => &[Verdict::DivertEstablished],
            (_, Engine::Kernel) => &[Verdict::DivertDatagram],
        }
    }

    /// The clients of the flows, or whoever sends if there are none.
    pub(crate) fn sources(self, size: Size) -> Sources {
        match self {
            Self::SynFlood => Sources::spoofed(Family::Ipv4, 1 << 20),
            _ => Sources::clients(Family::Ipv4, self.flows(size).max(1)),
        }
    }

    /// The packet, `bytes` long from its Ethernet header on.
    pub(crate) fn frame(self, size: Size, bytes: usize) -> Frame {
        let frame = match self {
            Self::NoRule => segment(Family::Ipv4).to_port(OTHER_PORT),
            Self::SynFlood => Family::Ipv4.from_client(SYN),
            _ => segment(Family::Ipv4),
        };
        let headers = Frame { payload: Vec::new(), ..frame.clone() }.bytes().len();
        let payload = vec![b'x'; bytes.saturating_sub(headers)];
        Frame { payload, ..frame }.from(self.sources(size).address(0))
    }

    /// What makes all packets out of that one.
    pub(crate) fn variation(self, size: Size, frame: &Frame) -> Variation {
        let variation = self.sources(size).vary(frame);
        match self {
            Self::Mixture => Variation {
                other_port: OTHER_PORT.into(),
                others: u32::MAX / (ORDINARY + 1) * ORDINARY,
                ..variation
            },
            _ => variation,
        }
    }

    /// The same as datagrams, which is all that the kernel's generator sends; `None` where that
    /// would be something else.
    pub(crate) fn datagrams(self, size: Size, frame_bytes: u32, packets: u64) -> Option<Traffic> {
        let sources = self.sources(size);
        let address = |index| v4(sources.address(index));
        let destination_ports = match self {
            Self::SynFlood => return None,
            Self::NoRule => OTHER_PORT..=OTHER_PORT,
            // The last one has a rule.
            Self::Mixture => PORT - u16::try_from(ORDINARY).ok()?..=PORT,
            _ => PORT..=PORT,
        };
        let server = v4(Family::Ipv4.server().ip())?;
        Some(Traffic {
            packets,
            frame_bytes,
            next_hop: GATEWAY_MAC,
            sources: address(0)?..=address(sources.count() - 1)?,
            destinations: server..=server,
            source_ports: CLIENT_PORT..=CLIENT_PORT,
            destination_ports,
        })
    }
}

const fn v4(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}
