//! See `pipeline_stages::fuzzing`.

#![no_main]

libfuzzer_sys::fuzz_target!(init: pipeline_fuzz::write_seeds("records"), |input: &[u8]| {
    pipeline_stages::fuzzing::check("records", input)
});
