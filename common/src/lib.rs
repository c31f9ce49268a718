//! What the XDP programs and userspace both see, in one place.
//!
//! In the order in which a packet meets them: [`packet`] (the one parser), [`plain`] (its short cut for
//! what most packets are), [`link`] (the device that it came by), [`zone`] (the network that it came from),
//! [`rule`] (what may be diverted), [`flow`] (what is diverted), [`fragment`] and [`icmp`] (what belongs to
//! a flow without being a segment), [`verdict`] (what became of it), [`loss`] (what did not get where its
//! verdict sent it), [`trace`] (a packet and its verdict, told), [`abi`] (the maps that carry all this
//! between the kernel and the relay).
//! Apart from them: [`mod@bench`], for the benchmarks' own program.
#![no_std]
// A BPF program has few stack bytes and no calls worth having: what is small is part of its caller.
#![allow(clippy::inline_always)]

pub mod abi;
pub mod bench;
pub mod flow;
pub mod fragment;
pub mod icmp;
pub mod link;
pub mod loss;
pub mod packet;
pub mod plain;
pub mod rule;
pub mod trace;
pub mod verdict;
pub mod zone;
