//! `pipeline stages [TYPE]`: the reference of every stage, generated from its configuration.

use clap::Args;
use pipeline_engine::StageType;
use pipeline_engine::suggest::suggest;
use serde_json::Value;

use super::Failure;

/// List the types of stages, or everything about one.
#[derive(Debug, Args)]
pub struct StagesArguments {
    /// The type, as in `type = "..."`.
    type_name: Option<String>,
}

pub fn run(arguments: StagesArguments) -> Result<(), Failure> {
    let registry = pipeline_stages::registry();
    let Some(word) = arguments.type_name else {
        for found in registry.types() {
            println!("{:<10} {:<12} {}", found.kind.word(), found.doc.type_name, found.doc.summary);
        }
        println!("\n`pipeline stages TYPE` shows its keys, ports and what happens on failure.");
        return Ok(());
    };
    if word == "pipeline" {
        println!("[pipeline]: settings of the run as a whole\n");
        print_keys(&Value::from(pipeline_engine::pipeline_schema()));
        println!("\n[http]: where a running pipeline can be looked at\n");
        print_keys(&Value::from(pipeline_engine::http_schema()));
        return Ok(());
    }
    let found: Vec<&StageType> = registry.types().filter(|known| known.doc.type_name == word).collect();
    if found.is_empty() {
        let known = registry.types().map(|known| known.doc.type_name);
        let hint = suggest(&word, known, "Types", "");
        return Err(Failure::Wrong(format!("error: no type is named \"{word}\"\n  = hint: {hint}")));
    }
    found.iter().for_each(|stage| print_stage(stage));
    Ok(())
}

fn print_stage(stage: &StageType) {
    let (kind, doc) = (stage.kind, &stage.doc);
    println!("[{}.NAME]\ntype = \"{}\"\n\n{}\n", kind.table(), doc.type_name, doc.summary);
    print_keys(&Value::from(stage.config_schema.clone()));
    if !doc.ports.is_empty() {
        println!("Ports");
        doc.ports.iter().for_each(|(port, what)| println!("  {port:<12} {what}"));
        println!();
    }
    println!("On failure\n{}\n", indent(doc.failure, "  "));
}

fn print_keys(schema: &Value) {
    println!("Keys");
    print_properties(schema, schema, "");
    println!();
}

fn print_properties(root: &Value, schema: &Value, prefix: &str) {
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
        println!("  {prefix}{key} ({})", facts.join(", "));
        let text = description.as_str().or_else(|| inner["description"].as_str()).unwrap_or_default();
        println!("{}", indent(text, "      "));
        if inner["properties"].is_object() {
            print_properties(root, inner, &format!("{prefix}{key}."));
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
    if let Some(format @ ("duration" | "size")) = schema["format"].as_str() {
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

fn indent(text: &str, by: &str) -> String {
    text.lines().map(|line| format!("{by}{}", line.trim())).collect::<Vec<_>>().join("\n")
}
