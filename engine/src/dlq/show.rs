//! A dead letter as text and as JSON, safe on a terminal.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::Letter;
use crate::terminal::{printable, printable_json};
use crate::time::format_us;

/// A whole letter for a person or a program, with the time of its last replay.
#[derive(Debug, Clone, Copy)]
pub struct LetterText<'l> {
    /// The letter.
    pub letter: &'l Letter,
    /// Microseconds since 1970; `None` if it was never replayed.
    pub replayed_at_us: Option<i64>,
}

impl LetterText<'_> {
    /// One line of JSON without the newline. A payload that is no text is `payload_base64`.
    pub fn json(&self) -> String {
        let letter = self.letter;
        let mut fields = Map::new();
        let mut put = |name: &str, value: Value| drop(fields.insert(name.to_owned(), value));
        put("id", letter.id.to_string().into());
        put("received_at", format_us(letter.received_at_us).into());
        put("stage", letter.stage.clone().into());
        put("reason", letter.reason.clone().into());
        put("detail", letter.detail.clone().into());
        put("topic", letter.topic.clone().into());
        put("position", letter.position.clone().into());
        put("replayed_at", self.replayed_at_us.map(format_us).into());
        match std::str::from_utf8(&letter.payload) {
            Ok(text) => put("payload", text.into()),
            Err(_) => put("payload_base64", STANDARD.encode(&letter.payload).into()),
        }
        printable_json(Value::Object(fields).to_string())
    }

    /// One line: id, time, stage, reason, topic.
    pub fn line(&self) -> String {
        let Letter { id, received_at_us, stage, reason, topic, .. } = self.letter;
        let topic = topic.as_ref().map(|topic| format!("  {topic}")).unwrap_or_default();
        let replayed = if self.replayed_at_us.is_some() { "  (replayed)" } else { "" };
        let line = format!("{id}  {}  {stage}  {reason}{topic}{replayed}", format_us(*received_at_us));
        printable(&line).into_owned()
    }
}

/// All of it, a part on each line.
impl fmt::Display for LetterText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = self.letter;
        writeln!(f, "letter    {}", letter.id)?;
        writeln!(f, "received  {}", format_us(letter.received_at_us))?;
        writeln!(f, "stage     {}", printable(&letter.stage))?;
        writeln!(f, "reason    {}", printable(&letter.reason))?;
        let optional = [("detail", &letter.detail), ("topic", &letter.topic), ("position", &letter.position)];
        for (name, text) in optional.into_iter().filter_map(|(name, text)| Some((name, text.as_ref()?))) {
            writeln!(f, "{name:<9} {}", printable(text))?;
        }
        if let Some(at_us) = self.replayed_at_us {
            writeln!(f, "replayed  {}", format_us(at_us))?;
        }
        match std::str::from_utf8(&letter.payload) {
            Ok(text) => writeln!(f, "payload   {}", printable(text)),
            Err(_) => {
                write!(f, "payload   {} bytes that are no text: ", letter.payload.len())?;
                letter.payload.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
                writeln!(f)
            }
        }
    }
}
