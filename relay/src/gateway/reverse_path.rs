//! How far the programs check where packets come from on a device: as the configuration says, or as the
//! host checks what its own stack sees.

use std::fmt;

use millrace_common::link;
use serde::{Deserialize, Serialize, Serializer};

use crate::config::{Config, ReversePath};

use super::error::GatewayError;
use super::host::{Device, Named, command, parse, sysctl};
use super::known::SourceFacts;

/// How far sources are checked on a device, and why so far.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SourceCheck {
    /// `off`, `loose` or `strict`.
    #[serde(serialize_with = "by_name")]
    pub mode: link::ReversePath,
    /// In words.
    pub why: String,
}

impl fmt::Display for SourceCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", name(self.mode), self.why)
    }
}

/// A mode as it is written.
pub(super) const fn name(mode: link::ReversePath) -> &'static str {
    match mode {
        link::ReversePath::Off => "off",
        link::ReversePath::Loose => "loose",
        link::ReversePath::Strict => "strict",
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn by_name<S: Serializer>(mode: &link::ReversePath, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(name(*mode))
}

/// What becomes of a setting on a device. A strict check would fail honest clients where a route does not
/// name the device by which their packets come in: there it is a loose one.
pub(super) fn decide(setting: ReversePath, facts: &SourceFacts) -> SourceCheck {
    let (mode, why) = match setting {
        ReversePath::Auto => {
            let mode = match facts.rp_filter {
                0 => link::ReversePath::Off,
                1 => link::ReversePath::Strict,
                _ => link::ReversePath::Loose,
            };
            (mode, format!("rp_filter is {}", facts.rp_filter))
        }
        ReversePath::Off => (link::ReversePath::Off, "as configured".to_owned()),
        ReversePath::Loose => (link::ReversePath::Loose, "as configured".to_owned()),
        ReversePath::Strict => (link::ReversePath::Strict, "strict as configured".to_owned()),
    };
    match obstacle(facts) {
        Some(obstacle) if mode == link::ReversePath::Strict => {
            SourceCheck { mode: link::ReversePath::Loose, why: format!("{why}, but {obstacle}") }
        }
        _ => SourceCheck { mode, why },
    }
}

/// Why the device of a route says too little.
fn obstacle(facts: &SourceFacts) -> Option<String> {
    if !facts.above.is_empty() {
        let above: Vec<_> = facts.above.iter().map(|name| format!("`{name}`")).collect();
        Some(format!("routes may name {} on top of it", above.join(", ")))
    } else if facts.several_ways {
        Some("a default route has next hops by this device and by others".to_owned())
    } else if facts.marked {
        Some("src_valid_mark is 1, and the programs see no marks".to_owned())
    } else {
        None
    }
}

/// The host's devices and default routes, which decide beside its settings: read once, however many
/// devices are asked about.
pub(super) struct Surroundings {
    devices: Vec<Named>,
    default_routes: Vec<Route>,
}

impl Surroundings {
    pub(super) fn read() -> Result<Self, GatewayError> {
        let mut default_routes = Vec::new();
        for family in ["-4", "-6"] {
            match command(&["ip", family, "-json", "route", "show", "default"]) {
                // A kernel without this family.
                Err(GatewayError::Command { .. }) => {}
                answer => default_routes.extend(routes(&answer?)?),
            }
        }
        Ok(Self { devices: Named::all()?, default_routes })
    }

    /// How far a device would be checked by a load now.
    pub(super) fn check(
        &self,
        config: &Config,
        name: &str,
        device: &Device,
    ) -> Result<SourceCheck, GatewayError> {
        Ok(decide(config.gateway.reverse_path, &self.facts(name, device)?))
    }

    /// What is known of a device that is there.
    pub(super) fn facts(&self, name: &str, device: &Device) -> Result<SourceFacts, GatewayError> {
        let largest = |key: &str| -> Result<u8, GatewayError> {
            let mut largest = 0;
            for device in ["all", name] {
                let value = sysctl(&format!("net/ipv4/conf/{device}/{key}"))?;
                largest = largest.max(value.and_then(|value| value.parse().ok()).unwrap_or(0));
            }
            Ok(largest)
        };
        let above = self.stacked(name, device);
        Ok(SourceFacts {
            rp_filter: largest("rp_filter")?,
            above: above.iter().map(|above| above.name.clone()).collect(),
            several_ways: lead_several_ways(name, &self.default_routes),
            marked: largest("src_valid_mark")? > 0,
        })
    }

    /// The devices on top of one, directly or not: its VLANs and macvlans, the bridge or bond that it is a
    /// part of, and what is on top of these.
    pub(super) fn stacked(&self, name: &str, device: &Device) -> Vec<&Named> {
        let mut found: Vec<&Named> = Vec::new();
        let mut below = vec![(name, device)];
        while let Some((name, lower)) = below.pop() {
            for one in &self.devices {
                let stands = one.device.lower() == Some(name)
                    || lower.master.as_deref() == Some(one.name.as_str()) && lower.vrf().is_none();
                if stands && !found.iter().any(|known| known.name == one.name) {
                    found.push(one);
                    below.push((&one.name, &one.device));
                }
            }
        }
        found
    }
}

/// A route as `ip -json route` shows it.
#[derive(Deserialize)]
struct Route {
    #[serde(default)]
    nexthops: Vec<NextHop>,
}

#[derive(Deserialize)]
struct NextHop {
    #[serde(default)]
    dev: Option<String>,
}

fn routes(text: &str) -> Result<Vec<Route>, GatewayError> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    parse("ip route", text)
}

/// Whether one of these routes leads by this device and by another.
fn lead_several_ways(name: &str, routes: &[Route]) -> bool {
    routes.iter().any(|route| {
        let is_ours = |hop: &NextHop| hop.dev.as_deref() == Some(name);
        route.nexthops.iter().any(is_ours) && !route.nexthops.iter().all(is_ours)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(setting: ReversePath, facts: &SourceFacts) -> &'static str {
        name(decide(setting, facts).mode)
    }

    #[test]
    fn the_host_decides_unless_the_configuration_does() {
        for (rp_filter, auto) in [(0, "off"), (1, "strict"), (2, "loose"), (3, "loose")] {
            let facts = SourceFacts { rp_filter, ..SourceFacts::default() };
            let check = decide(ReversePath::Auto, &facts);
            assert_eq!(check.to_string(), format!("{auto} (rp_filter is {rp_filter})"));
            assert_eq!(mode(ReversePath::Off, &facts), "off");
            assert_eq!(mode(ReversePath::Loose, &facts), "loose");
            assert_eq!(mode(ReversePath::Strict, &facts), "strict");
        }
    }

    /// What a route's device does not tell is not held against clients.
    #[test]
    fn strict_is_loose_where_routes_name_other_devices() {
        let strict = SourceFacts { rp_filter: 1, ..SourceFacts::default() };
        for (facts, why) in [
            (SourceFacts { above: vec!["eth1.5".to_owned()], ..strict.clone() }, "`eth1.5`"),
            (SourceFacts { several_ways: true, ..strict.clone() }, "next hops"),
            (SourceFacts { marked: true, ..strict.clone() }, "src_valid_mark"),
        ] {
            for setting in [ReversePath::Auto, ReversePath::Strict] {
                let check = decide(setting, &facts);
                assert_eq!(check.mode, link::ReversePath::Loose);
                assert!(check.why.contains(", but ") && check.why.contains(why), "{check}");
            }
            assert_eq!(mode(ReversePath::Off, &facts), "off");
            assert_eq!(decide(ReversePath::Loose, &facts).to_string(), "loose (as configured)");
        }
    }

    #[test]
    fn a_route_by_several_devices_is_recognised() {
        let ways = |text: &str| lead_several_ways("eth1", &routes(text).unwrap());
        assert!(!ways("") && !ways("[ ]"));
        assert!(!ways("[{\"dst\":\"default\",\"gateway\":\"10.0.0.1\",\"dev\":\"eth1\"}]"));
        let hops = |devices: [&str; 2]| {
            let hops = devices.map(|dev| format!("{{\"gateway\":\"10.0.0.1\",\"dev\":\"{dev}\"}}"));
            format!("[{{\"dst\":\"default\",\"nexthops\":[{}]}}]", hops.join(","))
        };
        assert!(ways(&hops(["eth1", "eth2"])) && ways(&hops(["eth2", "eth1"])));
        assert!(!ways(&hops(["eth1", "eth1"])) && !ways(&hops(["eth2", "eth3"])));
    }
}
