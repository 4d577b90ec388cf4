//! SQL with a reason for each statement: printed for whoever wants to look first, or run.

use std::fmt;

/// What is to be done in a database. Printed, it runs as it stands with `psql -v ON_ERROR_STOP=1`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Script {
    /// In order.
    pub steps: Vec<Step>,
    /// What is not done and why, and what can be done instead: sentences.
    pub notes: Vec<String>,
    /// What is lost for good when it runs, for the question to a person: `12 chunks of "telemetry"`.
    pub drops: Vec<String>,
}

/// A statement, or several that belong together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What it does: lower case, no full stop.
    pub why: String,
    /// Without a semicolon at its end.
    pub sql: String,
}

impl Script {
    /// Adds a statement.
    pub(super) fn step(&mut self, why: impl Into<String>, sql: impl Into<String>) {
        self.steps.push(Step { why: why.into(), sql: sql.into() });
    }

    /// Adds statements that are done together or not at all.
    pub(super) fn together(&mut self, why: impl Into<String>, statements: &[String]) {
        self.step(why, format!("BEGIN;\n{};\nCOMMIT", statements.join(";\n")));
    }

    /// Adds what is not done.
    pub(super) fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }
}

impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for note in &self.notes {
            for line in note.lines() {
                writeln!(f, "-- NOTE: {line}")?;
            }
        }
        for Step { why, sql } in &self.steps {
            // A name with a line break in it must not end the comment.
            writeln!(f, "-- {}\n{sql};", why.replace(['\n', '\r'], " "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_reads_as_sql_with_its_reasons() {
        let mut script = Script::default();
        script.note("Nothing\nelse.");
        script.step("statistics\nare made", "ANALYZE \"t\"");
        script.together("a table", &["CREATE TABLE a ()".to_owned(), "CREATE TABLE b ()".to_owned()]);
        let expected = "-- NOTE: Nothing\n-- NOTE: else.\n-- statistics are made\nANALYZE \"t\";\n\
                        -- a table\nBEGIN;\nCREATE TABLE a ();\nCREATE TABLE b ();\nCOMMIT;\n";
        assert_eq!(script.to_string(), expected);
    }
}
