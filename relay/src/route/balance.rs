//! Computes which servers have more clients than the allotment would give them, and how many each relay
//! moves.
//!
//! Pure arithmetic on the state of the table: every relay computes for itself, and relays that have read the
//! same records get the same result.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{RelayId, ServerId, ServiceId};

use super::ServerState;
use super::allotment::{load, load_with_one_more};
use super::policy::Policy;
use super::table::Table;

/// A live server, as the balance sees it.
#[derive(Clone, Debug)]
pub(super) struct Load {
    pub(super) server: ServerId,
    pub(super) capacity: u32,
    /// True if it has all labels that the service prefers.
    pub(super) preferred: bool,
    /// All its clients that count.
    pub(super) clients: u32,
    /// The connected ones, by relay. The others cannot move.
    pub(super) connected: BTreeMap<RelayId, u32>,
}

impl Load {
    fn movable(&self) -> u32 {
        self.connected.values().sum()
    }
}

/// A service's live servers. Looks at all clients of the table.
pub(super) fn loads(table: &Table, policy: &Policy, service: ServiceId) -> Vec<Load> {
    let mut connected: BTreeMap<ServerId, BTreeMap<RelayId, u32>> = BTreeMap::new();
    for (relay, server) in table.connected() {
        if table.servers.get(server).service == service {
            *connected.entry(server).or_default().entry(relay).or_default() += 1;
        }
    }
    let live = table
        .servers
        .all()
        .filter(|(_, of)| of.service == service && of.state() == ServerState::Live);
    live.map(|(server, of)| Load {
        server,
        capacity: of.capacity(),
        preferred: !policy.prefer.is_empty() && of.has_labels(&policy.prefer),
        clients: of.clients,
        connected: connected.remove(&server).unwrap_or_default(),
    })
    .collect()
}

/// How many clients each server should give up, at most `most` in total. Clients move one after another from
/// the fullest server to the one that would get the next client, as long as that makes the two loads more
/// even. If the service prefers servers and one of these is live, clients of others move there, however
/// loaded it is; the allotment does the same.
pub(super) fn moves(loads: &[Load], most: u32) -> BTreeMap<ServerId, u32> {
    let preferring = loads.iter().any(|load| load.preferred);
    let is_target = |of: &Load| of.preferred || !preferring;
    let mut clients: Vec<u32> = loads.iter().map(|load| load.clients).collect();
    let mut movable: Vec<u32> = loads.iter().map(Load::movable).collect();
    let wanting = |index: usize, clients: &[u32]| {
        (load_with_one_more(clients[index], loads[index].capacity), index)
    };
    let giving = |index: usize, clients: &[u32]| {
        let of = &loads[index];
        (!is_target(of), load(clients[index], of.capacity), index)
    };
    let mut targets: BTreeSet<_> = (0..loads.len())
        .filter(|index| is_target(&loads[*index]))
        .map(|index| wanting(index, &clients))
        .collect();
    let mut sources: BTreeSet<_> = (0..loads.len())
        .filter(|index| movable[*index] > 0)
        .map(|index| giving(index, &clients))
        .collect();
    let mut moves = BTreeMap::new();
    for _ in 0..most {
        let (Some((wanted, to)), Some((outside, given, from))) =
            (targets.first().copied(), sources.last().copied())
        else {
            break;
        };
        if !outside && wanted >= given {
            break;
        }
        for index in [from, to] {
            targets.remove(&wanting(index, &clients));
            sources.remove(&giving(index, &clients));
        }
        clients[from] -= 1;
        movable[from] -= 1;
        clients[to] += 1;
        for index in [from, to] {
            if is_target(&loads[index]) {
                targets.insert(wanting(index, &clients));
            }
            if movable[index] > 0 {
                sources.insert(giving(index, &clients));
            }
        }
        *moves.entry(loads[from].server).or_default() += 1;
    }
    moves
}

/// This relay's share of `moves` clients of a server: in proportion to its connections, where the remainder
/// goes to the relays with the largest fractions. The shares of all relays add up to `moves`.
pub(super) fn share(moves: u32, connected: &BTreeMap<RelayId, u32>, me: RelayId) -> u32 {
    let all = connected.values().copied().map(u64::from).sum::<u64>();
    if all == 0 {
        return 0;
    }
    let moves = u64::from(moves).min(all);
    let part = |count: u32| (moves * u64::from(count) / all, moves * u64::from(count) % all);
    let given: u64 = connected.values().map(|count| part(*count).0).sum();
    let mut remainders: Vec<_> = connected
        .iter()
        .map(|(relay, count)| (std::cmp::Reverse(part(*count).1), relay.0))
        .collect();
    remainders.sort_unstable();
    let left = usize::try_from(moves - given).expect("fewer than there are relays");
    let more = remainders[..left].iter().any(|(_, relay)| *relay == me.0);
    let own = connected.get(&me).map_or(0, |count| part(*count).0) + u64::from(more);
    u32::try_from(own).expect("no more than the clients of a server")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn load_of(server: u16, capacity: u32, clients: u32) -> Load {
        let connected = [(RelayId(0), clients)].into();
        Load { server: ServerId(server), capacity, preferred: false, clients, connected }
    }

    fn of(moves: &BTreeMap<ServerId, u32>) -> Vec<(u16, u32)> {
        moves.iter().map(|(server, count)| (server.0, *count)).collect()
    }

    #[test]
    fn servers_that_have_joined_get_their_share() {
        let loads = [load_of(0, 1, 100), load_of(1, 1, 100), load_of(2, 1, 0), load_of(3, 2, 0)];
        assert_eq!(of(&moves(&loads, 1000)), [(0, 60), (1, 60)]);
        assert_eq!(of(&moves(&loads, 5)), [(0, 2), (1, 3)], "as many as may move");
        assert_eq!(of(&moves(&[load_of(0, 1, 3), load_of(1, 1, 2)], 10)), []);
        assert_eq!(of(&moves(&[load_of(0, 1, 4), load_of(1, 1, 2)], 10)), [(0, 1)]);
    }

    #[test]
    fn who_is_away_does_not_move() {
        let mut full = load_of(0, 1, 10);
        full.connected = [(RelayId(0), 1), (RelayId(1), 1)].into();
        assert_eq!(of(&moves(&[full, load_of(1, 1, 0)], 10)), [(0, 2)]);
    }

    #[test]
    fn preferred_servers_get_all() {
        let mut loads = [load_of(0, 1, 10), load_of(1, 1, 5), load_of(2, 1, 0)];
        loads[1].preferred = true;
        loads[2].preferred = true;
        assert_eq!(of(&moves(&loads, 100)), [(0, 10)]);
        loads[0].clients = 0;
        loads[0].connected.clear();
        assert_eq!(of(&moves(&loads, 100)), [(1, 2)]);
    }

    proptest! {
        /// It ends, and then no single move would make two servers more even.
        #[test]
        fn the_end_is_even(servers in prop::collection::vec((1..5_u32, 0..40_u32), 1..8)) {
            let mut loads: Vec<_> = servers
                .iter()
                .zip(0..)
                .map(|((capacity, clients), server)| load_of(server, *capacity, *clients))
                .collect();
            let before: u32 = loads.iter().map(|load| load.clients).sum();
            let mut rounds = 0;
            loop {
                let round = moves(&loads, 7);
                if round.is_empty() {
                    break;
                }
                rounds += 1;
                prop_assert!(rounds <= 100);
                for (server, count) in round {
                    for _ in 0..count {
                        let to = (0..loads.len())
                            .min_by_key(|to| load_with_one_more(loads[*to].clients, loads[*to].capacity))
                            .unwrap();
                        for (index, change) in [(server.index(), -1), (to, 1)] {
                            let clients = loads[index].clients.checked_add_signed(change).unwrap();
                            loads[index].clients = clients;
                            loads[index].connected = [(RelayId(0), clients)].into();
                        }
                    }
                }
            }
            prop_assert_eq!(before, loads.iter().map(|load| load.clients).sum::<u32>());
            for (from, to) in loads.iter().flat_map(|from| loads.iter().map(move |to| (from, to))) {
                prop_assert!(
                    from.clients == 0
                        || load_with_one_more(to.clients, to.capacity) >= load(from.clients, from.capacity)
                );
            }
        }

        #[test]
        fn shares_are_the_whole(
            counts in prop::collection::vec(0..50_u32, 1..6),
            wanted in 0..200_u32,
        ) {
            let connected: BTreeMap<_, _> =
                (0..).map(RelayId).zip(counts.iter().copied()).collect();
            let shares: Vec<u32> =
                connected.keys().map(|relay| share(wanted, &connected, *relay)).collect();
            prop_assert_eq!(shares.iter().sum::<u32>(), wanted.min(counts.iter().sum()));
            prop_assert!(shares.iter().zip(&counts).all(|(share, count)| share <= count));
            prop_assert_eq!(share(wanted, &connected, RelayId(99)), 0);
        }
    }
}
