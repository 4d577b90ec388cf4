//! One look at how a running pipeline keeps its objectives, and at its database where that is asked for.

use pipeline_engine::Plan;

use super::measure::{database, measure};
use super::{Line, Objective, Report};
use crate::commands::watched::Watched;

/// Asks the pipeline, and measures its queries and dashboards so many times, by its plan.
///
/// # Errors
/// In words: nobody answers, or not as a pipeline of this version does.
pub async fn look(watched: &Watched, measured: Option<(&Plan, u32)>) -> Result<Report, String> {
    let text = watched.ask("/slo").await?;
    let unknown = |error| format!("{} answers otherwise than a pipeline of this version: {error}", watched.url);
    let mut report: Report = serde_json::from_str(&text).map_err(unknown)?;
    if let Some((plan, runs)) = measured {
        report.replace(lines(plan, runs).await);
    }
    Ok(report)
}

/// What the database takes, by its own lines.
async fn lines(plan: &Plan, runs: u32) -> [Line; 2] {
    let objectives = plan.objectives();
    let why = match database(plan) {
        None => "no sink of the file stores in a database".to_owned(),
        Some(mut database) => match measure(database.as_mut(), runs).await {
            Ok(measurement) => return Line::of_measurement(&measurement, objectives.query, objectives.dashboard),
            Err(why) => why,
        },
    };
    [(Objective::Query, objectives.query), (Objective::Dashboard, objectives.dashboard)]
        .map(|(objective, within)| Line::unmeasured(objective, within, &why))
}
