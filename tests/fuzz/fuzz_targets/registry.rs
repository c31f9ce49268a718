//! [`millrace_tests::fuzz_records::registry`] under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| millrace_tests::fuzz_records::registry(input));
