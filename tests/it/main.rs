//! What only shows from outside: real services, the real binary. One binary for all of it, since
//! each file directly under `tests/` links again.

// The lint's exception for tests covers test functions, not what they call.
#![allow(clippy::unwrap_used, reason = "a test that can't go on should stop")]

mod browser;
mod cases;
mod command_line;
mod compare;
mod dashboards;
mod db;
mod delivery;
mod docs;
mod doctor;
mod end_to_end;
mod examples;
mod exec;
mod http;
mod http_source;
mod kinesis;
mod lookup_tables;
mod migrate;
mod mqtt;
mod nab;
mod oracle;
mod outside;
mod packages;
mod parquet;
mod pipeline_file;
mod ports;
mod process;
mod prometheus;
mod reload;
mod s3_source;
mod schema;
mod secrets;
mod services;
mod shipped;
mod slo;
mod soak;
mod spools;
mod systemd;
mod tap;
mod timescaledb;
mod tools;
mod verify;
mod walk;
