//! What all stages that talk to PostgreSQL share: the connection, and whose an error is.

mod connect;
pub(crate) mod fault;
mod tls;

pub(crate) use self::connect::{Database, Link, Place};
