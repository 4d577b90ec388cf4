//! A diagnosis as text for people and as JSON for programs. Text of the outside moves nothing in either.

use console::style;
use pipeline_engine::terminal::{printable, printable_json};
use pipeline_engine::{Finding, Verdict};
use serde_json::{Value, json};

use super::{Diagnosis, Part, Status};
use crate::commands::watched::aligned;

/// One line that says it all, as monitoring plugins do, then a line a check, with its fix below it.
pub fn text(diagnosis: &Diagnosis, styled: bool) -> String {
    let heads: Vec<Vec<String>> =
        diagnosis.parts.iter().flat_map(|part| part.findings.iter().map(|finding| cells(part, finding))).collect();
    let mut text = format!("{}\n\n", summary(diagnosis));
    for (head, finding) in aligned(&heads, 3).into_iter().zip(diagnosis.findings()) {
        let verdict = word(finding.verdict);
        let rest = head.strip_prefix(verdict).unwrap_or(&head);
        text.push_str(&format!("{}{rest}\n", coloured(verdict, finding.verdict, styled)));
        text.push_str(&format!("      {}\n", printable(&finding.found)));
        if let Some(fix) = &finding.fix {
            text.push_str(&format!("      fix: {}\n", printable(fix)));
        }
    }
    text
}

fn cells(part: &Part, finding: &Finding) -> Vec<String> {
    let name =
        if part.type_name.is_empty() { part.name.clone() } else { format!("{} ({})", part.name, part.type_name) };
    vec![word(finding.verdict).to_owned(), printable(&name).into_owned(), finding.check.to_owned()]
}

fn summary(diagnosis: &Diagnosis) -> String {
    let status = diagnosis.status();
    let name = printable(&diagnosis.pipeline);
    if status == Status::Unknown {
        return format!("{}: \"{name}\" can't be read", status.word());
    }
    let (failed, warned) = (diagnosis.count(Verdict::Fail), diagnosis.count(Verdict::Warn));
    let all = failed + warned + diagnosis.count(Verdict::Pass);
    let s = |count: usize| if count == 1 { "" } else { "s" };
    // The names of what failed, since monitoring shows this line alone.
    let named: Vec<String> = diagnosis
        .parts
        .iter()
        .flat_map(|part| part.findings.iter().map(move |finding| (part, finding)))
        .filter(|(_, finding)| finding.verdict == Verdict::Fail)
        .map(|(part, finding)| {
            if part.name == finding.check {
                return finding.check.to_owned();
            }
            format!("{} {}", printable(&part.name), finding.check)
        })
        .collect();
    let named = if named.is_empty() { String::new() } else { format!(" ({})", named.join(", ")) };
    format!(
        "{}: pipeline \"{name}\", {all} check{}: {failed} failed{named}, {warned} warning{}",
        status.word(),
        s(all),
        s(warned)
    )
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Pass => "PASS",
        Verdict::Warn => "WARN",
        Verdict::Fail => "FAIL",
    }
}

fn coloured(word: &str, verdict: Verdict, styled: bool) -> String {
    if !styled {
        return word.to_owned();
    }
    let word = style(word);
    match verdict {
        Verdict::Pass => word.green(),
        Verdict::Warn => word.yellow(),
        Verdict::Fail => word.red().bold(),
    }
    .to_string()
}

/// All on one line.
pub fn json(diagnosis: &Diagnosis) -> String {
    let checks: Vec<Value> =
        diagnosis.parts.iter().flat_map(|part| part.findings.iter().map(|finding| check_json(part, finding))).collect();
    let status = diagnosis.status();
    let json = json!({
        "pipeline": diagnosis.pipeline,
        "status": status,
        "exit_code": status.exit_code(),
        "summary": summary(diagnosis),
        "passed": diagnosis.count(Verdict::Pass),
        "warnings": diagnosis.count(Verdict::Warn),
        "failed": diagnosis.count(Verdict::Fail),
        "checks": checks,
    });
    printable_json(json.to_string())
}

fn check_json(part: &Part, finding: &Finding) -> Value {
    json!({
        "part": part.name,
        "type": (!part.type_name.is_empty()).then_some(part.type_name),
        "check": finding.check,
        "verdict": finding.verdict,
        "found": finding.found,
        "fix": finding.fix,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn diagnosis(verdicts: &[Verdict]) -> Diagnosis {
        let findings = verdicts.iter().map(|verdict| Finding {
            check: "login",
            verdict: *verdict,
            found: "a\u{1b}[2Jb".to_owned(),
            fix: (*verdict != Verdict::Pass).then(|| "Do it.".to_owned()),
        });
        let part = Part { name: "db".to_owned(), type_name: "timescaledb", findings: findings.collect() };
        Diagnosis { pipeline: "iot".to_owned(), parts: vec![part], is_unread: false }
    }

    #[test]
    fn the_worst_verdict_decides_and_is_the_exit_code() {
        let code = |verdicts: &[Verdict]| diagnosis(verdicts).status().exit_code();
        assert_eq!(code(&[Verdict::Pass]), 0);
        assert_eq!(code(&[Verdict::Warn, Verdict::Pass]), 1);
        assert_eq!(code(&[Verdict::Warn, Verdict::Fail, Verdict::Pass]), 2);
        let unread = Diagnosis { is_unread: true, ..diagnosis(&[Verdict::Fail]) };
        assert_eq!(unread.status().exit_code(), 3);
    }

    #[test]
    fn text_says_it_all_in_the_first_line_and_hostile_text_moves_nothing() {
        let expected = "CRITICAL: pipeline \"iot\", 2 checks: 1 failed (db login), 0 warnings\n\n\
                        PASS  db (timescaledb)  login\n      a\\u{1b}[2Jb\n\
                        FAIL  db (timescaledb)  login\n      a\\u{1b}[2Jb\n      fix: Do it.\n";
        assert_eq!(text(&diagnosis(&[Verdict::Pass, Verdict::Fail]), false), expected);
    }

    #[test]
    fn json_is_one_line_that_names_each_check() {
        let line = json(&diagnosis(&[Verdict::Warn]));
        assert!(!line.contains(['\n', '\u{1b}']), "{line}");
        let read: Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!((&read["status"], &read["exit_code"]), (&json!("WARNING"), &json!(1)));
        let expected = json!({"part": "db", "type": "timescaledb", "check": "login", "verdict": "warn",
            "found": "a\u{1b}[2Jb", "fix": "Do it."});
        assert_eq!(read["checks"], json!([expected]));
    }
}
