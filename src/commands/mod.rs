//! One file a subcommand.

pub mod check;
pub mod compare;
pub mod db;
pub mod describe;
pub mod dlq;
pub mod doctor;
pub mod graph;
pub mod migrate;
pub mod reconcile;
pub mod reload;
pub mod replay;
pub mod run;
pub mod schema;
pub mod simulate;
pub mod slo;
pub mod soak;
pub mod spool;
pub mod stages;
pub mod status;
pub mod tap;
pub mod test;
pub mod top;
pub mod verify;
pub mod watched;

use std::io::{self, BufRead, IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use pipeline_engine::{Plan, PlanError};

/// Why a subcommand did not do what it was asked, by exit code. The text is ready to print.
#[derive(Debug)]
pub enum Failure {
    /// The file or the command line is wrong: 2.
    Wrong(String),
    /// The run failed: 1.
    Failed(String),
    /// All is said already: the exit code.
    Told(u8),
}

impl Failure {
    pub(crate) fn failed(error: impl std::fmt::Display) -> Self {
        Self::Failed(format!("error: {error}"))
    }
}

/// Reads and checks a pipeline file, with the stages that this binary knows.
fn load(file: &Path) -> Result<Plan, Failure> {
    load_for(file, io::stderr().is_terminal()).map_err(Failure::Wrong)
}

/// The same; mistakes come as text for a terminal, or for anybody else.
pub fn load_for(file: &Path, is_terminal: bool) -> Result<Plan, String> {
    Plan::load(file, &pipeline_stages::registry()).map_err(|error| match error {
        PlanError::Mistakes(mistakes) => mistakes.render(is_terminal),
        unreadable => format!("error: {unreadable}"),
    })
}

/// The runtime that stages run on: one worker a core.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Failure::failed)
}

/// Runs a pipeline to its end. What blocks a thread then reads from an outside that nobody needs any more.
fn run_to_the_end(run: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    /// For what a disk is just given.
    const LAST_WORK: Duration = Duration::from_secs(2);
    let runtime = runtime()?;
    let outcome = runtime.block_on(run);
    runtime.shutdown_timeout(LAST_WORK);
    outcome
}

/// Asks a person; an error where there is none to ask.
fn confirmed(question: &str) -> Result<bool, Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::Wrong(format!("error: {question} Nobody can be asked here: give --yes")));
    }
    print!("{question} [y/N] ");
    io::stdout().flush().map_err(Failure::failed)?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).map_err(Failure::failed)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
