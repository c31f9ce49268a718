//! [`millrace_tests::fuzz_packet::packet`] under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let _ = millrace_tests::fuzz_packet::packet(input);
});
