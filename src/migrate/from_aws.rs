//! What AWS says of a rule, a Firehose and a function, asked by its own command line.
//!
//! Not by the SDK: three more of its crates take minutes to compile for a command that is run once, and the person who has
//! `aws` set up has profiles, single sign-on and roles set up with it, which are then the same here.

use std::io::ErrorKind;
use std::process::Command;

use pipeline_engine::terminal::printable;
use serde_json::Value;

/// A question: the words behind `aws`, up to the name.
pub const RULE: [&str; 3] = ["iot", "get-topic-rule", "--rule-name"];
/// See [`RULE`].
pub const FIREHOSE: [&str; 3] = ["firehose", "describe-delivery-stream", "--delivery-stream-name"];
/// See [`RULE`].
pub const FUNCTION: [&str; 3] = ["lambda", "get-function-configuration", "--function-name"];

/// The answer to a question about `name`.
///
/// # Errors
/// There is no `aws`, it failed, or what it said is no JSON: ready to print. The answer itself, which may hold secrets, is in
/// none of them.
pub fn ask(question: [&str; 3], name: &str) -> Result<Value, String> {
    // A name is no option, whatever it begins with, and `aws` reads a file or a page in the place of a value that names one.
    if name.is_empty() || name.starts_with('-') || name.contains("://") {
        return Err(format!("error: {:?} is no name", printable(name)));
    }
    let asked = format!("aws {} {}", question[0], question[1]);
    let output = Command::new("aws").args(question).arg(name).args(["--output", "json"]).output();
    let output = output.map_err(|error| match error.kind() {
        ErrorKind::NotFound => format!(
            "error: there is no `aws` on the PATH to ask with\n  = hint: Install AWS's command line, or save what `{asked}` prints \
             elsewhere and give the files without --from-aws."
        ),
        _ => format!("error: `aws` can't be run: {error}"),
    })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("error: `{asked}` failed: {}", printable(said.trim())));
    }
    serde_json::from_slice(&output.stdout).map_err(|error| format!("error: what `{asked}` printed is no JSON: {error}"))
}
