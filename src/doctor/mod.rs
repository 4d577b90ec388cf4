//! All that a pipeline needs, looked at: its file, this machine's disk, every service, its own address.
//!
//! The stages look at their own outsides ([`pipeline_engine::Run::examine`]), all at the same time; what belongs to no
//! stage is here.

mod data_dir;
mod file;
mod filesystem;
mod http;
pub mod show;

use std::path::Path;
use std::time::Duration;

use pipeline_engine::{Finding, Plan, Run, Verdict};

/// How it is in all, in the words and numbers of monitoring plugins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Status {
    Ok,
    Warning,
    Critical,
    /// Nothing could be looked at.
    Unknown,
}

impl Status {
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Warning => 1,
            Self::Critical => 2,
            Self::Unknown => 3,
        }
    }

    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Warning => "WARNING",
            Self::Critical => "CRITICAL",
            Self::Unknown => "UNKNOWN",
        }
    }
}

/// What was looked at together: a stage by its name, or a part of this machine.
pub struct Part {
    pub name: String,
    /// The type of a stage; empty for what is none.
    pub type_name: &'static str,
    pub findings: Vec<Finding>,
}

impl Part {
    fn of_this_machine(name: &str, findings: Vec<Finding>) -> Self {
        Self { name: name.to_owned(), type_name: "", findings }
    }
}

/// All that was found.
pub struct Diagnosis {
    /// The pipeline's name, or its file's where that makes no pipeline.
    pub pipeline: String,
    pub parts: Vec<Part>,
    /// The file could not be read, so there was nothing to look at.
    pub is_unread: bool,
}

impl Diagnosis {
    pub fn status(&self) -> Status {
        if self.is_unread {
            return Status::Unknown;
        }
        match self.findings().map(|finding| finding.verdict).max() {
            None | Some(Verdict::Pass) => Status::Ok,
            Some(Verdict::Warn) => Status::Warning,
            Some(Verdict::Fail) => Status::Critical,
        }
    }

    pub fn findings(&self) -> impl Iterator<Item = &Finding> {
        self.parts.iter().flat_map(|part| &part.findings)
    }

    pub fn count(&self, verdict: Verdict) -> usize {
        self.findings().filter(|finding| finding.verdict == verdict).count()
    }
}

/// Looks at everything; each stage, the disk and the address for `limit` at most.
pub async fn examine(file: &Path, limit: Duration) -> Diagnosis {
    let (plan, findings, is_unread) = file::load(file);
    let mut parts = vec![Part::of_this_machine("file", findings)];
    let Some(plan) = plan else {
        return Diagnosis { pipeline: file.display().to_string(), parts, is_unread };
    };
    let pipeline = plan.name().to_owned();
    let address = http::examine(plan.http().clone(), pipeline.clone());
    let (disk, plan) = look_at_disk(plan, limit).await;
    let (stages, (address, runs)) = match plan {
        Some(plan) => tokio::join!(Run::new(plan).examine(limit), address),
        // The disk hangs, and the plan with it: the address is all that is left.
        None => (Vec::new(), address.await),
    };
    let disk = data_dir::excuse_the_running_pipeline(disk, runs);
    parts.push(Part::of_this_machine("data directory", disk));
    parts.extend(stages.into_iter().filter(|stage| !stage.findings.is_empty()).map(|stage| Part {
        name: stage.stage,
        type_name: stage.type_name,
        findings: stage.findings,
    }));
    parts.push(Part::of_this_machine("http", address));
    Diagnosis { pipeline, parts, is_unread }
}

/// Disks block, and those behind a network for good.
async fn look_at_disk(plan: Plan, limit: Duration) -> (Vec<Finding>, Option<Plan>) {
    let looking = tokio::task::spawn_blocking(move || (data_dir::examine(&plan), plan));
    match tokio::time::timeout(limit, looking).await {
        Ok(Ok((findings, plan))) => (findings, Some(plan)),
        Ok(Err(panic)) => (vec![data_dir::not_looked_at(&format!("the check itself failed: {panic}"))], None),
        Err(_) => {
            let waited = format!("the disk gave no answer within {} s", limit.as_secs());
            (vec![data_dir::not_looked_at(&waited)], None)
        }
    }
}
