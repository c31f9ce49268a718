//! Where the kernel's structures have their members, by the kernel's own description of its types
//! (`Documentation/bpf/btf.rst`).

use std::collections::HashMap;

/// Where the kernel shows it.
pub(super) const KERNEL: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
/// Header of the description, before types and names.
const HEADER: usize = 24;
/// Name, kind and size of a type; name, type and place of a member.
const TYPE: usize = 12;

const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;

/// The structures of a description.
pub(super) struct Structures<'a> {
    names: &'a [u8],
    /// Members of each structure and union, by the number of its type.
    members: HashMap<u32, (bool, &'a [u8])>,
    /// What a type is another name of, or the same with a qualifier.
    same: HashMap<u32, u32>,
    /// Numbers of the structures by their names.
    numbers: HashMap<&'a [u8], u32>,
}

impl<'a> Structures<'a> {
    /// Reads a description; `None` of one that is cut or of another kind.
    pub(super) fn of(bytes: &'a [u8]) -> Option<Self> {
        let header = bytes.get(..HEADER)?;
        if u16::from_le_bytes(*header.first_chunk()?) != MAGIC {
            return None;
        }
        let length = usize::try_from(word(header, 4)?).ok()?;
        let section = |at: usize| -> Option<&'a [u8]> {
            let start = length.checked_add(usize::try_from(word(header, at)?).ok()?)?;
            let size = usize::try_from(word(header, at + 4)?).ok()?;
            bytes.get(start..start.checked_add(size)?)
        };
        let (mut rest, names) = (section(8)?, section(16)?);
        let mut structures =
            Self { names, members: HashMap::new(), same: HashMap::new(), numbers: HashMap::new() };
        for number in 1.. {
            if rest.is_empty() {
                break;
            }
            let (head, tail) = rest.split_at_checked(TYPE)?;
            let (name, info) = (word(head, 0)?, word(head, 4)?);
            let (kind, count) = (info >> 24 & 0x1f, usize::try_from(info & 0xffff).ok()?);
            let (body, tail) = tail.split_at_checked(body_size(kind, count)?)?;
            if matches!(kind, 8..=11 | 18) {
                structures.same.insert(number, word(head, 8)?);
            } else if matches!(kind, KIND_STRUCT | KIND_UNION) {
                structures.members.insert(number, (info >> 31 != 0, body));
                if kind == KIND_STRUCT {
                    structures.numbers.entry(structures.name(name)?).or_insert(number);
                }
            }
            rest = tail;
        }
        Some(structures)
    }

    /// Where a structure has a member, in bytes from its start. `path` is the names of structure, member,
    /// member of that, and so on.
    pub(super) fn place(&self, path: &[&str]) -> Option<u32> {
        let (structure, members) = path.split_first()?;
        let mut number = *self.numbers.get(structure.as_bytes())?;
        let mut place = 0;
        for member in members {
            let (bits, kind) = self.member(number, member.as_bytes())?;
            (place, number) = (place + bits, kind);
        }
        (place % 8 == 0).then_some(place / 8)
    }

    /// Place in bits and type of a member, which may be one of a member without a name.
    fn member(&self, number: u32, wanted: &[u8]) -> Option<(u32, u32)> {
        if let Some(same) = self.same.get(&number) {
            return self.member(*same, wanted);
        }
        let (with_bits, members) = *self.members.get(&number)?;
        members.chunks_exact(TYPE).find_map(|member| {
            let (name, kind, place) = (word(member, 0)?, word(member, 4)?, word(member, 8)?);
            // The upper byte is the size of a member that is counted in bits.
            let place = if with_bits { place & 0x00ff_ffff } else { place };
            match self.name(name)? {
                name if name == wanted => Some((place, kind)),
                [] => self.member(kind, wanted).map(|(more, kind)| (place + more, kind)),
                _ => None,
            }
        })
    }

    fn name(&self, at: u32) -> Option<&'a [u8]> {
        self.names.get(usize::try_from(at).ok()?..)?.split(|byte| *byte == 0).next()
    }
}

/// Bytes that follow the head of a type.
fn body_size(kind: u32, count: usize) -> Option<usize> {
    Some(match kind {
        // Integers, variables and tags.
        1 | 14 | 17 => 4,
        // Arrays.
        3 => 12,
        // Structures, unions, sections and large enumerations.
        KIND_STRUCT | KIND_UNION | 15 | 19 => count * 12,
        // Enumerations and the parameters of functions.
        6 | 13 => count * 8,
        // Pointers, forward declarations, other names, qualifiers, functions, floats and tags of types.
        2 | 7..=12 | 16 | 18 => 0,
        _ => return None,
    })
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `struct outer { int a; struct { int b; other c; }; }`, `struct inner { int d, e; }`, `typedef struct
    /// inner other`.
    fn sample() -> Vec<u8> {
        let names = b"\0outer\0inner\0other\0a\0b\0c\0d\0e\0";
        let at = |name: &str| {
            let wanted = format!("\0{name}\0");
            let found = names.windows(wanted.len()).position(|part| part == wanted.as_bytes());
            u32::try_from(found.unwrap() + 1).unwrap()
        };
        let structure = |name: u32, members: u32, size: u32| [name, 4 << 24 | members, size];
        let types: Vec<u32> = [
            &[0, 1 << 24, 4, 32][..],
            &structure(at("inner"), 2, 8),
            &[at("d"), 1, 0, at("e"), 1, 32],
            &structure(0, 2, 12),
            &[at("b"), 1, 0, at("c"), 5, 32],
            &structure(at("outer"), 2, 16),
            &[at("a"), 1, 0, 0, 3, 32],
            &[at("other"), 8 << 24, 2],
        ]
        .concat();
        let types: Vec<u8> = types.iter().flat_map(|word| word.to_le_bytes()).collect();
        let (types_size, names_size) =
            [types.len(), names.len()].map(|size| u32::try_from(size).unwrap()).into();
        let header = [24, 0, types_size, types_size, names_size].map(u32::to_le_bytes).concat();
        [&[0x9f, 0xeb, 1, 0][..], &header, &types, names].concat()
    }

    #[test]
    fn members_are_found_also_in_members_without_a_name() {
        let bytes = sample();
        let structures = Structures::of(&bytes).unwrap();
        assert_eq!(structures.place(&["outer", "a"]), Some(0));
        assert_eq!(structures.place(&["outer", "b"]), Some(4));
        assert_eq!(structures.place(&["outer", "c", "e"]), Some(12));
        assert_eq!(structures.place(&["outer", "d"]), None);
        assert_eq!(structures.place(&["another", "a"]), None);
    }

    #[test]
    fn what_is_cut_is_refused() {
        let bytes = sample();
        for length in 0..bytes.len() {
            assert!(Structures::of(&bytes[..length]).is_none(), "{length}");
        }
        assert!(Structures::of(&[0; 64]).is_none());
    }

    #[test]
    fn the_kernel_describes_its_devices() {
        let Ok(bytes) = std::fs::read(KERNEL) else {
            eprintln!("SKIPPED the_kernel_describes_its_devices: no {KERNEL}");
            return;
        };
        let structures = Structures::of(&bytes).unwrap();
        assert!(structures.place(&["net_device", "ifindex"]).is_some());
        assert!(structures.place(&["net_device", "nd_net", "net"]).is_some());
        assert!(structures.place(&["net", "ns", "inum"]).is_some());
    }
}
