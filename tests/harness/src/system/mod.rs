//! What the harness wants of the machine that it runs on.

pub mod clock;
pub mod cpu;
pub mod ended;
pub mod freeze;
pub mod interrupt;
pub mod meter;
pub mod panics;
pub mod paths;
pub mod privilege;
pub mod process;
pub mod shim;
