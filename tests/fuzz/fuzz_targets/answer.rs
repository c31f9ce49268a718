//! [`millrace_harness::fuzz::answer::answer`] under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| millrace_harness::fuzz::answer::answer(input));
