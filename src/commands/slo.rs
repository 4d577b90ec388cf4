//! `pipeline slo`: how a running pipeline keeps what its file asks for, target against actual.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use secrecy::SecretString;

use super::watched::Watched;
use super::{Failure, load, runtime};
use crate::slo::{self, show};

/// How a running pipeline keeps the objectives of its file (`[slo]`): target against actual, over the last hour.
///
/// Exits with 0 if none is missed, 1 if one is, 2 if nobody answers or the file is wrong.
#[derive(Debug, Args)]
pub struct SloArguments {
    /// The pipeline file, whose `[http]` says where it answers; or that address: http://127.0.0.1:9600.
    #[arg(default_value = "http://127.0.0.1:9600", value_name = "FILE|ADDRESS")]
    place: String,
    /// Measure queries and dashboards too, by running those that are shipped in the database of the file.
    #[arg(long)]
    measure: bool,
    /// How often each is run.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// Print one JSON object on one line.
    #[arg(long)]
    json: bool,
    /// The token that an address wants; better in the environment, where no list of processes shows it.
    #[arg(long, env = "PIPELINE_TOKEN", hide_env_values = true)]
    token: Option<SecretString>,
}

pub fn run(arguments: SloArguments) -> Result<(), Failure> {
    let address = address(&arguments.place);
    let plan = match &address {
        Some(_) if arguments.measure => {
            let text = "error: --measure needs the pipeline file, which names the database";
            return Err(Failure::Wrong(text.to_owned()));
        }
        Some(_) => None,
        None => Some(load(&PathBuf::from(&arguments.place))?),
    };
    let watched = match (&plan, address) {
        (Some(plan), _) => Watched::of(plan)?,
        (None, address) => Watched::by_url(&address.unwrap_or_default(), arguments.token)?,
    };
    let measured = plan.as_ref().filter(|_| arguments.measure).map(|plan| (plan, arguments.runs));
    let report = match runtime()?.block_on(slo::look(&watched, measured)) {
        Ok(report) => report,
        Err(error) => {
            println!("unreachable: {error}");
            return Err(Failure::Told(2));
        }
    };
    if arguments.json {
        println!("{}", show::json(&report));
    } else {
        print!("{}", show::text(&report));
    }
    if report.missed().next().is_some() { Err(Failure::Told(1)) } else { Ok(()) }
}

/// A file can be called anything, but hardly like this.
fn address(place: &str) -> Option<String> {
    let is_url = place.starts_with("http://") || place.starts_with("https://");
    let is_socket = place.parse::<SocketAddr>().is_ok();
    if is_socket { Some(format!("http://{place}")) } else { is_url.then(|| place.to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_told_from_a_file() {
        assert_eq!(address("127.0.0.1:9600").as_deref(), Some("http://127.0.0.1:9600"));
        assert_eq!(address("https://h:1/").as_deref(), Some("https://h:1/"));
        assert_eq!(["pipelines/iot.toml", "iot.toml", "localhost"].map(address), [None, None, None]);
    }
}
