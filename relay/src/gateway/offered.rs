//! The ways to clients on which it is counted what becomes of SYNs that are offered to the relay.

use std::borrow::BorrowMut;
use std::path::Path;

use aya::Ebpf;
use aya::maps::{HashMap, Map, MapData, MapError};
use millrace_common::abi::{self, Offers, map};

use super::error::{GatewayError, errno};
use super::{open_map, unusable};

/// The two maps that know of them.
pub(super) struct Offered<T> {
    offers: HashMap<T, abi::Path, Offers>,
    closed: HashMap<T, abi::Path, u32>,
}

impl Offered<MapData> {
    /// Those of a loaded instance.
    pub(super) fn open(pins: &Path) -> Result<Self, GatewayError> {
        let open = |name| Ok::<_, GatewayError>(Map::HashMap(open_map(pins, name)?));
        Ok(Self {
            offers: HashMap::try_from(open(map::OFFERS)?).map_err(unusable(map::OFFERS))?,
            closed: HashMap::try_from(open(map::CLOSED_PATHS)?)
                .map_err(unusable(map::CLOSED_PATHS))?,
        })
    }
}

impl<'a> Offered<&'a mut MapData> {
    /// Those of an object.
    pub(super) fn of(ebpf: &'a mut Ebpf) -> Result<Self, GatewayError> {
        let (mut offers, mut closed) = (None, None);
        for (name, present) in ebpf.maps_mut() {
            match name {
                map::OFFERS => offers = Some(present),
                map::CLOSED_PATHS => closed = Some(present),
                _ => {}
            }
        }
        let there = "load_object has checked the maps";
        Ok(Self {
            offers: HashMap::try_from(offers.expect(there)).map_err(unusable(map::OFFERS))?,
            closed: HashMap::try_from(closed.expect(there)).map_err(unusable(map::CLOSED_PATHS))?,
        })
    }
}

impl<T: BorrowMut<MapData>> Offered<T> {
    /// Has it counted on the ways to clients by these devices, and by no others.
    pub(super) fn count(&mut self, ifindexes: &[u32]) -> Result<(), GatewayError> {
        let failed = || GatewayError::bpf::<MapError>(format!("fill the map {}", map::OFFERS));
        let ways = |ifindex: &u32| [4, 6].map(|family| abi::Path { ifindex: *ifindex, family });
        let wanted: Vec<abi::Path> = ifindexes.iter().flat_map(ways).collect();
        let present: Vec<abi::Path> =
            self.offers.keys().collect::<Result<_, _>>().map_err(failed())?;
        for path in present.iter().filter(|path| !wanted.contains(path)) {
            self.offers.remove(path).map_err(failed())?;
            match self.closed.remove(path) {
                Ok(()) | Err(MapError::KeyNotFound) => {}
                Err(error) if errno(&error) == Some(libc::ENOENT) => {}
                Err(error) => return Err(unusable(map::CLOSED_PATHS)(error)),
            }
        }
        for path in wanted.iter().filter(|path| !present.contains(path)) {
            self.offers.insert(path, Offers::default(), 0).map_err(failed())?;
        }
        Ok(())
    }
}
