//! The flows that the relay has accepted, told to the programs.

use std::borrow::{Borrow, BorrowMut};
use std::net::SocketAddr;
use std::path::Path;

use aya::Ebpf;
use aya::maps::{HashMap, Map, MapData, MapError};
use millrace_common::abi::{MAX_ESTABLISHED, map};
use millrace_common::flow::{Address, FlowKey, FlowState, PendingState, ShortKey};
use millrace_common::zone::{Zone, Zones};

use super::error::{FlowError, GatewayError, causes, errno};
use super::{open_map, unusable};

/// Flows that are on their way, or were just closed.
pub(super) type Pending = HashMap<MapData, FlowKey, PendingState>;

pub(super) fn open_pending(pins: &Path) -> Result<Pending, GatewayError> {
    let map = Map::LruHashMap(open_map(pins, map::PENDING)?);
    HashMap::try_from(map).map_err(unusable(map::PENDING))
}

/// The flows that a relay has accepted: a map for each family, because the kernel takes the longer
/// the longer its key is.
#[derive(Debug)]
pub struct Established<T> {
    ipv4: HashMap<T, ShortKey, FlowState>,
    ipv6: HashMap<T, FlowKey, FlowState>,
}

impl Established<MapData> {
    /// Those of a loaded instance.
    pub(super) fn open(pins: &Path) -> Result<Self, GatewayError> {
        let open = |name| open_map(pins, name).map(Map::HashMap);
        let (ipv4, ipv6) = (open(map::ESTABLISHED_IPV4)?, open(map::ESTABLISHED_IPV6)?);
        Ok(Self {
            ipv4: HashMap::try_from(ipv4).map_err(unusable(map::ESTABLISHED_IPV4))?,
            ipv6: HashMap::try_from(ipv6).map_err(unusable(map::ESTABLISHED_IPV6))?,
        })
    }
}

impl<'a> Established<&'a mut MapData> {
    /// Those of an object; `None` if it is not one of ours.
    pub fn of(ebpf: &'a mut Ebpf) -> Option<Self> {
        let (mut ipv4, mut ipv6) = (None, None);
        for (name, present) in ebpf.maps_mut() {
            match name {
                map::ESTABLISHED_IPV4 => ipv4 = HashMap::try_from(present).ok(),
                map::ESTABLISHED_IPV6 => ipv6 = HashMap::try_from(present).ok(),
                _ => {}
            }
        }
        Some(Self { ipv4: ipv4?, ipv6: ipv6? })
    }
}

impl<T: Borrow<MapData>> Established<T> {
    /// Whose a flow is.
    pub fn get(&self, key: &FlowKey) -> Result<FlowState, MapError> {
        match key.short() {
            Some(short) => self.ipv4.get(&short, 0),
            None => self.ipv6.get(key, 0),
        }
    }

    /// One for each flow. While flows come and go it may meet one twice.
    pub(super) fn keys(&self) -> impl Iterator<Item = Result<(), MapError>> + '_ {
        let ipv4 = self.ipv4.keys().map(|key| key.map(|_| ()));
        ipv4.chain(self.ipv6.keys().map(|key| key.map(|_| ())))
    }

    /// Every flow. While flows come and go it may meet one twice.
    pub fn iter(&self) -> impl Iterator<Item = Result<(FlowKey, FlowState), MapError>> + '_ {
        let ipv4 = self.ipv4.iter().map(|entry| entry.map(|(key, state)| (key.into(), state)));
        ipv4.chain(self.ipv6.iter())
    }
}

impl<T: BorrowMut<MapData>> Established<T> {
    /// Takes a flow up.
    pub fn insert(&mut self, key: FlowKey, state: FlowState) -> Result<(), MapError> {
        match key.short() {
            Some(short) => self.ipv4.insert(short, state, 0),
            None => self.ipv6.insert(key, state, 0),
        }
    }

    /// Takes a flow out; that it is not there is as good.
    pub fn remove(&mut self, key: &FlowKey) -> Result<(), MapError> {
        let removed = match key.short() {
            Some(short) => self.ipv4.remove(&short),
            None => self.ipv6.remove(key),
        };
        match removed {
            Err(MapError::KeyNotFound) => Ok(()),
            Err(error) if errno(&error) == Some(libc::ENOENT) => Ok(()),
            result => result,
        }
    }
}

/// One thread's handle on the flow maps.
///
/// A flow's life:
///
/// ```text
///           SYN (ingress)      accepted            closed
///  (none) ───────────► PENDING ───────► ESTABLISHED ─────► PENDING ──► (evicted)
/// ```
///
/// The entry in `PENDING` stays when the flow is accepted, and is there again before the flow
/// leaves `ESTABLISHED`: the programs ask the two maps one after the other, and a flow that was in
/// neither for an instant would have a packet sent to the server, which would reset the connection.
#[derive(Debug)]
pub struct FlowTable {
    established: Established<MapData>,
    pending: Pending,
    generation: u64,
    zones: Zones,
}

impl FlowTable {
    pub(super) fn open(pins: &Path, generation: u64, zones: Zones) -> Result<Self, GatewayError> {
        let (established, pending) = (Established::open(pins)?, open_pending(pins)?);
        Ok(Self { established, pending, generation, zones })
    }

    /// The relay has accepted a connection: `client` is the socket's peer, `server` its local
    /// address. On [`FlowError::Full`] the connection must be closed; its packets may stop coming.
    pub fn accepted(&mut self, client: SocketAddr, server: SocketAddr) -> Result<(), FlowError> {
        let key = key(client, server);
        // Its SYN has left it there, unless a flood has evicted that.
        let zone = self.zone(|| self.pending.get(&key, 0).map(|it| (it.generation, it.zone)));
        self.establish(key, zone)
    }

    /// The relay opens a connection itself: what `server` sends from its address to `client` will be
    /// diverted. As [`Self::accepted`] otherwise.
    pub fn opened(&mut self, server: SocketAddr, client: SocketAddr) -> Result<(), FlowError> {
        let zone = if self.zones.are_one() { Zone::ANY } else { Zone::UNKNOWN };
        self.establish(key(server, client), zone)
    }

    /// The zone of a flow, as one of the maps has it.
    fn zone(&self, found: impl FnOnce() -> Result<(u64, Zone), MapError>) -> Zone {
        if self.zones.are_one() {
            return Zone::ANY;
        }
        match found() {
            Ok((generation, zone)) if generation == self.generation => zone,
            _ => Zone::UNKNOWN,
        }
    }

    fn establish(&mut self, key: FlowKey, zone: Zone) -> Result<(), FlowError> {
        match self.established.insert(key, FlowState { generation: self.generation, zone }) {
            Ok(()) => Ok(()),
            Err(error) if errno(&error) == Some(libc::E2BIG) => {
                Err(FlowError::Full { limit: MAX_ESTABLISHED })
            }
            Err(error) => Err(FlowError::Map { reason: causes(&error) }),
        }
    }

    /// The relay has closed a connection. Its last segments still find the relay's stack.
    pub fn closed(&mut self, client: SocketAddr, server: SocketAddr) -> Result<(), FlowError> {
        let key = key(client, server);
        // Without it the flow's last segments go astray, but the flow must leave the table anyway.
        let zone = self.zone(|| self.established.get(&key).map(|it| (it.generation, it.zone)));
        let state = PendingState { generation: self.generation, offered_ns: 0, zone };
        let pending = self.pending.insert(key, state, 0);
        // A SYN that was passed may have taken it out already.
        self.established.remove(&key).map_err(|error| FlowError::Map { reason: causes(&error) })?;
        pending.map_err(|error| FlowError::Map { reason: causes(&error) })
    }
}

/// Takes the flows of other generations out of `ESTABLISHED`: a relay that was killed has left
/// them, and they count against its limit. Gives their number.
pub(super) fn forget_former(pins: &Path, generation: u64) -> Result<u64, GatewayError> {
    let failed = || GatewayError::bpf::<MapError>("forget the flows of former relays");
    let mut established = Established::open(pins)?;
    let former: Vec<FlowKey> = established
        .iter()
        .filter(|entry| entry.as_ref().map_or(true, |(_, state)| state.generation != generation))
        .map(|entry| entry.map(|(key, _)| key))
        .collect::<Result<_, _>>()
        .map_err(failed())?;
    former.iter().try_for_each(|key| established.remove(key)).map_err(failed())?;
    Ok(former.len() as u64)
}

fn key(client: SocketAddr, server: SocketAddr) -> FlowKey {
    let end = |address: SocketAddr| (Address::from(address.ip()), address.port());
    FlowKey::new(end(client), end(server))
}
