//! What only shows from outside: real services, the real binary. One binary for all of it, since
//! each file directly under `tests/` links again.

mod end_to_end;
mod mqtt;
mod parquet;
mod pipeline_file;
mod process;
mod services;
mod timescaledb;
mod timescaledb_server;
