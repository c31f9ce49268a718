//! A set of packet identifiers that never takes more than a bit for each that there is.

/// Identifiers that are kept one by one, in order; more are kept as bits.
const MOST_SINGLE: usize = 1024;
const WORDS: usize = (1 << 16) / u64::BITS as usize;

/// Packet identifiers, in 8 KiB at most.
#[derive(Debug)]
pub(super) enum PacketIds {
    Single(Vec<u16>),
    Bits { words: Box<[u64; WORDS]>, count: usize },
}

impl Default for PacketIds {
    fn default() -> Self {
        Self::Single(Vec::new())
    }
}

/// The word of an identifier, and its bit there.
const fn place(id: u16) -> (usize, u64) {
    ((id >> 6) as usize, 1 << (id & 63))
}

impl PacketIds {
    pub(super) fn contains(&self, id: u16) -> bool {
        match self {
            Self::Single(ids) => ids.binary_search(&id).is_ok(),
            Self::Bits { words, .. } => {
                let (word, bit) = place(id);
                words[word] & bit != 0
            }
        }
    }

    pub(super) fn insert(&mut self, id: u16) {
        match self {
            Self::Single(ids) => {
                let Err(at) = ids.binary_search(&id) else { return };
                if ids.len() < MOST_SINGLE {
                    return ids.insert(at, id);
                }
                let mut bits = Self::Bits { words: Box::new([0; WORDS]), count: 0 };
                ids.iter().chain([&id]).for_each(|id| bits.insert(*id));
                *self = bits;
            }
            Self::Bits { words, count } => {
                let (word, bit) = place(id);
                *count += usize::from(words[word] & bit == 0);
                words[word] |= bit;
            }
        }
    }

    /// False if it was not there.
    pub(super) fn remove(&mut self, id: u16) -> bool {
        match self {
            Self::Single(ids) => {
                let at = ids.binary_search(&id);
                at.map(|at| ids.remove(at)).is_ok()
            }
            Self::Bits { words, count } => {
                let (word, bit) = place(id);
                let was_there = words[word] & bit != 0;
                words[word] &= !bit;
                *count -= usize::from(was_there);
                if *count == 0 {
                    *self = Self::default();
                }
                was_there
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Single(ids) => ids.len(),
            Self::Bits { count, .. } => *count,
        }
    }

    /// What they take beside this.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Single(ids) => ids.capacity() * size_of::<u16>(),
            Self::Bits { .. } => WORDS * size_of::<u64>(),
        }
    }

    /// Takes no more than is needed.
    pub(super) fn shrink_to_fit(&mut self) {
        if let Self::Bits { words, count: ..=MOST_SINGLE } = self {
            let is_in = |id: &u16| words[place(*id).0] & place(*id).1 != 0;
            *self = Self::Single((0..=u16::MAX).filter(is_in).collect());
        }
        if let Self::Single(ids) = self {
            ids.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn all_that_there_are_take_a_bit_each() {
        let mut ids = PacketIds::default();
        for id in 1..=u16::MAX {
            ids.insert(id);
            assert!(ids.bytes() <= 8 << 10, "{id}: {}", ids.bytes());
        }
        assert_eq!(ids.len(), 65_535);
        for id in 1..=u16::MAX {
            assert!(ids.remove(id) && !ids.contains(id) && !ids.remove(id));
        }
        assert_eq!((ids.len(), ids.bytes()), (0, 0));
    }

    #[test]
    fn it_is_a_set_however_it_is_kept() {
        let (mut ids, mut model, mut random) = (PacketIds::default(), BTreeSet::new(), 1_u32);
        for round in 0..20_000 {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let id = u16::try_from((random >> 16) % 3000).expect("small");
            // More come at first, then more go.
            if (random >> 8) % 10 < if round < 10_000 { 7 } else { 3 } {
                ids.insert(id);
                model.insert(id);
            } else {
                assert_eq!(ids.remove(id), model.remove(&id));
            }
            if round % 1000 == 0 {
                ids.shrink_to_fit();
            }
            assert_eq!((ids.len(), ids.contains(id)), (model.len(), model.contains(&id)));
        }
        ids.shrink_to_fit();
        assert!((0..3000).all(|id| ids.contains(id) == model.contains(&id)));
    }
}
