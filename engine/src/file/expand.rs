//! `${VAR}`, `${VAR:-default}`, `${file:PATH}` and `${credential:NAME}` in the strings of a parsed file.
//!
//! Expansion happens after parsing, in values only, so that a variable can't inject a table or a
//! key. A missing variable is a mistake with its place. `$${` stands for a literal `${`.
//!
//! A credential is a file of the folder that systemd makes for each unit and names in `CREDENTIALS_DIRECTORY`: the pipeline
//! file says which secret it wants, and units that read the same file need not have the same folder.

use std::borrow::Cow;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::mistake::Mistake;

/// Where the service manager has put the credentials of the process.
const CREDENTIALS_DIRECTORY: &str = "CREDENTIALS_DIRECTORY";
/// Before the name of each file of the folder that the units in `ops/systemd` load as a whole: `LoadCredential=pipeline:FOLDER`
/// makes `pipeline_FILE` of each.
const LOADED_AS: &str = "pipeline_";

/// What a reference can ask for: an environment, and files.
pub struct Variables<'a> {
    /// The value of a variable; `None` if it is not set.
    pub get: &'a dyn Fn(&str) -> Option<String>,
    /// The text of a file.
    pub read: &'a dyn Fn(&str) -> std::io::Result<String>,
}

impl Variables<'static> {
    /// The process's environment and the file system.
    pub fn of_process() -> Self {
        Self { get: &|name| std::env::var(name).ok(), read: &|path| std::fs::read_to_string(path) }
    }
}

/// A string that held references, by the place of the string.
pub(super) struct Expansion {
    place: Range<usize>,
    text: String,
    /// The whole string was one reference: its text may then stand for a number or a boolean.
    whole: bool,
}

/// Expands every string that holds a reference.
pub(super) fn expansions(
    table: &DeTable<'_>,
    variables: &Variables<'_>,
    mistakes: &mut Vec<Mistake>,
) -> Vec<Expansion> {
    let mut found = Vec::new();
    for value in table.values() {
        visit(value, &mut |text, place| match expand(text, variables) {
            Ok(None) => {}
            Ok(Some((text, whole))) => found.push(Expansion { place, text, whole }),
            Err((message, hint)) => mistakes.push(Mistake::new(Some(place), message).hint(hint)),
        });
    }
    found
}

fn visit(value: &Spanned<DeValue<'_>>, see: &mut dyn FnMut(&str, Range<usize>)) {
    match value.get_ref() {
        DeValue::String(text) => see(text, value.span()),
        DeValue::Array(items) => items.iter().for_each(|item| visit(item, see)),
        DeValue::Table(table) => table.values().for_each(|item| visit(item, see)),
        _ => {}
    }
}

/// Puts the expanded strings where the references stood.
pub(super) fn apply<'i>(table: DeTable<'i>, expansions: &'i [Expansion]) -> DeTable<'i> {
    table.into_iter().map(|(key, value)| (key, apply_to(value, expansions))).collect()
}

fn apply_to<'i>(value: Spanned<DeValue<'i>>, expansions: &'i [Expansion]) -> Spanned<DeValue<'i>> {
    let place = value.span();
    let changed = match value.into_inner() {
        DeValue::String(text) => {
            let expansion = expansions.iter().find(|expansion| expansion.place == place);
            DeValue::String(expansion.map_or(text, |expansion| Cow::Borrowed(&expansion.text)))
        }
        DeValue::Array(items) => DeValue::Array(items.into_iter().map(|item| apply_to(item, expansions)).collect()),
        DeValue::Table(table) => DeValue::Table(apply(table, expansions)),
        other => other,
    };
    Spanned::new(place, changed)
}

/// The number or boolean that a string stands for, if all of it came from one reference.
pub(super) fn as_scalar<'i>(value: &Spanned<DeValue<'i>>, expansions: &'i [Expansion]) -> Option<Spanned<DeValue<'i>>> {
    let expansion = expansions.iter().find(|expansion| expansion.whole && expansion.place == value.span())?;
    let parsed = DeValue::parse(&expansion.text).ok()?.into_inner();
    let scalar = matches!(parsed, DeValue::Integer(_) | DeValue::Float(_) | DeValue::Boolean(_));
    scalar.then(|| Spanned::new(value.span(), parsed))
}

type Problem = (String, String);

/// `None` for a string without references; else its text, and whether it was one reference only.
fn expand(text: &str, variables: &Variables<'_>) -> Result<Option<(String, bool)>, Problem> {
    if !text.contains("${") {
        return Ok(None);
    }
    let mut expanded = String::new();
    let mut rest = text;
    let mut whole = true;
    while let Some(start) = rest.find("${") {
        if rest[..start].ends_with('$') {
            expanded.push_str(&rest[..start]);
            expanded.push('{');
            rest = &rest[start + 2..];
            whole = false;
            continue;
        }
        let Some(length) = rest[start..].find('}') else {
            return Err((
                "a reference is not closed".to_owned(),
                "Write ${NAME}, ${NAME:-default}, ${file:PATH} or ${credential:NAME}; $${ stands for a literal ${."
                    .to_owned(),
            ));
        };
        whole &= start == 0 && start + length + 1 == rest.len() && expanded.is_empty();
        expanded.push_str(&rest[..start]);
        expanded.push_str(&resolve(&rest[start + 2..start + length], variables)?);
        rest = &rest[start + length + 1..];
    }
    expanded.push_str(rest);
    Ok(Some((expanded, whole)))
}

fn resolve(reference: &str, variables: &Variables<'_>) -> Result<String, Problem> {
    if let Some(path) = reference.strip_prefix("file:") {
        let text = (variables.read)(path).map_err(|error| {
            let hint = "The path is relative to the working directory.".to_owned();
            (format!("can't read the file \"{path}\": {error}"), hint)
        })?;
        return Ok(one_secret(&text));
    }
    if let Some(name) = reference.strip_prefix("credential:") {
        return credential(name, variables);
    }
    let (name, default) = match reference.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (reference, None),
    };
    let valid = !name.is_empty() && name.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_');
    if !valid {
        return Err((
            format!("\"{name}\" is not a name of a variable"),
            "Letters, digits and underscores: ${NAME} or ${NAME:-default}.".to_owned(),
        ));
    }
    // As in a shell, `:-` also stands in for a variable that is set but empty.
    match ((variables.get)(name), default) {
        (Some(value), None) => Ok(value),
        (Some(value), Some(_)) if !value.is_empty() => Ok(value),
        (_, Some(default)) => Ok(default.to_owned()),
        (None, None) => Err((
            format!("the environment variable {name} is not set"),
            format!("Set it, or give a default: ${{{name}:-default}}."),
        )),
    }
}

/// Files that hold one secret almost always end with a newline that isn't part of it.
fn one_secret(text: &str) -> String {
    text.trim_end_matches(['\r', '\n']).to_owned()
}

fn credential(name: &str, variables: &Variables<'_>) -> Result<String, Problem> {
    let is_name = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '_' | '-' | '.');
    if name.is_empty() || name.starts_with('.') || !name.chars().all(is_name) {
        return Err((
            format!("\"{name}\" is not a name of a credential"),
            "Letters, digits, underscores, hyphens and dots: ${credential:database-url}.".to_owned(),
        ));
    }
    let Some(folder) = (variables.get)(CREDENTIALS_DIRECTORY).filter(|folder| !folder.is_empty()) else {
        return Err((
            format!("there is no credential \"{name}\": {CREDENTIALS_DIRECTORY} is not set"),
            format!(
                "systemd sets it where a unit has LoadCredential=. By hand: {CREDENTIALS_DIRECTORY}=/etc/pipeline/credentials."
            ),
        ));
    };
    let read = |file: &str| (variables.read)(&format!("{folder}/{file}"));
    match read(name).or_else(|_| read(&format!("{LOADED_AS}{name}"))) {
        Ok(text) => Ok(one_secret(&text)),
        Err(error) => Err((
            format!("can't read the credential \"{name}\" in \"{folder}\": {error}"),
            format!("Write it to /etc/pipeline/credentials/{name}, mode 600, which the units load; then restart them."),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(text: &str) -> Result<Option<(String, bool)>, Problem> {
        let variables = Variables {
            get: &|name| match name {
                "HOST" => Some("broker".to_owned()),
                "EMPTY" => Some(String::new()),
                "CREDENTIALS_DIRECTORY" => Some("/run/credentials/a.service".to_owned()),
                _ => None,
            },
            read: &|path| match path {
                "/run/secret" => Ok("s3cret\n".to_owned()),
                "/run/credentials/a.service/one" => Ok("alone\n".to_owned()),
                "/run/credentials/a.service/pipeline_of-a-folder" => Ok("among others".to_owned()),
                _ => Err(std::io::ErrorKind::NotFound.into()),
            },
        };
        expand(text, &variables)
    }

    fn text(text: &str) -> String {
        expanded(text).expect("valid").expect("has a reference").0
    }

    #[test]
    fn references_are_replaced_where_they_stand() {
        assert_eq!(text("mqtt://${HOST}:${PORT:-1883}/"), "mqtt://broker:1883/");
        assert_eq!(text("${file:/run/secret}"), "s3cret");
        assert_eq!(text("a $${HOST} b"), "a ${HOST} b");
        assert_eq!(expanded("plain $ text").expect("valid"), None);
    }

    #[test]
    fn a_credential_is_found_however_its_unit_loads_it() {
        assert_eq!(text("${credential:one}"), "alone");
        assert_eq!(text("pw=${credential:of-a-folder}"), "pw=among others");
        let nowhere = Variables { get: &|_| None, read: &|_| Err(std::io::ErrorKind::NotFound.into()) };
        let (message, hint) = expand("${credential:one}", &nowhere).expect_err("no unit has started this");
        assert_eq!(message, "there is no credential \"one\": CREDENTIALS_DIRECTORY is not set");
        assert!(hint.contains("CREDENTIALS_DIRECTORY=/etc/pipeline/credentials"), "{hint}");
    }

    #[test]
    fn a_default_stands_in_for_an_empty_variable_too() {
        assert_eq!(text("${EMPTY:-x}"), "x");
        assert_eq!(text("${EMPTY}"), "");
    }

    #[test]
    fn only_a_lone_reference_is_whole() {
        assert!(expanded("${HOST}").expect("valid").expect("has a reference").1);
        for partly in ["${HOST}x", "x${HOST}", "${HOST}${HOST}"] {
            assert!(!expanded(partly).expect("valid").expect("has a reference").1, "{partly}");
        }
    }

    #[test]
    fn what_can_not_be_resolved_is_a_mistake() {
        for (text, message) in [
            ("${NOPE}", "the environment variable NOPE is not set"),
            ("${HOST", "a reference is not closed"),
            ("${a b}", "\"a b\" is not a name of a variable"),
            ("${file:/nowhere}", "can't read the file \"/nowhere\": entity not found"),
            (
                "${credential:nope}",
                "can't read the credential \"nope\" in \"/run/credentials/a.service\": entity not found",
            ),
            ("${credential:../x}", "\"../x\" is not a name of a credential"),
            ("${credential:}", "\"\" is not a name of a credential"),
        ] {
            assert_eq!(expanded(text).expect_err(text).0, message);
        }
    }
}
