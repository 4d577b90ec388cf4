//! What only shows from outside: real services, the real binary. One binary for all of it, since
//! each file directly under `tests/` links again.

mod services;
mod timescaledb;
mod timescaledb_server;
