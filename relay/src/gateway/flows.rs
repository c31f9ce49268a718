//! The flows that the relay has accepted, told to the programs.

use std::net::SocketAddr;

use aya::maps::{HashMap, MapData, MapError};
use millrace_common::abi::MAX_ESTABLISHED;
use millrace_common::flow::{Address, FlowKey, FlowState};

use super::error::{FlowError, causes, errno};

pub(super) type FlowMap = HashMap<MapData, FlowKey, FlowState>;

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
    established: FlowMap,
    pending: FlowMap,
    state: FlowState,
}

impl FlowTable {
    pub(super) fn new(established: FlowMap, pending: FlowMap, generation: u64) -> Self {
        Self { established, pending, state: FlowState { generation } }
    }

    /// The relay has accepted a connection: `client` is the socket's peer, `server` its local
    /// address. On [`FlowError::Full`] the connection must be closed; its packets may stop coming.
    pub fn accepted(&mut self, client: SocketAddr, server: SocketAddr) -> Result<(), FlowError> {
        match self.established.insert(key(client, server), self.state, 0) {
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
        let pending = self.pending.insert(key, self.state, 0);
        match self.established.remove(&key) {
            // A SYN that was passed has taken it out already.
            Ok(()) | Err(MapError::KeyNotFound) => {}
            Err(error) if errno(&error) == Some(libc::ENOENT) => {}
            Err(error) => return Err(FlowError::Map { reason: causes(&error) }),
        }
        pending.map_err(|error| FlowError::Map { reason: causes(&error) })
    }
}

/// Takes the flows of other generations out of `ESTABLISHED`: a relay that was killed has left
/// them, and they count against its limit. Gives their number.
pub(super) fn forget_former(established: &mut FlowMap, generation: u64) -> Result<u64, MapError> {
    let former: Vec<FlowKey> = established
        .iter()
        .filter_map(|entry| match entry {
            Ok((key, state)) => (state.generation != generation).then_some(Ok(key)),
            Err(error) => Some(Err(error)),
        })
        .collect::<Result<_, _>>()?;
    for key in &former {
        match established.remove(key) {
            Ok(()) | Err(MapError::KeyNotFound) => {}
            Err(error) if errno(&error) == Some(libc::ENOENT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(former.len() as u64)
}

fn key(client: SocketAddr, server: SocketAddr) -> FlowKey {
    let end = |address: SocketAddr| (Address::from(address.ip()), address.port());
    FlowKey::new(end(client), end(server))
}
