//! The words of a rule, each with its place.

use std::ops::Range;

use super::Refusal;

/// The longest rule: AWS IoT takes none that is longer.
const TEXT_BYTES_MAX: usize = 256 << 10;

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Token {
    /// A keyword or a name, as written.
    Word(String),
    /// `@name`, without the sign.
    Variable(String),
    /// A number, as written.
    Number(String),
    /// Text without its quotes.
    Text(String),
    /// An operator or a bracket.
    Symbol(&'static str),
    /// Behind the last word.
    End,
}

#[derive(Debug, Clone)]
pub(super) struct Placed {
    pub(super) token: Token,
    pub(super) at: Range<usize>,
}

/// Longer ones first: `<=` is not `<` and `=`.
const SYMBOLS: [&str; 21] =
    ["<=", ">=", "<>", "!=", "(", ")", "[", "]", "{", "}", ",", ".", ":", "+", "-", "*", "/", "%", "=", "<", ">"];

/// What other languages write, and what a rule writes for it.
const FOREIGN: [(&str, &str); 11] = [
    ("#", "A topic filter stands in quotes: FROM 'iot/#'."),
    ("${", "A substitution template belongs to an action of AWS, not to the rule: write the expression itself."),
    ("==", "Write = to compare."),
    ("||", "Write + to put text together, OR for \"or\"."),
    ("&&", "Write AND."),
    ("--", "A rule has no comments: put them in the pipeline file, behind #."),
    ("/*", "A rule has no comments: put them in the pipeline file, behind #."),
    ("\u{2013}", "This is a dash: did you mean the minus sign -?"),
    ("\u{2212}", "Did you mean the plain minus sign -?"),
    (
        "`",
        "Names stand without quotes, and text in single or double ones; get(*, 'a name') reads an attribute whose \
           name is no word.",
    ),
    (";", "A rule is one statement, without a semicolon."),
];

pub(super) fn split(text: &str) -> Result<Vec<Placed>, Refusal> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(Refusal::new(0..0, format!("the rule is longer than {TEXT_BYTES_MAX} bytes")));
    }
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(first) = text[at..].chars().next() {
        if first.is_whitespace() {
            at += first.len_utf8();
            continue;
        }
        let (token, length) = next(text, at, first)?;
        tokens.push(Placed { token, at: at..at + length });
        at += length;
    }
    tokens.push(Placed { token: Token::End, at: text.len()..text.len() });
    Ok(tokens)
}

/// The token that begins here, and its length in bytes.
fn next(text: &str, at: usize, first: char) -> Result<(Token, usize), Refusal> {
    let rest = &text[at..];
    if let Some((foreign, way_out)) = FOREIGN.iter().find(|(foreign, _)| rest.starts_with(foreign)) {
        let message = format!("\"{foreign}\" is not part of AWS IoT SQL");
        return Err(Refusal::new(at..at + foreign.len(), message).hint(*way_out));
    }
    if first == '\'' || first == '"' {
        return quoted(rest, first).ok_or_else(|| {
            Refusal::new(at..at + 1, "the text has no closing quote")
                .hint(format!("Close it with {first}; a quote inside it is written twice: {first}{first}."))
        });
    }
    if first == '@' {
        let name = &rest[1..1 + length_while(&rest[1..], is_in_word)];
        if name.is_empty() {
            return Err(Refusal::new(at..at + 1, "a variable has a name").hint("For example @celsius."));
        }
        return Ok((Token::Variable(name.to_owned()), 1 + name.len()));
    }
    if first.is_ascii_digit() {
        return number(rest, at);
    }
    if first.is_alphabetic() || first == '_' || first == '$' {
        let word = &rest[..length_while(rest, is_in_word)];
        return Ok((Token::Word(word.to_owned()), word.len()));
    }
    match SYMBOLS.iter().find(|symbol| rest.starts_with(**symbol)) {
        Some(symbol) => Ok((Token::Symbol(symbol), symbol.len())),
        None => Err(Refusal::new(at..at + first.len_utf8(), format!("\"{first}\" is not part of AWS IoT SQL"))),
    }
}

fn is_in_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || c == '$'
}

fn length_while(text: &str, belongs: impl Fn(char) -> bool) -> usize {
    text.find(|c| !belongs(c)).unwrap_or(text.len())
}

/// Text up to its closing quote; a doubled quote inside is one.
fn quoted(rest: &str, quote: char) -> Option<(Token, usize)> {
    let mut content = String::new();
    let mut characters = rest.char_indices().skip(1).peekable();
    while let Some((at, c)) = characters.next() {
        if c != quote {
            content.push(c);
        } else if characters.next_if(|(_, next)| *next == quote).is_some() {
            content.push(quote);
        } else {
            return Some((Token::Text(content), at + 1));
        }
    }
    None
}

fn number(rest: &str, at: usize) -> Result<(Token, usize), Refusal> {
    let digits = |from: usize| length_while(&rest[from..], |c| c.is_ascii_digit());
    let mut length = digits(0);
    if rest[length..].starts_with('.') && digits(length + 1) > 0 {
        length += 1 + digits(length + 1);
    }
    if rest[length..].starts_with(['e', 'E']) {
        let signed = length + 1 + usize::from(rest[length + 1..].starts_with(['+', '-']));
        if digits(signed) > 0 {
            length = signed + digits(signed);
        }
    }
    let behind = length_while(&rest[length..], is_in_word);
    if behind > 0 {
        let text = &rest[..length + behind];
        return Err(Refusal::new(
            at..at + text.len(),
            format!("\"{text}\" is no number, and no name begins with a digit"),
        )
        .hint(format!("get(*, '{text}') reads an attribute of that name.")));
    }
    Ok((Token::Number(rest[..length].to_owned()), length))
}
