//! The pipeline that is soaked: the one that runs, or one that is started for it.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use pipeline_engine::Plan;
use tokio::process::{Child, Command};
use tokio::time::Instant;

use crate::commands::Failure;
use crate::commands::watched::Watched;
use crate::slo::{Report, look};

/// How long a pipeline may take until it answers.
const START: Duration = Duration::from_secs(60);
/// Longer than it takes to store what is on its way.
const STOP: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(200);

/// See the module.
pub struct Instance {
    /// `None`: it answers nowhere, so that what it measures of itself is not known.
    watched: Option<Watched>,
    /// Killed when it is dropped.
    child: Option<Child>,
}

impl Instance {
    /// # Errors
    /// In words: it does not run, and can't be started.
    pub async fn find_or_start(file: &Path, plan: &Plan) -> Result<Self, String> {
        if plan.http().listen.is_none() {
            return Ok(Self { watched: None, child: None });
        }
        let watched = Watched::of(plan).map_err(words)?;
        if watched.ask("/readyz").await.is_ok() {
            return Ok(Self { watched: Some(watched), child: None });
        }
        eprintln!("soak: nobody answers at {}: the pipeline is started, and stopped afterwards", watched.url);
        let program = std::env::current_exe().map_err(|error| format!("this program's own place: {error}"))?;
        let mut child = Command::new(program)
            .arg("run")
            .arg(file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("the pipeline can't be started: {error}"))?;
        let until = Instant::now() + START;
        while let Err(error) = watched.ask("/readyz").await {
            if let Ok(Some(status)) = child.try_wait() {
                return Err(format!("the pipeline was started, and ended with {status}"));
            }
            if Instant::now() >= until {
                return Err(format!("the pipeline was started, and is not ready: {error}"));
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(Self { watched: Some(watched), child: Some(child) })
    }

    /// What it says of its objectives; `None` if it does not.
    pub async fn report(&self) -> Option<Report> {
        match look(self.watched.as_ref()?, None).await {
            Ok(report) => Some(report),
            Err(error) => {
                eprintln!("soak: what the pipeline measures of itself is not known: {error}");
                None
            }
        }
    }

    /// Stops the pipeline if it was started here: it stores what is on its way.
    pub async fn stop(mut self) {
        let Some(mut child) = self.child.take() else { return };
        let asked = match child.id() {
            Some(id) => Command::new("kill").args(["-s", "TERM", &id.to_string()]).status().await.is_ok(),
            None => false,
        };
        if !asked || tokio::time::timeout(STOP, child.wait()).await.is_err() {
            eprintln!("soak: the pipeline did not stop by itself and is killed; nothing of it is lost by that");
        }
    }
}

fn words(failure: Failure) -> String {
    match failure {
        Failure::Wrong(text) | Failure::Failed(text) => text,
        Failure::Told(_) => "it can't be asked".to_owned(),
    }
}
