//! What the benchmarks' own program is told: which flow each frame shall be of.

/// How one frame becomes packets of many flows. Its words are the one value of an array.
///
/// Offsets are from the start of the frame; ports and addresses are in host byte order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Variation {
    /// Where the last four bytes of the source's address stand.
    pub source_at: u32,
    /// The first source, of
    pub first_source: u32,
    /// so many, of which each packet gets any.
    pub sources: u32,
    /// Where IPv4's checksum stands, which is kept right; 0 without one. TCP's and UDP's are not.
    pub checksum_at: u32,
    /// Where the destination's port stands.
    pub port_at: u32,
    /// The port of most packets.
    pub port: u32,
    /// The port of the others,
    pub other_port: u32,
    /// of which there are so many among 2^32.
    pub others: u32,
    /// Where IPv4's time to live or IPv6's hop limit stands. A frame that was forwarded comes again
    /// as it went out: it is set to [`Self::HOPS`],
    pub hops_at: u32,
    /// and the destination's hardware address to this one: its first four bytes
    pub link_high: u32,
    /// and its last two.
    pub link_low: u32,
}

impl Variation {
    /// Words of the value.
    pub const WORDS: usize = 11;
    /// Of every packet.
    pub const HOPS: u8 = 64;
    /// Every offset is below it: the verifier has to see that.
    pub const MAX_OFFSET: u32 = 0x7f;

    /// As the map holds it.
    #[must_use]
    pub const fn words(self) -> [u32; Self::WORDS] {
        [
            self.source_at,
            self.first_source,
            self.sources,
            self.checksum_at,
            self.port_at,
            self.port,
            self.other_port,
            self.others,
            self.hops_at,
            self.link_high,
            self.link_low,
        ]
    }

    /// From the map.
    #[inline(always)]
    #[must_use]
    pub const fn from_words(words: [u32; Self::WORDS]) -> Self {
        let [
            source_at,
            first_source,
            sources,
            checksum_at,
            port_at,
            port,
            other_port,
            others,
            hops_at,
            link_high,
            link_low,
        ] = words;
        Self {
            source_at,
            first_source,
            sources,
            checksum_at,
            port_at,
            port,
            other_port,
            others,
            hops_at,
            link_high,
            link_low,
        }
    }
}

/// The next of a sequence of numbers that visits all 2^32; the upper bits are the random ones
/// (Numerical Recipes, section 7.1).
#[inline(always)]
#[must_use]
pub const fn next_random(number: u32) -> u32 {
    number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223)
}

/// A random number as one below `limit`.
#[inline(always)]
#[must_use]
pub const fn below(limit: u32, random: u32) -> u32 {
    // The product of two u32, shifted, is a u32.
    ((random as u64 * limit as u64) >> 32) as u32
}

/// IPv4's header checksum after four bytes, two whole words, have changed (RFC 1624, equation 3).
#[inline(always)]
#[must_use]
pub const fn updated_checksum(checksum: u16, before: u32, after: u32) -> u16 {
    let mut sum = !checksum as u32;
    sum += (!before >> 16) + (!before & 0xffff);
    sum += (after >> 16) + (after & 0xffff);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_back() {
        let mut words = [0; Variation::WORDS];
        for (word, value) in words.iter_mut().zip(1..) {
            *word = value;
        }
        assert_eq!(Variation::from_words(words).words(), words);
    }

    #[test]
    fn an_updated_checksum_is_the_computed_one() {
        let checksum = |words: [u16; 4]| {
            let mut sum: u32 = words.iter().map(|word| u32::from(*word)).sum();
            while sum > 0xffff {
                sum = (sum & 0xffff) + (sum >> 16);
            }
            !u16::try_from(sum).unwrap()
        };
        let mut random = 7;
        for _ in 0..10_000 {
            let before = random;
            random = next_random(random);
            let [_, a, b, _] = before.to_be_bytes();
            let rest = u16::from_be_bytes([a, b]);
            let of = |part: u32| {
                let [a, b, c, d] = part.to_be_bytes();
                checksum([rest, 0x4500, u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])])
            };
            assert_eq!(updated_checksum(of(before), before, random), of(random));
        }
    }

    #[test]
    fn random_numbers_stay_below_their_limit_and_reach_it() {
        assert_eq!((below(10, 0), below(10, u32::MAX), below(0, u32::MAX)), (0, 9, 0));
    }
}
