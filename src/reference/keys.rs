//! The keys of a table, from the JSON schema of the type that reads it.

use serde_json::Value;

use super::Key;

/// All keys of a configuration, those of tables within it right after their own.
pub fn of(schema: &Value) -> Vec<Key> {
    let mut keys = Vec::new();
    collect(schema, schema, "", &mut keys);
    keys
}

fn collect(root: &Value, schema: &Value, prefix: &str, keys: &mut Vec<Key>) {
    let required: Vec<&str> =
        schema["required"].as_array().into_iter().flatten().filter_map(|key| key.as_str()).collect();
    for (key, property) in schema["properties"].as_object().into_iter().flatten() {
        let (inner, description) = (resolve(root, property), &property["description"]);
        let mut facts = vec![type_of(root, property)];
        match &property["default"] {
            Value::Null if required.contains(&key.as_str()) => facts.push("required".to_owned()),
            Value::Null => facts.push("optional".to_owned()),
            Value::String(text) => facts.push(format!("default \"{text}\"")),
            default => facts.push(format!("default {default}")),
        }
        let text = description.as_str().or_else(|| inner["description"].as_str()).unwrap_or_default();
        let text = format!("{text}{}", words_told(inner));
        keys.push(Key { name: format!("{prefix}{key}"), facts: facts.join(", "), text });
        if inner["properties"].is_object() {
            collect(root, inner, &format!("{prefix}{key}."), keys);
        }
        // Tables that the file's author names.
        let named = resolve(root, &inner["additionalProperties"]);
        if named["properties"].is_object() {
            collect(root, named, &format!("{prefix}{key}.NAME."), keys);
        }
    }
}

/// Follows `$ref`, also inside the `anyOf` of an optional value.
fn resolve<'s>(root: &'s Value, property: &'s Value) -> &'s Value {
    if let Some(name) = property["$ref"].as_str().and_then(|path| path.strip_prefix("#/$defs/")) {
        return &root["$defs"][name];
    }
    let choices = property["anyOf"].as_array();
    match choices.into_iter().flatten().find(|choice| choice["type"] != "null") {
        Some(choice) => resolve(root, choice),
        None => property,
    }
}

fn type_of(root: &Value, property: &Value) -> String {
    let schema = resolve(root, property);
    if let Some(words) = variants(schema) {
        return words.join(" | ");
    }
    if let Some(format @ ("duration" | "size" | "secret")) = schema["format"].as_str() {
        return format.to_owned();
    }
    let word = match &schema["type"] {
        Value::Array(types) => types.iter().filter_map(|word| word.as_str()).find(|word| *word != "null"),
        word => word.as_str(),
    };
    match word {
        Some("string") => "text".to_owned(),
        Some("integer") => "whole number".to_owned(),
        Some("array") => format!("list of {}", type_of(root, &schema["items"])),
        Some("object") if schema["additionalProperties"].is_object() => {
            format!("table of {}", type_of(root, &schema["additionalProperties"]))
        }
        Some("object") => "table".to_owned(),
        Some(word) => word.to_owned(),
        None => "any".to_owned(),
    }
}

/// What each word of an enumeration means, as a paragraph of its own; empty where nothing is said of any.
fn words_told(schema: &Value) -> String {
    let told = |choice: &Value| {
        let (word, text) = (choice["const"].as_str()?, choice["description"].as_str()?);
        Some(format!("\"{word}\": {}", text.split('\n').map(str::trim).collect::<Vec<_>>().join(" ")))
    };
    let told: Vec<String> = schema["oneOf"].as_array().into_iter().flatten().filter_map(told).collect();
    if told.is_empty() { String::new() } else { format!("\n\n{}", told.join("\n\n")) }
}

/// The words of an enumeration, quoted.
fn variants(schema: &Value) -> Option<Vec<String>> {
    let quoted = |word: &Value| word.as_str().map(|word| format!("\"{word}\""));
    if let Some(words) = schema["enum"].as_array() {
        return Some(words.iter().filter_map(quoted).collect());
    }
    let choices = schema["oneOf"].as_array()?;
    let mut words = Vec::new();
    for choice in choices {
        match (&choice["const"], variants(choice)) {
            (Value::Null, Some(more)) => words.extend(more),
            (Value::Null, None) => words.push(choice["type"].as_str().unwrap_or("any").to_owned()),
            (word, _) => words.extend(quoted(word)),
        }
    }
    Some(words)
}
