//! `pipeline run FILE`: runs a pipeline until its sources end or a signal stops it.

use std::path::PathBuf;

use clap::Args;
use pipeline_engine::{Plan, Run};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{Failure, load, runtime};
use crate::{http, status};

/// Run a pipeline. The first SIGINT or SIGTERM stores what is on its way and ends; the second leaves
/// at once.
#[derive(Debug, Args)]
pub struct RunArguments {
    /// The pipeline file.
    file: PathBuf,
}

pub fn run(arguments: RunArguments) -> Result<(), Failure> {
    let plan = load(&arguments.file)?;
    runtime()?.block_on(run_plan(plan))
}

/// Runs a plan with signals, status line and report.
pub async fn run_plan(plan: Plan) -> Result<(), Failure> {
    for warning in plan.warnings() {
        tracing::warn!("{warning}");
    }
    let stop = stop_signal()?;
    let name = plan.name().to_owned();
    tracing::info!("pipeline \"{name}\" starts: {} stages", plan.stages().count());
    let settings = plan.http().clone();
    let listener = http::bind(&settings).await?;
    let run = Run::new(plan);
    let stats = run.stats();
    let answering = {
        let (name, stats) = (name.clone(), stats.clone());
        async move {
            match listener {
                Some(listener) => http::serve(listener, &settings, &name, stats).await,
                None => std::future::pending().await,
            }
        }
    };
    // A task of its own, so that it answers whatever else is being done; dropping the set ends it.
    let mut answers = tokio::task::JoinSet::new();
    answers.spawn(answering);
    let outcome = tokio::select! {
        outcome = run.until(stop) => outcome,
        () = status::show(stats) => unreachable!("the status is shown until it is dropped"),
    };
    drop(answers);
    status::clear();
    let report = outcome.map_err(Failure::failed)?;
    eprint!("pipeline \"{name}\" {report}");
    Ok(())
}

/// Resolves at the first signal; the second ends the process, which is safe: what is not stored was
/// not acknowledged.
fn stop_signal() -> Result<impl Future<Output = ()>, Failure> {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Failure::failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(Failure::failed)?;
    let (first, seen) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        either(&mut interrupt, &mut terminate).await;
        // The run may have ended by itself: then nobody waits for the signal.
        first.send(()).ok();
        either(&mut interrupt, &mut terminate).await;
        eprintln!("stopped at once by a second signal");
        std::process::exit(1);
    });
    Ok(async move {
        if seen.await.is_err() {
            std::future::pending::<()>().await;
        }
    })
}

async fn either(interrupt: &mut Signal, terminate: &mut Signal) {
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}
