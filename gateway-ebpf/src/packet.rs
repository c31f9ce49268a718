//! A packet as XDP sees it: reads and writes that the verifier can follow.

use core::arch::asm;

use aya_ebpf::helpers::generated::{
    bpf_xdp_adjust_head, bpf_xdp_adjust_tail, bpf_xdp_get_buff_len,
};
use aya_ebpf::programs::XdpContext;
use millrace_common::packet::{ETHERNET_LENGTH, PacketBytes, TAG_LENGTH};

/// A packet and its context.
#[repr(transparent)]
pub struct Packet<'a>(pub &'a XdpContext);

impl Packet<'_> {
    /// The address of `N` bytes at `offset`, if the linear part of the packet has them.
    #[inline(always)]
    pub fn at<const N: usize>(&self, offset: usize) -> Option<*mut [u8; N]> {
        let start = self.0.data();
        if start + offset + N > self.0.data_end() {
            return None;
        }
        Some((start + offset) as *mut [u8; N])
    }

    /// The same of `N` words.
    #[inline(always)]
    fn at_words<const N: usize>(&self, offset: usize) -> Option<*const [u8; 4]> {
        let start = self.0.data();
        if start + offset + N * 4 > self.0.data_end() {
            return None;
        }
        Some((start + offset) as *const [u8; 4])
    }

    /// Overwrites the destination's hardware address, and takes the VLAN tags off: the relay's
    /// device has no VLANs. `None`, with nothing changed, of a packet that has no such tags.
    #[inline(always)]
    #[must_use]
    pub fn readdress(&self, tags: usize, destination: &[u8; 6]) -> Option<()> {
        if tags > 0 {
            let source = self.load::<6>(6)?;
            // SAFETY: the context is this program's own; every later access is checked anew, for
            // the packet begins elsewhere now.
            let moved = unsafe { bpf_xdp_adjust_head(self.0.ctx, (tags * TAG_LENGTH) as i32) };
            if moved != 0 {
                return None;
            }
            return self.set_link(*destination, source);
        }
        let field = self.at::<6>(0)?.cast::<u8>();
        let (start, end) = (destination.first_chunk()?, destination.last_chunk()?);
        // SAFETY: `at` has checked the bounds; this program alone has the packet while it runs.
        unsafe {
            set_word(field, u32::from_ne_bytes(*start));
            set_half(field.add(4), u16::from_ne_bytes(*end));
        }
        Some(())
    }

    /// Sends the packet back where it came from, with these words in place of everything behind its
    /// Ethernet header, which has no tags. `None` of a packet that is shorter, or that the kernel does
    /// not let be cut: then nothing is changed.
    #[inline(always)]
    #[must_use]
    pub fn replace<const N: usize>(&self, words: &[u32; N]) -> Option<()> {
        let (destination, source) = (self.load::<6>(0)?, self.load::<6>(6)?);
        // SAFETY: the context is this program's own.
        let length = unsafe { bpf_xdp_get_buff_len(self.0.ctx) } as usize;
        let wanted = ETHERNET_LENGTH + N * 4;
        let surplus = length.checked_sub(wanted)?;
        // SAFETY: as above; every later access is checked anew.
        if unsafe { bpf_xdp_adjust_tail(self.0.ctx, -(surplus as i32)) } != 0 {
            return None;
        }
        let field = self.at_words::<N>(ETHERNET_LENGTH)?.cast::<u8>().cast_mut();
        for (index, word) in words.iter().enumerate() {
            // SAFETY: `at_words` has checked the bounds; this program alone has the packet while it
            // runs.
            unsafe { set_word(field.add(index * 4), *word) };
        }
        self.set_link(source, destination)
    }

    /// Overwrites both hardware addresses.
    #[inline(always)]
    #[must_use]
    pub fn set_link(&self, destination: [u8; 6], source: [u8; 6]) -> Option<()> {
        let field = self.at::<12>(0)?.cast::<u8>();
        let [a, b, c, d, e, f] = destination;
        let [g, h, i, j, k, l] = source;
        // SAFETY: as in `readdress`.
        unsafe {
            set_word(field, u32::from_ne_bytes([a, b, c, d]));
            set_word(field.add(4), u32::from_ne_bytes([e, f, g, h]));
            set_word(field.add(8), u32::from_ne_bytes([i, j, k, l]));
        }
        Some(())
    }
}

impl PacketBytes for Packet<'_> {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let field = self.at::<N>(offset)?.cast::<u8>();
        let mut bytes = [0; N];
        let mut done = 0;
        while done + 8 <= N {
            // SAFETY: `at` has checked the bounds.
            let double = unsafe { double(field.add(done)) };
            bytes[done..done + 8].copy_from_slice(&double.to_ne_bytes());
            done += 8;
        }
        while done + 4 <= N {
            // SAFETY: `at` has checked the bounds.
            let word = unsafe { word::<0>(field.add(done)) };
            bytes[done..done + 4].copy_from_slice(&word.to_ne_bytes());
            done += 4;
        }
        if done + 2 <= N {
            // SAFETY: as above.
            let half = unsafe { half(field.add(done)) };
            bytes[done..done + 2].copy_from_slice(&half.to_ne_bytes());
            done += 2;
        }
        if done < N {
            // SAFETY: as above.
            bytes[done] = unsafe { *field.add(done) };
        }
        Some(bytes)
    }

    #[inline(always)]
    fn words<const N: usize>(&self, offset: usize) -> Option<[u32; N]> {
        let field = self.at_words::<N>(offset)?.cast::<u8>();
        let mut words = [0; N];
        // One by one, for an instruction's offset is a constant.
        macro_rules! each {
            ($($index:literal)*) => {
                $(if $index < N {
                    // SAFETY: `at_words` has checked the bounds.
                    words[$index] = unsafe { word::<{ 4 * $index }>(field) };
                })*
            };
        }
        const { assert!(N <= 16) };
        each!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
        Some(words)
    }
}

// The kernel allows what Rust can't say: access to words of the packet wherever they stand. The BPF
// target knows no unaligned access and would go byte by byte, which was a tenth of what a packet of
// an established flow cost.

/// Reads eight bytes of the packet by one instruction.
///
/// # Safety
/// As [`word`].
#[inline(always)]
unsafe fn double(field: *const u8) -> u64 {
    let double: u64;
    // SAFETY: as in `word`.
    unsafe {
        asm!(
            "{double} = *(u64 *)({field} + 0)",
            field = in(reg) field,
            double = out(reg) double,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    double
}

/// Reads four bytes of the packet by one instruction, `AT` bytes behind `field`.
///
/// # Safety
/// They lie within the packet.
#[inline(always)]
unsafe fn word<const AT: usize>(field: *const u8) -> u32 {
    let word: u32;
    // SAFETY: reads what the caller vouches for, and does nothing else.
    unsafe {
        asm!(
            "{word} = *(u32 *)({field} + {at})",
            at = const AT,
            field = in(reg) field,
            word = out(wreg) word,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    word
}

/// Reads two bytes of the packet by one instruction.
///
/// # Safety
/// As [`word`].
#[inline(always)]
unsafe fn half(field: *const u8) -> u16 {
    let half: u64;
    // SAFETY: as in `word`.
    unsafe {
        asm!(
            "{half} = *(u16 *)({field} + 0)",
            field = in(reg) field,
            half = out(reg) half,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    half as u16
}

/// Writes four bytes of the packet by one instruction.
///
/// # Safety
/// They lie within the packet, and nobody else has it.
#[inline(always)]
unsafe fn set_word(field: *mut u8, word: u32) {
    // SAFETY: writes what the caller vouches for, and does nothing else.
    unsafe {
        asm!(
            "*(u32 *)({field} + 0) = {word}",
            field = in(reg) field,
            word = in(reg) u64::from(word),
            options(nostack, preserves_flags),
        );
    }
}

/// Writes two bytes of the packet by one instruction.
///
/// # Safety
/// As [`set_word`].
#[inline(always)]
unsafe fn set_half(field: *mut u8, half: u16) {
    // SAFETY: as in `set_word`.
    unsafe {
        asm!(
            "*(u16 *)({field} + 0) = {half}",
            field = in(reg) field,
            half = in(reg) u64::from(half),
            options(nostack, preserves_flags),
        );
    }
}
