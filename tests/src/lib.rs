//! Network-namespace harness and peers for the end-to-end tests, the demo and the benchmarks.

pub mod netns;
