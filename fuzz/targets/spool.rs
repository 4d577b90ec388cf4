//! See `pipeline_stages::fuzzing`.

#![no_main]

libfuzzer_sys::fuzz_target!(init: pipeline_fuzz::write_seeds("spool"), |input: &[u8]| {
    pipeline_stages::fuzzing::check("spool", input)
});
