//! [`millrace_harness::fuzz::records::config`] under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| millrace_harness::fuzz::records::config(input));
