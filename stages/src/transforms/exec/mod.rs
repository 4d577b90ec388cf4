//! Hands rows to a program of yours and goes on with what it answers: a stage in Python, R or anything that speaks Arrow.
//!
//! ```toml
//! [transforms.judged]
//! type = "exec"
//! inputs = ["valid"]
//! command = ["python3", "judge.py"]
//! ```
//!
//! The program reads an Arrow IPC stream from its standard input and writes one to its standard output: for each record
//! batch that it is given exactly one, of any number of rows, before it reads the next. With pyarrow:
//!
//! ```python
//! import sys, pyarrow as pa
//!
//! with pa.ipc.open_stream(sys.stdin.buffer) as rows, pa.ipc.new_stream(sys.stdout.buffer, rows.schema) as out:
//!     for batch in rows:
//!         out.write_batch(batch)          # or another one
//!         sys.stdout.buffer.flush()
//! ```
//!
//! Its answers have the columns of the input, or those of the declared schema that `schema` names: the same names in the
//! same order with the same types. What it writes to standard error is logged. It is started before anything is read,
//! runs as long as the pipeline, and is ended by the end of its input.
//!
//! # When it fails
//! Where it ends, answers nothing within `timeout` or answers something else than rows, it is ended, started again and
//! given the same batch, `attempts` times. If it fails each time, the batch is halved until the rows that it can't bear
//! are alone: they leave by the port `rejected` with the reason `exec_failed`, and the answers for the others go on.
//! Where eight rows in a row fail and none succeeds, it is the program that is broken: the run stops, and nothing is
//! lost. A restart is counted in `restarts`. Because of them a program sees rows again that it has seen before, and what
//! it remembers is gone after a restart of it or of the pipeline: what it answers should depend on the rows of its batch
//! alone. Rows that go in and come out are not matched: a program may leave rows out or add some.

mod program;
mod run;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use arrow::datatypes::SchemaRef;
use pipeline_engine::dead_letter;
use pipeline_engine::stage::{BuildContext, BuildError, BuiltTransform, Port, StageDoc, TransformConfig};
use pipeline_engine::units::DurationText;
use schemars::JsonSchema;
use serde::Deserialize;

use self::program::Program;
use self::run::Exec;

/// `type = "exec"` in a pipeline file.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecConfig {
    /// The program and its arguments; no shell reads them. A program without a slash is looked for in PATH, a relative
    /// path is one from the folder that the pipeline was started in.
    pub command: Vec<String>,
    /// The declared schema of what the program answers. Default: the columns of the input.
    pub schema: Option<String>,
    /// Variables for the program, beside those of the pipeline itself.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// How long the program may take for a batch, and to end after its last one.
    #[serde(default = "timeout")]
    pub timeout: DurationText,
    /// How often a batch is tried before it is halved.
    #[serde(default = "attempts")]
    pub attempts: u32,
}

fn timeout() -> DurationText {
    DurationText::secs(30)
}

fn attempts() -> u32 {
    3
}

impl TransformConfig for ExecConfig {
    const DOC: StageDoc = StageDoc {
        type_name: "exec",
        summary: "Hands rows to a program of yours as an Arrow IPC stream, and goes on with what it answers.",
        ports: &[("rejected", "Rows that the program can't bear, with the reason exec_failed.")],
        failure: "A program that ends, hangs or answers nonsense is started again and given the same rows; rows that it \
                  fails on each time are refused, and a program that fails on everything stops the run. Nothing is lost \
                  either way. After a crash of the pipeline the program is given again what was not stored: its answers \
                  should be the same then. The keys of the rows are the program's matter.",
    };

    fn build(self, input: &SchemaRef, cx: &BuildContext) -> Result<BuiltTransform, BuildError> {
        if self.command.first().is_none_or(String::is_empty) {
            return Err(BuildError::invalid("command", "no program is named")
                .hint("Write it with its arguments, such as command = [\"python3\", \"judge.py\"]."));
        }
        if self.timeout.0.is_zero() {
            return Err(BuildError::invalid("timeout", "no program answers in no time"));
        }
        if self.attempts == 0 {
            return Err(BuildError::invalid("attempts", "a batch is tried at least once"));
        }
        let output = match &self.schema {
            None => input.clone(),
            Some(name) => cx.schema("schema", name)?.arrow(),
        };
        let transform = Exec {
            stage: cx.stage.clone(),
            program: Program {
                command: self.command,
                variables: self.env,
                stage: cx.stage.clone(),
                input: input.clone(),
                output: output.clone(),
            },
            running: None,
            timeout: self.timeout.0,
            attempts: self.attempts,
            failed_in_a_row: 0,
            restarts: cx.counter("restarts"),
        };
        let outputs = vec![(Port::MAIN, output), (Port::REJECTED, dead_letter::schema())];
        Ok(BuiltTransform { transform: Box::new(transform), outputs })
    }
}
