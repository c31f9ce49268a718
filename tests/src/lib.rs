//! Network-namespace harness and peers for the end-to-end tests, the demo and the benchmarks.

pub mod client;
pub mod cluster;
pub mod cpu;
pub mod fake_relay;
pub mod faulty;
pub mod flood;
pub mod frames;
pub mod fuzz;
pub mod instance;
pub mod interrupt;
pub mod kafka;
pub mod load;
pub mod netns;
pub mod ordinary;
pub mod paths;
pub mod payload;
pub mod pktgen_kernel;
pub mod privilege;
pub mod process;
pub mod raw;
pub mod reader;
pub mod run;
pub mod server_check;
pub mod test_run;
pub mod traffic;
pub mod wire;
