//! `hostile_metadata`: see crates/fuzzing/src/targets.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| (thinmap_fuzzing::by_name("hostile_metadata").run)(input));
