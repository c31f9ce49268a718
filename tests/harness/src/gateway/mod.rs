//! The XDP programs, without a relay behind them: with one frame, or loaded and with traffic.

pub mod counted_traffic;
pub mod fake_relay;
pub mod odd_traffic;
pub mod test_run;
