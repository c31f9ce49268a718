//! What drivers ask of a device before they run an XDP program and send what is redirected to it.
//!
//! They say it too late, when a program is attached or a packet is lost, and mostly by a bare error
//! number. So it stands here, as far as it was read in their sources: docs/design/drivers.md has the
//! same table with the source of every limit, and a test compares the two.

use super::finding::{Finding, Severity};
use super::known::{Channels, LinkFacts};

/// How a driver finds the queue for what XDP hands it (`ndo_xdp_xmit`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sending {
    /// Any processor can send.
    Always,
    /// A processor whose number is not below the number of channels cannot: what it sends is lost.
    QueuePerProcessor,
}

/// Something that a driver asks of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Limit {
    /// The largest MTU, in bytes.
    Mtu(u32),
    /// No separate channels for receiving and sending.
    Combined,
    /// At most half of the channels that there can be, for XDP needs as many again.
    HalfOfTheChannels,
    /// As many channels for receiving as for sending.
    EqualChannels,
    /// Received packets are not merged (`lro`, `rx-gro-hw`).
    NoMerging,
    /// The most processors that a host may have.
    Processors(usize),
}

/// One driver.
#[derive(Debug)]
pub(super) struct Driver {
    /// As `ethtool -i` names it.
    pub name: &'static str,
    pub sending: Sending,
    pub limits: &'static [Limit],
}

pub(super) const DRIVERS: &[Driver] = &[
    driver("mlx5_core", Sending::QueuePerProcessor, &[Limit::NoMerging]),
    driver("i40e", Sending::QueuePerProcessor, &[]),
    driver("ice", Sending::Always, &[]),
    driver("ixgbe", Sending::Always, &[Limit::Processors(128)]),
    driver("ena", Sending::Always, &[Limit::Mtu(3498), Limit::HalfOfTheChannels]),
    driver(
        "gve",
        Sending::Always,
        &[Limit::Mtu(2034), Limit::NoMerging, Limit::EqualChannels, Limit::HalfOfTheChannels],
    ),
    driver("virtio_net", Sending::Always, &[]),
    driver("bnxt_en", Sending::Always, &[Limit::Combined]),
    driver("veth", Sending::Always, &[]),
];

const fn driver(name: &'static str, sending: Sending, limits: &'static [Limit]) -> Driver {
    Driver { name, sending, limits }
}

/// What is known of a driver, if anything is.
pub(super) fn find(name: &str) -> Option<&'static Driver> {
    DRIVERS.iter().find(|driver| driver.name == name)
}

/// Whether every processor of the host can send through a device.
pub(super) fn all_processors_send(link: &LinkFacts, processors: usize) -> bool {
    let sending = find(&link.driver).map_or(Sending::Always, |driver| driver.sending);
    match (sending, &link.channels) {
        (Sending::QueuePerProcessor, Some(channels)) => channels.sending() as usize >= processors,
        _ => true,
    }
}

/// What a driver would refuse about a device in its present state. The refusals of a load in native
/// mode; with a mode to fall back to, they cost speed.
pub(super) fn judge(
    name: &str,
    link: &LinkFacts,
    processors: usize,
    severity: Severity,
    findings: &mut Vec<Finding>,
) {
    let limits = find(&link.driver).map_or(&[][..], |driver| driver.limits);
    for limit in limits {
        if let Some((code, what, remedy)) = exceeded(*limit, name, link, processors) {
            let what = format!("driver {} runs no XDP program on `{name}`: {what}", link.driver);
            findings.push(Finding::new(severity, name, code, what, remedy));
        }
    }
    if all_processors_send(link, processors) {
        return;
    }
    let channels = link.channels.as_ref().map_or(0, Channels::sending);
    findings.push(Finding::new(
        Severity::Costs,
        name,
        "fewer_queues_than_processors",
        format!(
            "driver {} sends redirected frames only from the processors 0 to {}, one for each \
             channel of `{name}`, and this host has {processors}: so answers go through the host's \
             stack, which is slower; with more channels, load again",
            link.driver,
            channels.saturating_sub(1)
        ),
        format!("ethtool -L {name} combined {processors}"),
    ));
}

/// Whether a device is beyond a limit: a code, what is wrong, and the remedy.
fn exceeded(
    limit: Limit,
    name: &str,
    link: &LinkFacts,
    processors: usize,
) -> Option<(&'static str, String, String)> {
    let channels = link.channels.unwrap_or_default();
    match limit {
        Limit::Mtu(largest) => (link.mtu > largest).then(|| {
            (
                "driver_mtu",
                format!("its MTU is {}, and may be {largest} at most", link.mtu),
                format!("ip link set dev {name} mtu {}", largest.min(1500)),
            )
        }),
        Limit::Combined => (channels.rx + channels.tx > 0).then(|| {
            (
                "channels_not_combined",
                "it has separate channels for receiving and sending".to_owned(),
                format!(
                    "ethtool -L {name} rx 0 tx 0 combined {}",
                    channels.rx.max(channels.tx).max(1)
                ),
            )
        }),
        Limit::HalfOfTheChannels => {
            let (used, most) = (channels.sending(), channels.most_sending());
            (2 * used > most && most > 1).then(|| {
                (
                    "too_many_channels",
                    format!("it has {used} channels of {most}, and XDP needs as many again"),
                    channels.command(name, most / 2),
                )
            })
        }
        Limit::EqualChannels => (channels.rx != channels.tx).then(|| {
            (
                "channels_differ",
                format!(
                    "it has {} channels for receiving and {} for sending",
                    channels.rx, channels.tx
                ),
                channels.command(name, channels.rx.min(channels.tx).max(1)),
            )
        }),
        Limit::NoMerging => (link.lro || link.gro_hw).then(|| {
            let feature = if link.lro { "lro" } else { "rx-gro-hw" };
            (
                "driver_merges",
                format!("it merges received packets ({feature})"),
                format!("ethtool -K {name} {feature} off"),
            )
        }),
        Limit::Processors(most) => (processors > most).then(|| {
            (
                "too_many_processors",
                format!("the host has {processors} processors, and may have {most} at most"),
                "gateway.xdp = \"generic\"".to_owned(),
            )
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(limit: &Limit) -> String {
        match limit {
            Limit::Mtu(largest) => format!("MTU {largest} at most"),
            Limit::Combined => "combined channels".to_owned(),
            Limit::HalfOfTheChannels => "at most half of its channels in use".to_owned(),
            Limit::EqualChannels => "as many channels for receiving as for sending".to_owned(),
            Limit::NoMerging => "no merging (`lro`, `rx-gro-hw`)".to_owned(),
            Limit::Processors(most) => format!("{most} processors at most"),
        }
    }

    #[test]
    fn the_document_has_every_limit_with_its_source() {
        let document = include_str!("../../../docs/design/drivers.md");
        for Driver { name, sending, limits } in DRIVERS {
            let sending = match sending {
                Sending::Always => "any processor",
                Sending::QueuePerProcessor => "processors below the number of its channels",
            };
            let limits = match limits {
                [] => "nothing that is known".to_owned(),
                limits => limits.iter().map(words).collect::<Vec<_>>().join("; "),
            };
            let row = format!("| `{name}` | {sending} | {limits} | ");
            let rest = document.split_once(&row).map(|(_, rest)| rest);
            let source = rest.and_then(|rest| rest.lines().next()).unwrap_or_default();
            assert!(
                source.contains(".c"),
                "docs/design/drivers.md has no row `{row}` with a source"
            );
        }
    }
}
