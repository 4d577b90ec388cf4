//! `pipeline run FILE`: runs a pipeline until its sources end or a signal stops it. SIGHUP reads the file again.

use std::path::PathBuf;

use clap::Args;
use pipeline_engine::Plan;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use super::{Failure, load, run_to_the_end};
use crate::http::Server;
use crate::reload::{Next, Prepared, Reloader, Reloads, warn_of};
use crate::{service_manager, status};

/// Run a pipeline. The first SIGINT or SIGTERM stores what is on its way and ends; the second leaves
/// at once. SIGHUP puts the file as it is then in its place, as `pipeline reload` does.
#[derive(Debug, Args)]
pub struct RunArguments {
    /// The pipeline file.
    file: PathBuf,
}

pub fn run(arguments: RunArguments) -> Result<(), Failure> {
    let plan = load(&arguments.file)?;
    warn_of(&plan);
    let reloader = Reloader::new(arguments.file, &plan);
    let outcome = run_to_the_end(run_versions(plan, reloader));
    status::clear();
    outcome
}

/// Runs a plan that was made of no file.
pub async fn run_plan(plan: Plan) -> Result<(), Failure> {
    let stop = stop_signal()?;
    let version = Prepared::of(plan);
    let mut server = Server::bind(&version.http, Reloads::none()).await?;
    server.show(&version);
    let outcome = run_once(version, stopped(stop)).await;
    status::clear();
    outcome
}

/// Runs the plan, and then each version of the file that takes its place.
async fn run_versions(plan: Plan, mut reloader: Reloader) -> Result<(), Failure> {
    let stop = stop_signal()?;
    reload_at_sighup(reloader.reloads.clone())?;
    let mut version = Prepared::of(plan);
    let mut server = Server::bind(&version.http, reloader.reloads.clone()).await?;
    service_manager::tell_ready();
    let mut granted = None;
    loop {
        server.show(&version);
        if let Some(granted) = granted.take() {
            reloader.tell(granted);
        }
        let mut next: Option<Next> = None;
        run_once(version, async {
            tokio::select! {
                () = stopped(stop.clone()) => {}
                found = reloader.next() => next = Some(found),
            }
        })
        .await?;
        let Some(found) = next else { return Ok(()) };
        if let Some(moved) = found.server {
            server = moved;
        }
        (version, granted) = (found.version, Some(found.granted));
    }
}

/// Runs a plan with status line and report, until `stop` resolves.
async fn run_once(version: Prepared, stop: impl Future<Output = ()> + Send) -> Result<(), Failure> {
    let Prepared { run, name, slo, .. } = version;
    let stats = run.stats();
    tracing::info!("pipeline \"{name}\" starts: {} stages", stats.stages.len());
    let outcome = tokio::select! {
        outcome = run.until(stop) => outcome,
        () = status::show(stats) => unreachable!("the status is shown until it is dropped"),
        () = slo.watch() => unreachable!("objectives are watched until that is dropped"),
    };
    let report = outcome.map_err(Failure::failed)?;
    status::above(|| eprint!("pipeline \"{name}\" {report}"));
    Ok(())
}

/// Turns true at the first signal; the second ends the process, which is safe: what is not stored was
/// not acknowledged.
fn stop_signal() -> Result<watch::Receiver<bool>, Failure> {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Failure::failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(Failure::failed)?;
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(async move {
        either(&mut interrupt, &mut terminate).await;
        // The run may have ended by itself: then nobody waits for the signal.
        stop.send_replace(true);
        either(&mut interrupt, &mut terminate).await;
        eprintln!("stopped at once by a second signal");
        std::process::exit(1);
    });
    Ok(stopped)
}

async fn stopped(mut stop: watch::Receiver<bool>) {
    if stop.wait_for(|stop| *stop).await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn reload_at_sighup(reloads: Reloads) -> Result<(), Failure> {
    let mut hang_up = signal(SignalKind::hangup()).map_err(Failure::failed)?;
    tokio::spawn(async move {
        while hang_up.recv().await.is_some() {
            // What becomes of it is logged.
            reloads.request().await.ok();
        }
    });
    Ok(())
}

async fn either(interrupt: &mut Signal, terminate: &mut Signal) {
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}
