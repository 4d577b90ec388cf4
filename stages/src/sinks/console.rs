//! Prints rows on standard output or standard error: to look at a pipeline, or to pipe it on.
//!
//! `format = "jsonl"`, the default, is for programs: one JSON object a line, binary columns in hex,
//! nulls left out. `format = "pretty"` is for people: whatever a device sends, it can't move the
//! cursor, colour the screen or fake a line, since every character that is not plainly visible is
//! written as an escape.
//!
//! Nothing is durable here. A terminal that stops scrolling holds up the pipeline, as any slow sink
//! does.

use std::fmt::Write as _;
use std::io::{self, ErrorKind};

use arrow::array::{Array, AsArray};
use arrow::datatypes::{DataType, SchemaRef};
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use async_trait::async_trait;
use pipeline_engine::stage::{
    BuildContext, BuildError, BuiltSink, Group, Grouping, Sink, SinkConfig, StageDoc, StageError,
};
use pipeline_engine::terminal::printable_json;
use pipeline_engine::{Counter, dead_letter};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::time::{Duration, Instant};

/// `type = "console"` in a pipeline file.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConsoleConfig {
    /// `jsonl`: one JSON object a line, for programs. `pretty`: `column=value` in a line, for people.
    #[serde(default = "jsonl")]
    format: Format,
    /// Where to print: `stdout` or `stderr`.
    #[serde(default = "stdout")]
    target: Target,
    /// Written before each line of `pretty`; the stage's name if not given.
    title: Option<String>,
    /// Prints at most so many rows a second with `pretty`, counts the others and says how many there
    /// were.
    rows_max_per_second: Option<usize>,
}

/// How rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema, serde::Serialize)]
#[serde(rename_all = "snake_case")]
enum Format {
    /// One JSON object a line, for programs.
    Jsonl,
    /// `column=value` in a line, for people.
    Pretty,
}

/// Where rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema, serde::Serialize)]
#[serde(rename_all = "snake_case")]
enum Target {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Not chosen by whether a terminal listens: what a pipeline prints must not change with a pipe.
fn jsonl() -> Format {
    Format::Jsonl
}

fn stdout() -> Target {
    Target::Stdout
}

impl SinkConfig for ConsoleConfig {
    const DOC: StageDoc = StageDoc {
        type_name: "console",
        summary: "Prints rows on standard output or standard error, for people or as JSON lines.",
        ports: &[],
        failure: "A reader that has gone (`| head`) or any other error of the output (permanent): the run stops. There is \
                  no transient failure: a slow reader holds up the pipeline. Duplication window: what is printed is \
                  printed; rows that are read again after a restart are printed again. There is no deduplication key.",
    };

    fn build(self, _: &SchemaRef, cx: &BuildContext) -> Result<BuiltSink, BuildError> {
        if self.format == Format::Jsonl {
            let given = [("title", self.title.is_some()), ("rows_max_per_second", self.rows_max_per_second.is_some())];
            if let Some((key, _)) = given.into_iter().find(|(_, given)| *given) {
                return Err(BuildError::invalid(key, "JSON lines are for programs: nothing is added or left out")
                    .hint("Write format = \"pretty\", or remove the key."));
            }
        }
        if self.rows_max_per_second == Some(0) {
            return Err(BuildError::invalid("rows_max_per_second", "a sink that prints nothing is no sink")
                .hint("Remove the key to print all rows."));
        }
        let layout = match self.format {
            Format::Jsonl => Layout::Jsonl,
            Format::Pretty => Layout::Pretty { title: visible(self.title.as_deref().unwrap_or(&cx.stage)) },
        };
        let sink = Console {
            layout,
            target: self.target,
            limit: self.rows_max_per_second.map(Limit::new),
            left_out: cx.counter("rows_left_out"),
        };
        // Small groups show rows as they come.
        Ok(BuiltSink { sink: Box::new(sink), grouping: Grouping::default(), outputs: Vec::new() })
    }
}

/// The running stage.
struct Console {
    layout: Layout,
    target: Target,
    limit: Option<Limit>,
    left_out: Counter,
}

enum Layout {
    Jsonl,
    Pretty { title: String },
}

#[async_trait]
impl Sink for Console {
    async fn open(&mut self) -> Result<(), StageError> {
        Ok(())
    }

    async fn write(&mut self, group: &Group) -> Result<(), StageError> {
        let text = self.render(group.batches().iter().map(|batch| &batch.rows), Instant::now())?;
        print_out(self.target, text).await
    }

    async fn close(&mut self) -> Result<(), StageError> {
        let left_out = self.limit.as_mut().map_or(0, Limit::take_left_out);
        print_out(self.target, self.note(left_out).into_bytes()).await
    }
}

impl Console {
    fn render<'a>(
        &mut self,
        batches: impl Iterator<Item = &'a RecordBatch>,
        now: Instant,
    ) -> Result<Vec<u8>, StageError> {
        let mut text = Vec::new();
        for rows in batches {
            let admitted = match &mut self.limit {
                Some(limit) => {
                    let earlier = limit.start_second(now);
                    text.extend(self.note(earlier).into_bytes());
                    self.admit(rows.num_rows())
                }
                None => rows.num_rows(),
            };
            let rows = rows.slice(0, admitted);
            match &self.layout {
                Layout::Jsonl => text.extend(inert(dead_letter::json_lines(&rows)?)),
                Layout::Pretty { title } => text.extend(pretty_lines(&rows, title)?.into_bytes()),
            }
        }
        Ok(text)
    }

    /// How many of some rows may be printed; the others are counted.
    fn admit(&mut self, rows: usize) -> usize {
        let admitted = self.limit.as_mut().map_or(rows, |limit| limit.admit(rows));
        self.left_out.add((rows - admitted) as u64);
        admitted
    }

    /// A line that says how many rows were left out; nothing for none.
    fn note(&self, left_out: usize) -> String {
        match (&self.layout, left_out) {
            (Layout::Pretty { title }, 1..) => format!("{title}  ... {left_out} more rows, not shown\n"),
            _ => String::new(),
        }
    }
}

/// The same lines with what would move a terminal written out, as JSON does it: by itself JSON does so with some of it only.
fn inert(lines: Vec<u8>) -> Vec<u8> {
    match String::from_utf8(lines) {
        Ok(lines) if lines.is_ascii() => lines.into_bytes(),
        Ok(lines) => {
            lines.split('\n').map(|line| printable_json(line.to_owned())).collect::<Vec<_>>().join("\n").into_bytes()
        }
        // JSON is UTF-8.
        Err(error) => error.into_bytes(),
    }
}

/// So many rows in any one second.
struct Limit {
    rows_max: usize,
    second: Option<Instant>,
    admitted: usize,
    left_out: usize,
}

impl Limit {
    fn new(rows_max: usize) -> Self {
        Self { rows_max, second: None, admitted: 0, left_out: 0 }
    }

    /// Begins a new second if the last one is over, and says how many rows that one left out.
    fn start_second(&mut self, now: Instant) -> usize {
        if self.second.is_some_and(|began| now.duration_since(began) < Duration::from_secs(1)) {
            return 0;
        }
        self.second = Some(now);
        self.admitted = 0;
        self.take_left_out()
    }

    fn admit(&mut self, rows: usize) -> usize {
        let admitted = rows.min(self.rows_max - self.admitted);
        self.admitted += admitted;
        self.left_out += rows - admitted;
        admitted
    }

    fn take_left_out(&mut self) -> usize {
        std::mem::take(&mut self.left_out)
    }
}

/// `title  column=value  column=value`, a line for each row.
fn pretty_lines(rows: &RecordBatch, title: &str) -> Result<String, ArrowError> {
    let rows = dead_letter::printable(rows)?;
    let options = FormatOptions::default();
    let schema = rows.schema();
    let names: Vec<String> = schema.fields().iter().map(|field| visible(field.name())).collect();
    let formatters = rows.columns().iter().map(|column| ArrayFormatter::try_new(column, &options));
    let formatters = formatters.collect::<Result<Vec<_>, _>>()?;
    let mut lines = String::new();
    for row in 0..rows.num_rows() {
        lines.push_str(title);
        for ((column, name), formatter) in rows.columns().iter().zip(&names).zip(&formatters) {
            let value = match column.data_type() {
                _ if column.is_null(row) => "null".to_owned(),
                DataType::Binary => text_value(&String::from_utf8_lossy(column.as_binary::<i32>().value(row))),
                DataType::Utf8 => text_value(column.as_string::<i32>().value(row)),
                _ => visible(&formatter.value(row).try_to_string()?),
            };
            lines.push_str("  ");
            lines.push_str(name);
            lines.push('=');
            lines.push_str(&value);
        }
        lines.push('\n');
    }
    Ok(lines)
}

/// Text in single quotes where it could be taken for something else, such as the next column.
fn text_value(text: &str) -> String {
    let is_a_word = !text.is_empty() && text != "null" && !text.contains([' ', '=', '\'', '\\']);
    if is_a_word { visible(text) } else { format!("'{}'", visible(&text.replace('\\', "\\\\").replace('\'', "\\'"))) }
}

/// The text with an escape for each character that does not plainly show: control characters (both
/// sets, and DEL), and those that reorder, join or hide their neighbours.
fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        let hidden = c.is_control()
            || matches!(
                c,
                '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
                    | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}'
            );
        match c {
            '\n' => shown.push_str("\\n"),
            '\r' => shown.push_str("\\r"),
            '\t' => shown.push_str("\\t"),
            _ if hidden => write!(shown, "\\u{{{:x}}}", u32::from(c)).expect("a String takes all"),
            _ => shown.push(c),
        }
    }
    shown
}

/// Writes and flushes all of it, under one lock so that nothing comes between the lines.
async fn print_out(target: Target, text: Vec<u8>) -> Result<(), StageError> {
    if text.is_empty() {
        return Ok(());
    }
    let printed = tokio::task::spawn_blocking(move || match target {
        Target::Stdout => write_to(io::stdout().lock(), &text),
        Target::Stderr => write_to(io::stderr().lock(), &text),
    });
    let printed = printed.await.map_err(|panic| StageError::bug("printing panicked").because(panic))?;
    printed.map_err(|error| not_printed(target, error))
}

fn write_to(mut out: impl io::Write, text: &[u8]) -> io::Result<()> {
    out.write_all(text)?;
    out.flush()
}

fn not_printed(target: Target, error: io::Error) -> StageError {
    let name = match target {
        Target::Stdout => "standard output",
        Target::Stderr => "standard error",
    };
    if error.kind() == ErrorKind::BrokenPipe {
        return StageError::permanent(format!("nobody reads {name} any more"))
            .hint("The program behind the pipe has ended, as `head` does after its lines.");
    }
    StageError::permanent(format!("{name} can't be written")).because(error)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array, StringArray};
    use arrow::datatypes::{Field, Schema};
    use pipeline_engine::dead_letter::{DeadLetter, DeadLetters};
    use pipeline_engine::stage::Fault;
    use pipeline_engine::testing;

    use super::*;

    fn console(layout: Layout, rows_max_per_second: Option<usize>) -> Console {
        let limit = rows_max_per_second.map(Limit::new);
        Console { layout, target: Target::Stdout, limit, left_out: Counter::default() }
    }

    fn pretty(rows_max_per_second: Option<usize>) -> Console {
        console(Layout::Pretty { title: "lake".to_owned() }, rows_max_per_second)
    }

    fn rows(texts: &[Option<&str>]) -> RecordBatch {
        let schema =
            Schema::new(vec![Field::new("n", DataType::Int64, false), Field::new("text", DataType::Utf8, true)]);
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int64Array::from_iter_values(0..texts.len() as i64)),
            Arc::new(StringArray::from(texts.to_vec())),
        ];
        RecordBatch::try_new(Arc::new(schema), columns).unwrap()
    }

    fn letters(payload: &[u8]) -> RecordBatch {
        let mut letters = DeadLetters::default();
        letters.push(DeadLetter {
            received_at_us: 1_500_000,
            stage: "devices",
            reason: "invalid_json",
            detail: Some("expected value at column 1"),
            topic: None,
            position: None,
            payload,
        });
        letters.take()
    }

    fn printed(console: &mut Console, rows: &RecordBatch, now: Instant) -> String {
        String::from_utf8(console.render([rows].into_iter(), now).unwrap()).unwrap()
    }

    #[test]
    fn json_lines_move_no_terminal_and_read_back_as_they_were() {
        let row = serde_json::json!({ "a": "\u{9b}2J\u{202e}é\u{1b}" });
        let line = String::from_utf8(inert(format!("{row}\n{row}\n").into_bytes())).unwrap();
        assert!(
            !line.chars().any(|letter| (letter.is_control() && letter != '\n') || letter == '\u{202e}'),
            "{line:?}"
        );
        let read: Vec<serde_json::Value> = line.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(read, [row.clone(), row]);
    }

    #[test]
    fn json_lines_are_for_machines_and_keep_binary_in_hex() {
        let mut console = console(Layout::Jsonl, None);
        let text = printed(&mut console, &letters(b"\x1b[2J"), Instant::now());
        let letter: serde_json::Value = serde_json::from_str(text.trim_end()).unwrap();
        assert_eq!(letter["payload"], "1b5b324a");
        assert_eq!(letter["reason"], "invalid_json");
        assert_eq!(letter.get("topic"), None, "nulls are left out");
    }

    #[test]
    fn a_dead_letter_is_readable() {
        let text = printed(&mut pretty(None), &letters(b"{\"temp\": NaN}"), Instant::now());
        assert_eq!(
            text,
            "lake  received_at=1970-01-01T00:00:01.500Z  stage=devices  reason=invalid_json  \
             detail='expected value at column 1'  topic=null  position=null  payload='{\"temp\": NaN}'\n"
        );
    }

    #[test]
    fn no_text_of_a_device_reaches_the_terminal_as_anything_but_text() {
        for evil in ["\x1b[2J", "\u{9b}2J", "a\nlake  n=1", "\x07\x08\x7f\0", "\u{202e}txt.exe", "\r\t\u{2028}\u{feff}"]
        {
            let mut letter = printed(&mut pretty(None), &letters(evil.as_bytes()), Instant::now());
            letter.push_str(&printed(&mut pretty(None), &rows(&[Some(evil)]), Instant::now()));
            assert_eq!(letter.lines().count(), 2, "{letter:?}");
            for c in letter.chars().filter(|c| *c != '\n') {
                assert!(!c.is_control() && !('\u{2028}'..='\u{202e}').contains(&c) && c != '\u{feff}', "{letter:?}");
            }
        }
        assert_eq!(visible("\x1b[2J\u{9b}\n\u{202e}é漢"), "\\u{1b}[2J\\u{9b}\\n\\u{202e}é漢");
    }

    #[test]
    fn text_can_be_told_from_what_stands_around_it() {
        for (text, shown) in [
            ("device-7", "device-7"),
            ("x  n=5", "'x  n=5'"),
            ("null", "'null'"),
            ("", "''"),
            ("it's", "'it\\'s'"),
            ("\\u{1b}", "'\\\\u{1b}'"),
        ] {
            assert_eq!(text_value(text), shown);
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_shown_as_far_as_they_are() {
        let text = printed(&mut pretty(None), &letters(b"ok\xff"), Instant::now());
        assert!(text.ends_with("payload=ok\u{fffd}\n"), "{text}");
    }

    #[test]
    fn rows_above_the_limit_are_counted_and_reported_in_the_next_second() {
        let mut console = pretty(Some(3));
        let five = rows(&[Some("a"); 5]);
        let start = Instant::now();
        assert_eq!(printed(&mut console, &five, start).lines().count(), 3);
        assert_eq!(printed(&mut console, &five, start + Duration::from_millis(999)), "");
        assert_eq!(console.left_out.get(), 7);
        let next = printed(&mut console, &five, start + Duration::from_secs(1));
        let lines: Vec<&str> = next.lines().collect();
        assert_eq!(lines[0], "lake  ... 7 more rows, not shown");
        assert_eq!(lines.len(), 4);
        assert_eq!(console.left_out.get(), 9);
    }

    #[test]
    fn without_a_limit_all_rows_are_printed() {
        assert_eq!(printed(&mut pretty(None), &rows(&[Some("a"); 5_000]), Instant::now()).lines().count(), 5_000);
    }

    #[test]
    fn a_reader_that_has_gone_ends_the_run_with_a_clear_text() {
        let error = not_printed(Target::Stdout, io::Error::from(ErrorKind::BrokenPipe));
        assert_eq!(error.fault(), Fault::Permanent);
        assert_eq!(error.to_string(), "nobody reads standard output any more");
    }

    #[test]
    fn json_lines_take_no_key_of_the_other_format() {
        let built = |config: serde_json::Value| {
            let config: ConsoleConfig = serde_json::from_value(config).unwrap();
            config.build(&rows(&[]).schema(), &testing::build_context("out", "")).map(|_| ())
        };
        assert_eq!(built(serde_json::json!({})), Ok(()));
        assert_eq!(built(serde_json::json!({ "title": "x" })).unwrap_err().key, "title");
        assert_eq!(built(serde_json::json!({ "rows_max_per_second": 5 })).unwrap_err().key, "rows_max_per_second");
        assert_eq!(built(serde_json::json!({ "format": "pretty", "rows_max_per_second": 5 })), Ok(()));
        let zero = built(serde_json::json!({ "format": "pretty", "rows_max_per_second": 0 }));
        assert_eq!(zero.unwrap_err().key, "rows_max_per_second");
    }
}
