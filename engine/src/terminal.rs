//! Text that devices have sent, made safe to show: nothing in it can move a cursor, change a title or
//! turn the direction of writing.

use std::borrow::Cow;
use std::fmt::Write;

/// The text on one line, with control characters and marks of direction written out: `\n`,
/// `\u{1b}`.
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_hidden) {
        return text.into();
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for char in text.chars() {
        if is_hidden(char) { safe.extend(char.escape_default()) } else { safe.push(char) }
    }
    safe.into()
}

/// JSON text with the same characters written out, as JSON does.
pub fn printable_json(json: String) -> String {
    if !json.chars().any(is_hidden) {
        return json;
    }
    let mut safe = String::with_capacity(json.len() + 16);
    for char in json.chars() {
        if is_hidden(char) {
            // Outside of its strings JSON holds none of them.
            let mut units = [0; 2];
            for unit in char.encode_utf16(&mut units) {
                write!(safe, "\\u{unit:04x}").expect("writing to a String can't fail");
            }
        } else {
            safe.push(char);
        }
    }
    safe
}

fn is_hidden(char: char) -> bool {
    // Marks, embeddings, overrides and isolates of direction, line and paragraph separators.
    let directs =
        matches!(char, '\u{61c}' | '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    char.is_control() || directs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moves_a_cursor_is_written_out() {
        assert_eq!(printable("plain \"text\" \\ é ☃"), "plain \"text\" \\ é ☃");
        assert_eq!(printable("a\u{1b}]0;x\u{7}\nb\u{9b}2J\u{202e}"), "a\\u{1b}]0;x\\u{7}\\nb\\u{9b}2J\\u{202e}");
    }

    #[test]
    fn json_stays_json_and_says_the_same() {
        let text = "a\u{1b}\u{7f}\u{9b}\u{202e}é\n";
        let json = printable_json(serde_json::to_string(text).unwrap());
        assert!(!json.chars().any(is_hidden), "{json}");
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
    }
}
