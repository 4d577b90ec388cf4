//! `pipeline simulate`: a fleet of simulated devices, or a recorded data set, published to a broker.
//!
//! A flag wins over the configuration file, the file over the defaults; [`SimulateArgs::resolve`]
//! makes one [`Settings`] of the three, and everything that a flag or a line of the file alone can
//! show to be wrong is found there.

mod args;
mod file;
mod values;

pub use args::{Broker, Settings, SimulateArgs};
