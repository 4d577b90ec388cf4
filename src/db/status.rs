//! `pipeline db status`: one line that says it all, then the tables and what is to be done.

use std::time::Duration;

use pipeline_engine::terminal::{printable, printable_json};
use pipeline_engine::time::{format_age, format_us};
use pipeline_engine::{Finding, Verdict, now_us};
use pipeline_stages::db::{BackupRecord, DatabaseStatus, TableFinding, TableStatus};
use serde_json::json;

use super::size;
use crate::commands::watched::{aligned, compact};
use crate::doctor::Status;

/// How all databases of a pipeline are.
pub struct Overview {
    pub pipeline: String,
    pub databases: Vec<DatabaseStatus>,
    pub last_backup: Option<BackupRecord>,
    /// Of the last backup.
    pub backup: Finding,
}

/// What there is to say of the last backup.
pub fn backup_finding(last: Option<&BackupRecord>, age_max: Duration) -> Finding {
    let fix =
        "Run `pipeline db backup`, and see that it runs once an hour (ops/systemd/pipeline-backup.timer).".to_owned();
    let finding = |verdict, found, fix| Finding { check: "backup", verdict, found, fix };
    let Some(last) = last else {
        return finding(Verdict::Warn, "no backup was made by this machine".to_owned(), Some(fix));
    };
    let age = Duration::from_micros(u64::try_from(now_us().saturating_sub(last.taken_at_us)).unwrap_or(0));
    let found = format!("\"{}\" in {} is {} old, {}", last.name, last.place, format_age(age), size(last.bytes));
    if age > age_max { finding(Verdict::Warn, found, Some(fix)) } else { finding(Verdict::Pass, found, None) }
}

impl Overview {
    fn findings(&self) -> impl Iterator<Item = (&str, &Finding)> {
        let of_tables = self.databases.iter().flat_map(|database| {
            database.findings.iter().map(|TableFinding { about, finding }| {
                (if about.is_empty() { database.database.as_str() } else { about.as_str() }, finding)
            })
        });
        of_tables.chain([("", &self.backup)])
    }

    pub fn status(&self) -> Status {
        match self.findings().map(|(_, finding)| finding.verdict).max() {
            None | Some(Verdict::Pass) => Status::Ok,
            Some(Verdict::Warn) => Status::Warning,
            Some(Verdict::Fail) => Status::Critical,
        }
    }

    fn summary(&self) -> String {
        let count = |verdict| self.findings().filter(|(_, finding)| finding.verdict == verdict).count();
        let (failed, warned) = (count(Verdict::Fail), count(Verdict::Warn));
        let checks = failed + warned + count(Verdict::Pass);
        let tables: usize = self.databases.iter().map(|database| database.tables.len()).sum();
        format!(
            "{}: pipeline \"{}\", {tables} table{}, {checks} checks: {failed} failed, {warned} warning{}",
            self.status().word(),
            self.pipeline,
            if tables == 1 { "" } else { "s" },
            if warned == 1 { "" } else { "s" }
        )
    }

    pub fn text(&self) -> String {
        let mut text = format!("{}\n", self.summary());
        for database in &self.databases {
            let bytes = size(u64::try_from(database.bytes).unwrap_or(0));
            text.push_str(&format!("\n{}: {}, {bytes}\n", printable(&database.database), database.server));
            for without in &database.without {
                text.push_str(&format!("  without {without}\n"));
            }
            text.push_str(&format!("\n{}\n", tables(&database.tables)));
            for (number, query) in database.slow_queries.iter().flatten().enumerate() {
                if number == 0 {
                    text.push_str("\nthe slowest statements, by their mean time\n");
                }
                let shown = printable(&query.query);
                text.push_str(&format!("{:>9.1} ms  {:>7} times  {shown}\n", query.mean_ms, query.calls));
            }
        }
        text.push('\n');
        for (about, finding) in self.findings() {
            let word = match finding.verdict {
                Verdict::Pass => "PASS",
                Verdict::Warn => "WARN",
                Verdict::Fail => "FAIL",
            };
            let about = if about.is_empty() { String::new() } else { format!("{}: ", printable(about)) };
            text.push_str(&format!("{word}  {}  {about}{}\n", finding.check, printable(&finding.found)));
            if let Some(fix) = &finding.fix {
                text.push_str(&format!("      fix: {}\n", printable(fix)));
            }
        }
        text
    }

    /// All on one line.
    pub fn json(&self) -> String {
        let status = self.status();
        let last = self.last_backup.as_ref().map(|last| {
            json!({ "name": last.name, "place": last.place, "taken_at": format_us(last.taken_at_us), "bytes": last.bytes,
                "rows": last.rows })
        });
        let all = json!({
            "pipeline": self.pipeline,
            "status": status,
            "exit_code": status.exit_code(),
            "summary": self.summary(),
            "databases": self.databases,
            "last_backup": last,
            "backup": self.backup,
        });
        printable_json(all.to_string())
    }
}

fn tables(tables: &[TableStatus]) -> String {
    let head =
        ["table", "sink", "oldest", "newest", "kept for", "rows about", "size", "chunks"].map(str::to_owned).to_vec();
    let row = |table: &TableStatus| {
        let second =
            |time: &Option<String>| time.as_ref().map_or("-".to_owned(), |time| time.chars().take(19).collect());
        let chunks = match table.chunks {
            Some(chunks) if table.compressed_chunks > 0 => format!("{chunks} ({} compressed)", table.compressed_chunks),
            Some(chunks) => chunks.to_string(),
            None => "-".to_owned(),
        };
        vec![
            table.table.clone(),
            table.sink.clone(),
            second(&table.oldest),
            second(&table.newest),
            table.retention.clone().unwrap_or_else(|| "good".to_owned()),
            if table.exists { compact(table.rows_estimate as f64) } else { "missing".to_owned() },
            size(u64::try_from(table.bytes).unwrap_or(0)),
            chunks,
        ]
    };
    let rows: Vec<Vec<String>> = std::iter::once(head).chain(tables.iter().map(row)).collect();
    aligned(&rows, 5).join("\n")
}
