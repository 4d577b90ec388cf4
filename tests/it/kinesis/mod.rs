//! The Kinesis source and sink against a real Kinesis API.

mod door;
mod packed;
mod reading;
mod sink;
pub mod stream;
mod whole;
