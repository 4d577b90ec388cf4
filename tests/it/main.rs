//! What only shows from outside: real services, the real binary. One binary for all of it, since
//! each file directly under `tests/` links again.

mod parquet;
mod pipeline_file;
mod mqtt;
mod services;
mod timescaledb;
mod timescaledb_server;
