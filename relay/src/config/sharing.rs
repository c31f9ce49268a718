//! Services that share a port: which of them a connection belongs to.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use crate::config::Service;
use crate::model::ServiceId;
use crate::prefix::Prefix;

/// Each needs two listeners of every worker.
pub(super) const MAX_PORTS: usize = 1000;

/// Whose connections those to a destination are.
type Whose = (Prefix, ServiceId);

/// The services at each port.
///
/// A service that has a port alone gets all of the port's connections: the rules have decided what is diverted.
/// Where several have a port, the service with the longest prefix gets a connection, as with rules.
#[derive(Clone, Debug, Default)]
pub struct Sharing {
    ports: BTreeMap<u16, AtPort>,
}

#[derive(Clone, Debug)]
struct AtPort {
    first: ServiceId,
    /// The longest prefix first. Empty: the first service has the port alone.
    shared: Vec<Whose>,
}

/// Why services cannot share their ports.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Overlap {
    /// The later service in the configuration.
    pub(super) service: ServiceId,
    pub(super) problem: String,
}

impl Sharing {
    /// That of a configuration's services, which has been checked.
    pub fn of(services: &[Service]) -> Self {
        let ids = || services.iter().zip((0..).map(ServiceId));
        let mut ports = BTreeMap::<u16, Vec<(ServiceId, &Service)>>::new();
        for (service, id) in ids() {
            for port in service.port.each() {
                ports.entry(port).or_default().push((id, service));
            }
        }
        let at = |services: Vec<(ServiceId, &Service)>| AtPort {
            first: services[0].0,
            shared: if services.len() > 1 { by_length(&services) } else { Vec::new() },
        };
        Self { ports: ports.into_iter().map(|(port, services)| (port, at(services))).collect() }
    }

    /// Every port, and the first service that has it.
    pub fn ports(&self) -> impl Iterator<Item = (u16, ServiceId)> {
        self.ports.iter().map(|(port, at)| (*port, at.first))
    }

    /// The service of a connection from the listener of a port's first service. None: no service of the port
    /// has that destination.
    pub fn choose(&self, first: ServiceId, destination: SocketAddr) -> Option<ServiceId> {
        let Some(at) = self.ports.get(&destination.port()).filter(|at| !at.shared.is_empty())
        else {
            return Some(first);
        };
        let address = destination.ip();
        at.shared.iter().find(|(prefix, _)| prefix.contains(address)).map(|(_, service)| *service)
    }

    /// Refuses two services of which neither is closer to a destination, and too many ports.
    pub(super) fn check(services: &[Service]) -> Result<(), Overlap> {
        let overlap = |id: usize, problem| {
            Err(Overlap { service: ServiceId(u16::try_from(id).unwrap_or(u16::MAX)), problem })
        };
        for (id, service) in services.iter().enumerate() {
            if service.port.first == 0 {
                return overlap(id, "port must be from 1 to 65535".to_owned());
            }
            for other in &services[..id] {
                let first = service.port.first.max(other.port.first);
                if first > service.port.last.min(other.port.last) {
                    continue;
                }
                let others = destinations(other);
                if let Some(same) =
                    destinations(service).into_iter().find(|one| others.contains(one))
                {
                    let problem = format!(
                        "port {first} of {same} is also service `{}`'s; services that share a port need other \
                         destinations",
                        other.name
                    );
                    return overlap(id, problem);
                }
            }
        }
        let mut ports = BTreeSet::new();
        for (id, service) in services.iter().enumerate() {
            ports.extend(service.port.each());
            if ports.len() > MAX_PORTS {
                let problem =
                    format!("with port {} there are more than {MAX_PORTS} ports", service.port);
                return overlap(id, problem);
            }
        }
        Ok(())
    }
}

/// Those that a service has: all, if it names none.
fn destinations(service: &Service) -> Vec<Prefix> {
    if service.destinations.is_empty() {
        Prefix::EVERYWHERE.to_vec()
    } else {
        service.destinations.clone()
    }
}

fn by_length(services: &[(ServiceId, &Service)]) -> Vec<Whose> {
    let mut shared: Vec<Whose> = services
        .iter()
        .flat_map(|(id, service)| destinations(service).into_iter().map(|prefix| (prefix, *id)))
        .collect();
    shared.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.length));
    shared
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Framing;
    use crate::ports::Ports;

    fn service(name: &str, port: impl Into<Ports>, destinations: &[&str]) -> Service {
        let prefixes = destinations.iter().map(|text| text.parse().expect("a prefix"));
        Service { destinations: prefixes.collect(), ..Service::new(name, port, Framing::Lines) }
    }

    fn chosen(services: &[Service], destination: &str) -> Option<u16> {
        let destination: SocketAddr = destination.parse().expect("an address");
        let sharing = Sharing::of(services);
        let (_, first) = sharing.ports().find(|(port, _)| *port == destination.port())?;
        sharing.choose(first, destination).map(|service| service.0)
    }

    fn refused(services: &[Service]) -> String {
        Sharing::check(services).expect_err("they overlap").problem
    }

    #[test]
    fn the_longest_prefix_decides_whatever_the_order() {
        let mut services = vec![
            service("all", 443, &[]),
            service("net", 443, &["203.0.113.0/24", "2001:db8::/32"]),
            service("host", 443, &["203.0.113.9", "2001:db8::9"]),
        ];
        for _ in 0..3 {
            let name = |destination| {
                chosen(&services, destination).map(|id| services[usize::from(id)].name.as_str())
            };
            assert_eq!(name("203.0.113.9:443"), Some("host"));
            assert_eq!(name("203.0.113.8:443"), Some("net"));
            assert_eq!(name("198.51.100.1:443"), Some("all"));
            assert_eq!(name("[2001:db8::9]:443"), Some("host"));
            assert_eq!(name("[2001:db8::1]:443"), Some("net"));
            assert_eq!(name("[2001:db9::1]:443"), Some("all"));
            assert_eq!(Sharing::check(&services), Ok(()));
            services.rotate_left(1);
        }
    }

    #[test]
    fn who_has_a_port_alone_gets_all_of_it() {
        let services =
            [service("a", 1883, &["203.0.113.0/24"]), service("b", 8883, &["203.0.113.0/24"])];
        assert_eq!(chosen(&services, "127.0.0.1:1883"), Some(0));
        assert_eq!(chosen(&services, "127.0.0.1:8883"), Some(1));
    }

    #[test]
    fn a_destination_of_no_service_has_none() {
        let services = [service("a", 443, &["203.0.113.0/25"]), service("b", 443, &["::/0"])];
        assert_eq!(chosen(&services, "203.0.113.200:443"), None);
        assert_eq!(chosen(&services, "[::1]:443"), Some(1));
    }

    #[test]
    fn ranges_share_the_ports_that_both_have() {
        let range = |first, last| Ports { first, last };
        let services = [
            service("low", range(8000, 8010), &["203.0.113.0/24"]),
            service("high", range(8010, 8020), &["203.0.113.7"]),
        ];
        assert_eq!(chosen(&services, "203.0.113.7:8009"), Some(0));
        assert_eq!(chosen(&services, "203.0.113.7:8010"), Some(1));
        assert_eq!(chosen(&services, "203.0.113.8:8010"), Some(0));
        assert_eq!(chosen(&services, "203.0.113.8:8011"), Some(1), "alone there");
        assert_eq!(Sharing::of(&services).ports().count(), 21);
    }

    #[test]
    fn equal_destinations_are_refused_with_both_names() {
        let told = refused(&[
            service("a", Ports { first: 400, last: 500 }, &["10.0.0.0/8", "203.0.113.0/24"]),
            service("b", 443, &["203.0.113.0/24"]),
        ]);
        assert!(told.starts_with("port 443 of 203.0.113.0/24 is also service `a`'s"), "{told}");
        let told = refused(&[service("a", 443, &[]), service("b", 443, &["::/0"])]);
        assert!(told.starts_with("port 443 of ::/0 is also service `a`'s"), "{told}");
    }

    #[test]
    fn ports_are_bounded() {
        assert!(refused(&[service("a", 0, &[])]).contains("1 to 65535"));
        let range = |first: u16, ports: usize| Ports {
            first,
            last: first + u16::try_from(ports - 1).expect("few"),
        };
        let both = |ports| {
            [service("a", range(1, MAX_PORTS), &["::/0"]), service("b", range(1, ports), &["::1"])]
        };
        assert_eq!(Sharing::check(&both(MAX_PORTS)), Ok(()), "the same ports");
        assert!(refused(&both(MAX_PORTS + 1)).contains("more than 1000 ports"));
    }
}
