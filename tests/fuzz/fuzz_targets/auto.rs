//! [`millrace_harness::fuzz::protocols::auto`] under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| millrace_harness::fuzz::protocols::auto(input));
