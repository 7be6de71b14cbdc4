//! `metadata_xml`: see crates/fuzzing/src/targets.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| (thinmap_fuzzing::by_name("metadata_xml").run)(input));
