#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| escp_fuzz::link::link(bytes));
