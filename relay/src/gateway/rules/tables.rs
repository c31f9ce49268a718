//! The rules in the kernel: read, and replaced as a whole while packets are looked up.

use std::borrow::{Borrow, BorrowMut};
use std::path::Path;

use aya::Ebpf;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, Map, MapData, MapError};
use millrace_common::abi::{GatewayConfig, map};
use millrace_common::rule::{ActiveSet, PortClass, RuleKey, SetFlags, SetIndex};
use rustix::thread::{MembarrierCommand, membarrier, membarrier_query};

use super::compile::Compiled;
use super::{GatewayError, Protocol};
use crate::gateway::error::errno;
use crate::gateway::open_map;

/// The three maps that hold both sets of rules.
pub struct RuleTables<T> {
    config: Array<T, GatewayConfig>,
    classes: Array<T, u32>,
    rules: LpmTrie<T, RuleKey, u32>,
}

fn failed(what: &str) -> impl FnOnce(MapError) -> GatewayError {
    GatewayError::bpf(format!("{what} the rules in the kernel"))
}

impl RuleTables<MapData> {
    /// Those of a loaded instance.
    pub(in crate::gateway) fn open(pins: &Path) -> Result<Self, GatewayError> {
        let open = |name| open_map(pins, name);
        Self::new(
            Map::Array(open(map::CONFIG)?),
            Map::Array(open(map::PORT_CLASSES)?),
            Map::LpmTrie(open(map::RULES)?),
        )
    }

    fn new(config: Map, classes: Map, rules: Map) -> Result<Self, GatewayError> {
        Ok(Self {
            config: Array::try_from(config).map_err(failed("open"))?,
            classes: Array::try_from(classes).map_err(failed("open"))?,
            rules: LpmTrie::try_from(rules).map_err(failed("open"))?,
        })
    }
}

impl<'a> RuleTables<&'a mut MapData> {
    /// Those of an object that is being loaded; `None` if it is not one of ours.
    pub fn of(ebpf: &'a mut Ebpf) -> Option<Self> {
        let (mut config, mut classes, mut rules) = (None, None, None);
        for (name, present) in ebpf.maps_mut() {
            match name {
                map::CONFIG => config = Array::try_from(present).ok(),
                map::PORT_CLASSES => classes = Array::try_from(present).ok(),
                map::RULES => rules = LpmTrie::try_from(present).ok(),
                _ => {}
            }
        }
        Some(Self { config: config?, classes: classes?, rules: rules? })
    }
}

impl<T: Borrow<MapData>> RuleTables<T> {
    fn active(&self) -> Result<ActiveSet, GatewayError> {
        self.config.get(&0, 0).map(|config| config.active_set).map_err(failed("read"))
    }

    fn class(
        &self,
        set: SetIndex,
        protocol: Protocol,
        port: u16,
    ) -> Result<PortClass, GatewayError> {
        let slot = PortClass::slot(set, protocol.number(), port.to_be_bytes());
        self.classes.get(&slot, 0).map(PortClass).map_err(failed("read"))
    }

    fn source_places(&self, set: SetIndex) -> Result<PortClass, GatewayError> {
        let slot = PortClass::sources_slot(set);
        self.classes.get(&slot, 0).map(PortClass).map_err(failed("read"))
    }

    /// Keys of one set.
    fn keys(&self, set: SetIndex) -> Result<Vec<Key<RuleKey>>, GatewayError> {
        self.rules
            .keys()
            .filter(|key| key.as_ref().map_or(true, |key| key.data().set() == set))
            .collect::<Result<_, _>>()
            .map_err(failed("read"))
    }

    /// What of the set in force is not as it would be if `present` had been put into force; `None`
    /// if all is.
    pub fn difference(
        &self,
        present: &Present<'_>,
        by_rule: bool,
    ) -> Result<Option<String>, GatewayError> {
        let active = self.active()?;
        let set = active.set();
        let flags = SetFlags::new(present.compiled.has_exclusions(), by_rule);
        if active.flags() != flags || active.drops_sources() != present.compiled.drops_sources() {
            return Ok(Some("the set has other properties".to_owned()));
        }
        let wanted = present.held(set);
        for protocol in Protocol::ALL {
            for (port, class) in (0..=u16::MAX).zip(&wanted.classes[protocol as usize]) {
                if self.class(set, protocol, port)? != *class {
                    let name = protocol.name();
                    return Ok(Some(format!("{name} port {port} has the rules of another class")));
                }
            }
        }
        if self.source_places(set)? != present.compiled.source_places() {
            return Ok(Some("sources are dropped or excluded in other places".to_owned()));
        }
        let (entries, wanted) = (self.keys(set)?.len(), wanted.keys.len());
        if entries != wanted {
            return Ok(Some(format!("there are {entries} entries, but there should be {wanted}")));
        }
        for (bits, key, value) in present.compiled.trie(set) {
            // The longest match of a prefix's own address and length is the prefix itself.
            match self.rules.get(&Key::new(bits, key), 0) {
                Ok(there) if there == value => {}
                Ok(_) | Err(MapError::KeyNotFound) => {
                    return Ok(Some("an entry has another action".to_owned()));
                }
                Err(error) => return Err(failed("read")(error)),
            }
        }
        Ok(None)
    }
}

/// What the maps hold of one set.
struct Held {
    /// The classes of every port, by [`Protocol`].
    classes: [Vec<PortClass>; 2],
    keys: Vec<Key<RuleKey>>,
}

/// Rules that are in force, and the TCP ports of which only old connections are diverted.
#[derive(Debug)]
pub struct Present<'a> {
    /// The rules.
    pub compiled: &'a Compiled,
    /// Ports without a rule.
    pub closing: &'a [u16],
}

impl Present<'_> {
    fn held(&self, set: SetIndex) -> Held {
        let mut classes = self.compiled.classes().clone();
        for port in self.closing {
            classes[Protocol::Tcp as usize][usize::from(*port)] = PortClass::FLOWS_ONLY;
        }
        let keys = self.compiled.trie(set).map(|(bits, key, _)| Key::new(bits, key)).collect();
        Held { classes, keys }
    }
}

impl<T: BorrowMut<MapData>> RuleTables<T> {
    /// Puts a set into force in one step; packets meet the former set or the new one and never a
    /// mixture. TCP ports that had rules and have none now are given, in the state in which their
    /// old connections go on; see [`Self::close_ports`].
    ///
    /// Whoever does not know what is in force says `None`, and it is read from the kernel, which
    /// takes a few hundred thousand system calls. On an error the former set is in force.
    pub fn replace(
        &mut self,
        present: Option<&Present<'_>>,
        compiled: &Compiled,
        by_rule: bool,
    ) -> Result<Vec<u16>, GatewayError> {
        // Asked before anything is changed: without it the former set could not be removed.
        if !membarrier_query().contains_command(MembarrierCommand::Global) {
            return Err(GatewayError::NoGracePeriod);
        }
        let config = self.config.get(&0, 0).map_err(failed("read"))?;
        let active = config.active_set;
        let (former, set) = (active.set(), active.set().other());
        let held = if let Some(present) = present {
            present.held(former)
        } else {
            let remains = self.read(set)?;
            self.clear(set, &remains)?;
            self.read(former)?
        };
        let (mut next, closing) = next(compiled, &held, set);
        if let Err(error) = self.write(compiled, &next, set) {
            // What was not written is not there to be removed.
            next.keys = self.keys(set)?;
            self.clear(set, &next)?;
            return Err(error);
        }
        let flags = SetFlags::new(compiled.has_exclusions(), by_rule);
        let prepared = active.with_flags(set, flags);
        let next_set = prepared.with_set(set).with_drops_sources(compiled.drops_sources());
        for active_set in [prepared, next_set] {
            let value = GatewayConfig { active_set, ..config };
            self.config.set(0, value, 0).map_err(failed("switch"))?;
        }
        wait_for_programs()?;
        self.clear(former, &held)?;
        Ok(closing)
    }

    /// Has the programs take a heartbeat of this age for that of a dead relay, in nanoseconds; gives
    /// the former age.
    pub(in crate::gateway) fn set_heartbeat_timeout(
        &mut self,
        heartbeat_timeout_ns: u64,
    ) -> Result<u64, GatewayError> {
        let config = self.config.get(&0, 0).map_err(failed("read"))?;
        let value = GatewayConfig { heartbeat_timeout_ns, ..config };
        self.config.set(0, value, 0).map_err(failed("write"))?;
        Ok(config.heartbeat_timeout_ns)
    }

    /// Ends the diversion of old connections at ports that have no rule any more and, as the caller
    /// has seen since [`Self::replace`], no connection either.
    pub fn close_ports(&mut self, ports: &[u16]) -> Result<(), GatewayError> {
        let set = self.active()?.set();
        ports
            .iter()
            .try_for_each(|port| self.set_class(set, Protocol::Tcp, *port, PortClass::NO_RULE))
    }

    fn set_class(
        &mut self,
        set: SetIndex,
        protocol: Protocol,
        port: u16,
        class: PortClass,
    ) -> Result<(), GatewayError> {
        let slot = PortClass::slot(set, protocol.number(), port.to_be_bytes());
        self.classes.set(slot, class.0, 0).map_err(failed("write"))
    }

    /// Takes a set out that is not in force: at rest the other set is empty.
    fn clear(&mut self, set: SetIndex, held: &Held) -> Result<(), GatewayError> {
        for key in &held.keys {
            match self.rules.remove(key) {
                Ok(()) | Err(MapError::KeyNotFound) => {}
                Err(error) => return Err(failed("remove")(error)),
            }
        }
        ruled_ports(&held.classes).try_for_each(|(protocol, port, _)| {
            self.set_class(set, protocol, port, PortClass::NO_RULE)
        })
    }

    fn write(
        &mut self,
        compiled: &Compiled,
        next: &Held,
        set: SetIndex,
    ) -> Result<(), GatewayError> {
        for (bits, key, value) in compiled.trie(set) {
            self.rules.insert(&Key::new(bits, key), value, 0).map_err(|error| {
                match errno(&error) {
                    Some(libc::ENOSPC | libc::ENOMEM) => GatewayError::RulesFull,
                    _ => failed("write")(error),
                }
            })?;
        }
        let (slot, places) = (PortClass::sources_slot(set), compiled.source_places());
        self.classes.set(slot, places.0, 0).map_err(failed("write"))?;
        ruled_ports(&next.classes)
            .try_for_each(|(protocol, port, class)| self.set_class(set, protocol, port, class))
    }

    /// Everything of a set, from the kernel.
    fn read(&self, set: SetIndex) -> Result<Held, GatewayError> {
        let classes = |protocol| -> Result<Vec<_>, GatewayError> {
            (0..=u16::MAX).map(|port| self.class(set, protocol, port)).collect()
        };
        let classes = [classes(Protocol::Tcp)?, classes(Protocol::Udp)?];
        Ok(Held { classes, keys: self.keys(set)? })
    }
}

/// What a set will hold that follows on another, and the ports of which only old connections are
/// diverted then.
fn next(compiled: &Compiled, former: &Held, set: SetIndex) -> (Held, Vec<u16>) {
    let mut next = Present { compiled, closing: &[] }.held(set);
    let closing: Vec<u16> = ruled_ports(&former.classes)
        .filter(|(protocol, port, _)| {
            *protocol == Protocol::Tcp
                && compiled.port_class(*protocol, *port) == PortClass::NO_RULE
        })
        .map(|(_, port, _)| port)
        .collect();
    for port in &closing {
        next.classes[Protocol::Tcp as usize][usize::from(*port)] = PortClass::FLOWS_ONLY;
    }
    (next, closing)
}

/// Ports of any class but the one that has no rule.
fn ruled_ports(
    classes: &[Vec<PortClass>; 2],
) -> impl Iterator<Item = (Protocol, u16, PortClass)> + '_ {
    Protocol::ALL.into_iter().flat_map(|protocol| {
        (0..=u16::MAX)
            .zip(&classes[protocol as usize])
            .filter(|(_, class)| **class != PortClass::NO_RULE)
            .map(move |(port, class)| (protocol, port, *class))
    })
}

/// Waits until every program that runs now has ended: what runs later sees the new set.
///
/// `MEMBARRIER_CMD_GLOBAL` is the kernel's `synchronize_rcu()` (`kernel/sched/membarrier.c`), and
/// XDP programs run within a read-side critical section of RCU.
fn wait_for_programs() -> Result<(), GatewayError> {
    membarrier(MembarrierCommand::Global)
        .map_err(|error| GatewayError::io("wait for the programs that run")(error.into()))
}
