//! The pipeline file: its mistakes and warnings.

use std::path::Path;

use pipeline_engine::{Finding, Plan, PlanError, Verdict};

/// The plan that the file makes, what there is to say of it, and whether the file could not even be read.
pub fn load(file: &Path) -> (Option<Plan>, Vec<Finding>, bool) {
    let fail = |found: String, fix: Option<String>| Finding { check: "file", verdict: Verdict::Fail, found, fix };
    match Plan::load(file, &pipeline_stages::registry()) {
        Ok(plan) => {
            let found = format!("{} is valid, {} stages", file.display(), plan.stages().count());
            let mut findings = vec![Finding { check: "file", verdict: Verdict::Pass, found, fix: None }];
            findings.extend(plan.warnings().iter().map(|warning| Finding {
                check: "file",
                verdict: Verdict::Warn,
                found: warning.clone(),
                fix: None,
            }));
            (Some(plan), findings, false)
        }
        Err(PlanError::Mistakes(mistakes)) => {
            let findings = mistakes.all.iter().map(|mistake| {
                let place = match mistakes.line_and_column(mistake) {
                    Some((line, column)) => format!("{}:{line}:{column}", mistakes.file),
                    None => mistakes.file.clone(),
                };
                fail(format!("{place}: {}", mistake.message), mistake.hint.clone())
            });
            (None, findings.collect(), false)
        }
        Err(unreadable) => {
            let fix = "Name a pipeline file that the user who asks may read.".to_owned();
            (None, vec![fail(unreadable.to_string(), Some(fix))], true)
        }
    }
}
