//! A packet as XDP sees it: reads and writes that the verifier can follow.

use aya_ebpf::programs::XdpContext;
use millrace_common::packet::PacketBytes;

/// A packet and its context.
#[repr(transparent)]
pub struct Packet<'a>(pub &'a XdpContext);

impl Packet<'_> {
    /// The address of `N` bytes at `offset`, if the linear part of the packet has them.
    #[inline(always)]
    fn at<const N: usize>(&self, offset: usize) -> Option<*mut [u8; N]> {
        let start = self.0.data();
        if start + offset + N > self.0.data_end() {
            return None;
        }
        Some((start + offset) as *mut [u8; N])
    }

    /// Overwrites the destination's hardware address.
    #[inline(always)]
    #[must_use]
    pub fn set_destination(&self, mac: [u8; 6]) -> Option<()> {
        let field = self.at::<6>(0)?;
        // SAFETY: `at` has checked the bounds; bytes need no alignment; this program alone has the
        // packet while it runs.
        unsafe { *field = mac };
        Some(())
    }

    /// Overwrites both hardware addresses.
    #[inline(always)]
    #[must_use]
    pub fn set_link(&self, destination: [u8; 6], source: [u8; 6]) -> Option<()> {
        let field = self.at::<12>(0)?;
        let [a, b, c, d, e, f] = destination;
        let [g, h, i, j, k, l] = source;
        // SAFETY: as in `set_destination`.
        unsafe { *field = [a, b, c, d, e, f, g, h, i, j, k, l] };
        Some(())
    }
}

impl PacketBytes for Packet<'_> {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let field = self.at::<N>(offset)?;
        // SAFETY: `at` has checked the bounds; bytes need no alignment and have no invalid values.
        Some(unsafe { *field })
    }
}
