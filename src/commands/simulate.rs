//! `pipeline simulate`: a fleet of devices that publishes to a broker.

use clap::Args;

use super::Failure;

/// To come with the simulator.
#[derive(Debug, Args)]
pub struct SimulateArguments {}

pub fn run(_: SimulateArguments) -> Result<(), Failure> {
    Ok(())
}
