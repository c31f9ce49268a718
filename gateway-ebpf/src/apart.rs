//! Functions that the verifier goes through once, whoever calls them: global ones, since Linux 5.6
//! (`do_check_subprogs` in kernel/bpf/verifier.c). It knows nothing there of a caller, nor here of what a
//! function found out: so only the context goes in, and a number comes out. A function that is not global is gone
//! through again in each state in which it may be called, and a program may take a million instructions in all.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use millrace_common::verdict::Verdict;

use crate::{ingress, related};

/// The verdict of a function here, whose number the verifier does not know to be one.
#[inline(always)]
pub fn told(number: u32) -> Verdict {
    Verdict::of_number(number).unwrap_or(Verdict::PassNoFlow)
}

macro_rules! apart {
    ($($(#[doc = $doc:literal])+ $name:ident = $what:path;)+) => {
        $(
            $(#[doc = $doc])+
            // SAFETY: the only symbol of this name in the object.
            #[unsafe(no_mangle)]
            #[inline(never)]
            pub extern "C" fn $name(ctx: *mut xdp_md) -> u32 {
                $what(&XdpContext::new(ctx)) as u32
            }
        )+
    };
}

apart! {
    /// [`ingress::unaccepted`].
    unaccepted = ingress::unaccepted;
    /// [`ingress::answer`].
    answered_by_server = ingress::answer;
    /// [`ingress::is_dropped`].
    is_dropped = ingress::is_dropped;
    /// [`related::fragment`].
    fragment = related::fragment;
    /// [`related::report`].
    report = related::report;
}
