//! The command `pipeline`: reads arguments, runs one subcommand, turns its outcome into an exit code.
//!
//! No logic of its own: each subcommand is a file under `commands/` that calls the engine. Exit codes:
//! 0 finished, 1 the run failed, 2 the file or the command line is wrong. `pipeline status`, `doctor` and
//! `db status` have their own.

mod cases;
mod commands;
mod db;
mod doctor;
mod http;
mod logging;
mod migrate;
mod reference;
mod reload;
mod service_manager;
mod simulate;
mod slo;
mod soak;
mod status;
mod verify;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use commands::{
    Failure, check, dlq, doctor as diagnose, graph, reconcile, run, schema, spool, stages, status as look, test, top,
};

// Many small messages are many small allocations; the library leaves the choice to its embedder.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Takes device telemetry from where it is sent to where it is queried: nothing lost, nothing twice.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true)]
struct Arguments {
    #[command(flatten)]
    logging: logging::LogArguments,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::RunArguments),
    Check(check::CheckArguments),
    Compare(commands::compare::CompareArguments),
    Db(commands::db::DbArguments),
    Doctor(diagnose::DoctorArguments),
    Graph(graph::GraphArguments),
    Stages(stages::StagesArguments),
    Simulate(simulate::SimulateArgs),
    Dlq(dlq::DlqArguments),
    Migrate(commands::migrate::MigrateArguments),
    Reload(commands::reload::ReloadArguments),
    Replay(commands::replay::ReplayArguments),
    Schema(schema::SchemaArguments),
    Tap(commands::tap::TapArguments),
    Spool(spool::SpoolArguments),
    Reconcile(reconcile::ReconcileArguments),
    Slo(commands::slo::SloArguments),
    Soak(commands::soak::SoakArguments),
    Status(look::StatusArguments),
    Top(top::TopArguments),
    Test(test::TestArguments),
    Verify(commands::verify::VerifyArguments),
    Completions(commands::describe::CompletionsArguments),
    Man(commands::describe::ManArguments),
}

fn main() -> ExitCode {
    // Two crypto providers can be in the graph (the embedded broker brings a second one): rustls then
    // refuses to choose by itself.
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        eprintln!("error: the TLS provider was installed twice");
        return ExitCode::from(1);
    }
    let arguments = Arguments::parse();
    logging::start(&arguments.logging);
    let outcome = match arguments.command {
        Command::Run(arguments) => run::run(arguments),
        Command::Check(arguments) => check::run(arguments),
        Command::Compare(arguments) => commands::compare::run(arguments),
        Command::Db(arguments) => commands::db::run(arguments),
        Command::Doctor(arguments) => diagnose::run(arguments),
        Command::Graph(arguments) => graph::run(arguments),
        Command::Stages(arguments) => stages::run(arguments),
        Command::Simulate(arguments) => commands::simulate::run(arguments),
        Command::Dlq(arguments) => dlq::run(arguments),
        Command::Migrate(arguments) => commands::migrate::run(arguments),
        Command::Reload(arguments) => commands::reload::run(arguments),
        Command::Replay(arguments) => commands::replay::run(arguments),
        Command::Schema(arguments) => schema::run(arguments),
        Command::Tap(arguments) => commands::tap::run(arguments),
        Command::Spool(arguments) => spool::run(arguments),
        Command::Reconcile(arguments) => reconcile::run(arguments),
        Command::Slo(arguments) => commands::slo::run(arguments),
        Command::Soak(arguments) => commands::soak::run(arguments),
        Command::Status(arguments) => look::run(&arguments),
        Command::Top(arguments) => top::run(&arguments),
        Command::Test(arguments) => test::run(arguments),
        Command::Verify(arguments) => commands::verify::run(arguments),
        Command::Completions(arguments) => commands::describe::completions(&arguments, Arguments::command()),
        Command::Man(arguments) => commands::describe::man(&arguments, Arguments::command()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Told(code)) => ExitCode::from(code),
        Err(Failure::Wrong(text)) => {
            eprintln!("{text}");
            ExitCode::from(2)
        }
        Err(Failure::Failed(text)) => {
            eprintln!("{text}");
            ExitCode::from(1)
        }
    }
}
