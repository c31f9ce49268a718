//! The rules in the kernel: read, and replaced as a whole while packets are looked up.

use std::borrow::{Borrow, BorrowMut};
use std::path::Path;

use aya::Ebpf;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, Map, MapData, MapError};
use millrace_common::abi::map;
use millrace_common::rule::{ActiveSet, PortClass, RuleKey, SetFlags, SetIndex};
use rustix::thread::{MembarrierCommand, membarrier, membarrier_query};

use super::compile::Compiled;
use super::{GatewayError, Protocol};
use crate::gateway::error::errno;
use crate::gateway::open_map;

/// The three maps that hold both sets of rules.
pub struct RuleTables<T> {
    active: Array<T, u32>,
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
            Map::Array(open(map::ACTIVE_SET)?),
            Map::Array(open(map::PORT_CLASSES)?),
            Map::LpmTrie(open(map::RULES)?),
        )
    }

    fn new(active: Map, classes: Map, rules: Map) -> Result<Self, GatewayError> {
        Ok(Self {
            active: Array::try_from(active).map_err(failed("open"))?,
            classes: Array::try_from(classes).map_err(failed("open"))?,
            rules: LpmTrie::try_from(rules).map_err(failed("open"))?,
        })
    }
}

impl<'a> RuleTables<&'a mut MapData> {
    /// Those of an object that is being loaded; `None` if it is not one of ours.
    pub fn of(ebpf: &'a mut Ebpf) -> Option<Self> {
        let (mut active, mut classes, mut rules) = (None, None, None);
        for (name, present) in ebpf.maps_mut() {
            match name {
                map::ACTIVE_SET => active = Array::try_from(present).ok(),
                map::PORT_CLASSES => classes = Array::try_from(present).ok(),
                map::RULES => rules = LpmTrie::try_from(present).ok(),
                _ => {}
            }
        }
        Some(Self { active: active?, classes: classes?, rules: rules? })
    }
}

impl<T: Borrow<MapData>> RuleTables<T> {
    fn active(&self) -> Result<ActiveSet, GatewayError> {
        self.active.get(&0, 0).map(ActiveSet).map_err(failed("read"))
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

    /// Keys of one set.
    fn keys(&self, set: SetIndex) -> Result<Vec<Key<RuleKey>>, GatewayError> {
        self.rules
            .keys()
            .filter(|key| key.as_ref().map_or(true, |key| key.data().set() == set))
            .collect::<Result<_, _>>()
            .map_err(failed("read"))
    }

    /// What of the set in force is not as it would be if `compiled` had been put into force; `None`
    /// if all is.
    pub fn difference(
        &self,
        compiled: &Compiled,
        by_rule: bool,
    ) -> Result<Option<String>, GatewayError> {
        let active = self.active()?;
        let set = active.set();
        if active.flags() != SetFlags::new(compiled.has_exclusions(), by_rule) {
            return Ok(Some("the set's properties are others".to_owned()));
        }
        for protocol in Protocol::ALL {
            for port in 0..=u16::MAX {
                let there = self.class(set, protocol, port)?;
                let wanted = compiled.port_class(protocol, port);
                let closing = wanted == PortClass::NO_RULE && there == PortClass::FLOWS_ONLY;
                if there != wanted && !closing {
                    let name = protocol.name();
                    return Ok(Some(format!("{name} port {port} has the rules of another class")));
                }
            }
        }
        let entries = self.keys(set)?.len();
        if entries != compiled.entries() {
            let wanted = compiled.entries();
            return Ok(Some(format!("there are {entries} entries and should be {wanted}")));
        }
        for (bits, key, value) in compiled.trie(set) {
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

    /// Ports of which only old connections are diverted.
    pub fn closing_ports(&self) -> Result<Vec<u16>, GatewayError> {
        let set = self.active()?.set();
        let mut ports = Vec::new();
        for port in 0..=u16::MAX {
            if self.class(set, Protocol::Tcp, port)? == PortClass::FLOWS_ONLY {
                ports.push(port);
            }
        }
        Ok(ports)
    }
}

impl<T: BorrowMut<MapData>> RuleTables<T> {
    /// Puts a set into force in one step; packets meet the former set or the new one and never a
    /// mixture. TCP ports that had rules and have none now are given, in the state in which their
    /// old connections go on; see [`Self::close_ports`].
    ///
    /// On an error the former set is in force.
    pub fn replace(
        &mut self,
        compiled: &Compiled,
        by_rule: bool,
    ) -> Result<Vec<u16>, GatewayError> {
        // Asked before anything is changed: without it the former set could not be removed.
        if !membarrier_query().contains_command(MembarrierCommand::Global) {
            return Err(GatewayError::NoGracePeriod);
        }
        let active = self.active()?;
        let (former, set) = (active.set(), active.set().other());
        // What an `apply` that was killed has left.
        self.clear(set)?;
        let closing = match self.write(compiled, former, set) {
            Ok(closing) => closing,
            Err(error) => {
                self.clear(set)?;
                return Err(error);
            }
        };
        let flags = SetFlags::new(compiled.has_exclusions(), by_rule);
        let prepared = active.with_flags(set, flags);
        for value in [prepared, prepared.with_set(set)] {
            self.active.set(0, value.0, 0).map_err(failed("switch"))?;
        }
        wait_for_programs()?;
        self.clear(former)?;
        Ok(closing)
    }

    /// Ends the diversion of old connections at ports that have no rule any more and, as the caller
    /// has seen since [`Self::replace`], no connection either.
    pub fn close_ports(&mut self, ports: &[u16]) -> Result<(), GatewayError> {
        let set = self.active()?.set();
        for port in ports {
            let slot = PortClass::slot(set, Protocol::Tcp.number(), port.to_be_bytes());
            self.classes.set(slot, PortClass::NO_RULE.0, 0).map_err(failed("write"))?;
        }
        Ok(())
    }

    /// Takes the entries of a set out that is not in force. Its classes stay: without entries they
    /// mean nothing, and every one is written before the set comes into force.
    fn clear(&mut self, set: SetIndex) -> Result<(), GatewayError> {
        for key in self.keys(set)? {
            match self.rules.remove(&key) {
                Ok(()) | Err(MapError::KeyNotFound) => {}
                Err(error) => return Err(failed("remove")(error)),
            }
        }
        Ok(())
    }

    fn write(
        &mut self,
        compiled: &Compiled,
        former: SetIndex,
        set: SetIndex,
    ) -> Result<Vec<u16>, GatewayError> {
        for (bits, key, value) in compiled.trie(set) {
            self.rules.insert(&Key::new(bits, key), value, 0).map_err(|error| {
                match errno(&error) {
                    Some(libc::ENOSPC | libc::ENOMEM) => GatewayError::RulesFull,
                    _ => failed("write")(error),
                }
            })?;
        }
        let mut closing = Vec::new();
        for protocol in Protocol::ALL {
            for port in 0..=u16::MAX {
                let mut class = compiled.port_class(protocol, port);
                if protocol == Protocol::Tcp
                    && class == PortClass::NO_RULE
                    && self.class(former, protocol, port)? != PortClass::NO_RULE
                {
                    class = PortClass::FLOWS_ONLY;
                    closing.push(port);
                }
                let slot = PortClass::slot(set, protocol.number(), port.to_be_bytes());
                self.classes.set(slot, class.0, 0).map_err(failed("write"))?;
            }
        }
        Ok(closing)
    }
}

/// Waits until every program that runs now has ended: what runs later sees the new set.
///
/// `MEMBARRIER_CMD_GLOBAL` is the kernel's `synchronize_rcu()` (`kernel/sched/membarrier.c`), and
/// XDP programs run within a read-side critical section of RCU.
fn wait_for_programs() -> Result<(), GatewayError> {
    membarrier(MembarrierCommand::Global)
        .map_err(|error| GatewayError::io("wait for the programs that run")(error.into()))
}
