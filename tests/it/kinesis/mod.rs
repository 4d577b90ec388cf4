//! The Kinesis source and sink against an emulator of Kinesis; what that does not play, a [`door`] before it does.

mod door;
mod leases;
mod packed;
mod reading;
mod sink;
pub mod stream;
mod whole;
mod workers;
