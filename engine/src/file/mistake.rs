//! What is wrong in a pipeline file, shown as a compiler would: file, line, column, caret, hint.

use std::fmt;
use std::ops::Range;

use annotate_snippets::renderer::DecorStyle;
use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};

use super::secrets::masked;

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// What is wrong: lower case, no full stop.
    pub message: String,
    /// Where in the file, in bytes; `None` for a plan that was built in code.
    pub place: Option<Range<usize>>,
    /// A way out, in sentences.
    pub hint: Option<String>,
    /// The part of the text at `place` that is wrong, in bytes of that text.
    pub(crate) within: Option<Range<usize>>,
    /// Another value of the file, without which this would be no mistake.
    pub(crate) because_of: Option<Range<usize>>,
}

impl Mistake {
    pub(crate) fn new(place: Option<Range<usize>>, message: impl Into<String>) -> Self {
        Self { message: message.into(), place, hint: None, within: None, because_of: None }
    }

    /// Whether this is said of, or only because of, one of these values.
    pub(super) fn follows_from(&self, values: &[Range<usize>]) -> bool {
        let is_one =
            |place: &Range<usize>| values.iter().any(|value| value.start <= place.start && place.end <= value.end);
        self.place.as_ref().is_some_and(is_one) || self.because_of.as_ref().is_some_and(is_one)
    }

    /// The part of the file that `within` means, if the text stands there as it is read: not where `${VAR}`
    /// was expanded, nor behind a rare escape.
    fn narrow(&mut self, file: &str) {
        let (Some(place), Some(part)) = (&self.place, self.within.take()) else { return };
        let Some(raw) = file.get(place.clone()).filter(|raw| !raw.contains("${")) else { return };
        let ends = place_in_text(raw, part.start).zip(place_in_text(raw, part.end));
        if let Some((start, end)) = ends {
            self.place = Some(place.start + start..place.start + end);
        }
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// A value whose reference could not be resolved is not known: nothing else that is said of it, or because of it, is a mistake
/// of its own.
pub(super) fn without_what_follows(mut mistakes: Vec<Mistake>, unresolved: &[Mistake]) -> Vec<Mistake> {
    let places: Vec<Range<usize>> = unresolved.iter().filter_map(|mistake| mistake.place.clone()).collect();
    mistakes.retain(|mistake| unresolved.contains(mistake) || !mistake.follows_from(&places));
    mistakes
}

/// All mistakes of one file, in the order of the file.
#[derive(Debug, Clone)]
pub struct Mistakes {
    /// The file as its user named it; empty for a plan that was built in code.
    pub file: String,
    /// The file's text, with stars for passwords.
    pub text: String,
    /// At least one.
    pub all: Vec<Mistake>,
}

impl Mistakes {
    pub(crate) fn new(file: &str, text: &str, mut all: Vec<Mistake>) -> Self {
        all.iter_mut().for_each(|mistake| mistake.narrow(text));
        all.sort_by_key(|mistake| mistake.place.as_ref().map_or(usize::MAX, |place| place.start));
        // The parser may find one more than once, with another between.
        let mut once: Vec<Mistake> = Vec::with_capacity(all.len());
        for mistake in all {
            if !once.contains(&mistake) {
                once.push(mistake);
            }
        }
        Self { file: file.to_owned(), text: masked(text).into_owned(), all: once }
    }

    /// Where a mistake is, counted from 1; `None` where it has no place.
    pub fn line_and_column(&self, mistake: &Mistake) -> Option<(usize, usize)> {
        let before = self.text.get(..mistake.place.as_ref()?.start)?;
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Some((before.matches('\n').count() + 1, before[line_start..].chars().count() + 1))
    }

    /// As a terminal shows it; `styled` with colours.
    pub fn render(&self, styled: bool) -> String {
        let renderer = if styled { Renderer::styled() } else { Renderer::plain() };
        let renderer = renderer.decor_style(DecorStyle::Ascii);
        let shown: Vec<String> = self.all.iter().map(|mistake| self.render_one(mistake, &renderer)).collect();
        shown.join("\n\n")
    }

    fn render_one(&self, mistake: &Mistake, renderer: &Renderer) -> String {
        let mut group = annotate_snippets::Group::with_title(Level::ERROR.primary_title(&mistake.message));
        if let Some(place) = &mistake.place {
            let mark = AnnotationKind::Primary.span(self.on_one_line(place));
            group = group.element(Snippet::source(&self.text).path(&self.file).annotation(mark));
        }
        if let Some(hint) = &mistake.hint {
            group = group.element(Level::HELP.with_name("hint").message(hint));
        }
        renderer.render(&[group])
    }

    /// A caret under the first line says where; a whole table underlined says nothing.
    fn on_one_line(&self, place: &Range<usize>) -> Range<usize> {
        let start = place.start.min(self.text.len());
        let end = place.end.min(self.text.len()).max(start);
        let line_end = self.text[start..end].find('\n').map_or(end, |length| start + length);
        start..line_end
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl std::error::Error for Mistakes {}

/// Where a byte of a text stands in its TOML form, quotes and all.
fn place_in_text(raw: &str, byte: usize) -> Option<usize> {
    let quotes = ["\'\'\'", "\"\"\"", "\'", "\""].into_iter().find(|quotes| raw.starts_with(quotes))?;
    let mut at = quotes.len();
    // A newline right behind three quotes is not part of the text.
    if quotes.len() == 3 {
        at += raw[at..].len()
            - raw[at..].strip_prefix("\r\n").or(raw[at..].strip_prefix('\n')).unwrap_or(&raw[at..]).len();
    }
    let mut read = 0;
    while read < byte {
        let mut rest = raw.get(at..)?.chars();
        let first = rest.next()?;
        if first == '\\' && quotes.starts_with('"') {
            // Two characters that stand for one byte; others are not looked into.
            rest.next().filter(|escaped| "btnfre\"\\".contains(*escaped))?;
            at += 2;
            read += 1;
        } else {
            at += first.len_utf8();
            read += first.len_utf8();
        }
    }
    (read == byte && at + quotes.len() <= raw.len()).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_text_is_found_in_every_form_of_it() {
        for (raw, text, part) in [
            (r#""a bcd e""#, "a bcd e", "bcd"),
            ("\'a bcd e\'", "a bcd e", "bcd"),
            (r#""a \"x\" \\ bcd e""#, r#"a "x" \ bcd e"#, "bcd"),
            ("\"\"\"\na\nbcd\n\"\"\"", "a\nbcd\n", "bcd"),
            ("\'\'\'\nä \\ bcd\'\'\'", "ä \\ bcd", "bcd"),
            ("\'\'\'\r\na bcd\'\'\'", "a bcd", "bcd"),
        ] {
            let file = format!("sql = {raw}\n");
            let start = text.find(part).unwrap();
            let mut mistake = Mistake::new(Some(6..6 + raw.len()), "wrong");
            mistake.within = Some(start..start + part.len());
            mistake.narrow(&file);
            assert_eq!(&file[mistake.place.unwrap()], part, "{raw}");
        }
    }

    #[test]
    fn a_text_that_is_not_read_as_it_stands_is_pointed_at_as_a_whole() {
        for raw in ["\"${A} bcd\"", "\"\\u0041 bcd\"", "\"a\""] {
            let file = format!("sql = {raw}\n");
            let mut mistake = Mistake::new(Some(6..6 + raw.len()), "wrong");
            mistake.within = Some(2..5);
            mistake.narrow(&file);
            assert_eq!(&file[mistake.place.unwrap()], raw);
        }
    }
}
