//! [`millrace_tests::fuzz_protocols::websocket`] under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| millrace_tests::fuzz_protocols::websocket(input));
