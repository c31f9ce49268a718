//! [`millrace_harness::fuzz::packet::packet`] under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let _ = millrace_harness::fuzz::packet::packet(input);
});
