//! Functions that the verifier goes through once, whoever calls them: global ones, since Linux 5.6
//! (`do_check_subprogs` in kernel/bpf/verifier.c). It knows nothing there of a caller, nor here of what a
//! function found out: so only the context goes in, and a number comes out. A function that is not global is gone
//! through again in each state in which it may be called, and a program may take a million instructions in all.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use millrace_common::verdict::Verdict;

use crate::{ingress, related};

macro_rules! apart {
    ($($(#[doc = $doc:literal])+ $name:ident -> $told:ty = $what:path, $read:expr;)+) => {
        $(
            $(#[doc = $doc])+
            #[inline(always)]
            pub fn $name(ctx: &XdpContext) -> $told {
                // SAFETY: the only symbol of this name in the object.
                #[unsafe(no_mangle)]
                #[inline(never)]
                extern "C" fn $name(ctx: *mut xdp_md) -> u32 {
                    $what(&XdpContext::new(ctx)) as u32
                }
                $read($name(ctx.ctx))
            }
        )+
    };
}

apart! {
    /// [`ingress::unaccepted`].
    unaccepted -> Verdict = ingress::unaccepted, verdict;
    /// [`ingress::answer`].
    answered_by_server -> Verdict = ingress::answer, verdict;
    /// [`ingress::is_dropped`].
    is_dropped -> bool = ingress::is_dropped, |number| number != 0;
    /// [`related::fragment`].
    fragment -> Verdict = related::fragment, verdict;
    /// [`related::report`].
    report -> Verdict = related::report, verdict;
}

/// The verdict of a function here. It has that number, which the verifier does not know.
#[inline(always)]
fn verdict(number: u32) -> Verdict {
    Verdict::of_number(number).unwrap_or(Verdict::PassNoFlow)
}
