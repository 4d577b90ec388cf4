//! What the documentation says is there: links, subcommands and flags, pages of the book, the reference of stages.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::root;

/// Every Markdown file of the project, by its path from the root.
fn pages() -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root().to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder of the project") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                if !name.starts_with('.') && !["target", "corpus", "data", "pipeline-data"].contains(&name.as_str()) {
                    folders.push(path);
                }
            } else if name.ends_with(".md") {
                let text = std::fs::read_to_string(&path).expect("text");
                found.insert(path.strip_prefix(root()).expect("within").to_path_buf(), text);
            }
        }
    }
    assert!(found.len() > 10, "{found:?}");
    found
}

/// Text outside code blocks, where links and headings are.
fn prose(text: &str) -> String {
    let mut in_code = false;
    let outside = |line: &&str| {
        let fence = line.trim_start().starts_with("```");
        in_code ^= fence;
        !in_code && !fence
    };
    text.lines().filter(outside).collect::<Vec<_>>().join("\n")
}

/// Headings as GitHub and mdBook name their places.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = prose(text);
    let headings = headings.lines().filter_map(|line| line.strip_prefix('#')).map(|line| line.trim_start_matches('#'));
    let anchor = |heading: &str| {
        let kept = heading.trim().to_lowercase().replace(' ', "-");
        kept.chars().filter(|character| character.is_alphanumeric() || "-_".contains(*character)).collect()
    };
    headings.map(anchor).collect()
}

/// Targets of `[text](target)` and `src="target"`.
fn links(text: &str) -> Vec<String> {
    let prose = prose(text);
    let inline = prose.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let images = prose.split("src=\"").skip(1).filter_map(|rest| rest.split('"').next());
    inline.chain(images).map(str::to_owned).collect()
}

#[test]
fn no_link_leads_nowhere() {
    let pages = pages();
    let mut broken = Vec::new();
    for (page, text) in &pages {
        for link in links(text).iter().filter(|link| !link.contains("://") && !link.starts_with("mailto:")) {
            let (file, place) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => root().join(page),
                file => root().join(page).parent().expect("a folder").join(file),
            };
            if !target.exists() {
                broken.push(format!("{}: {link}", page.display()));
            } else if !place.is_empty() {
                let text = std::fs::read_to_string(&target).expect("a page");
                if !anchors(&text).contains(place) {
                    broken.push(format!("{}: {link} names no heading", page.display()));
                }
            }
        }
    }
    assert!(broken.is_empty(), "broken links:\n{}", broken.join("\n"));
}

#[test]
fn the_book_has_every_page_of_the_documentation() {
    let summary = std::fs::read_to_string(root().join("docs/SUMMARY.md")).expect("docs/SUMMARY.md");
    let listed: BTreeSet<PathBuf> = links(&summary).iter().map(|link| Path::new("docs").join(link)).collect();
    let written = pages().into_keys().filter(|page| page.starts_with("docs") && !page.ends_with("SUMMARY.md"));
    let missing: Vec<PathBuf> = written.filter(|page| !listed.contains(page)).collect();
    assert!(missing.is_empty(), "not in docs/SUMMARY.md: {missing:?}");
}

#[test]
fn the_reference_of_stages_is_what_the_code_says() {
    let page = root().join("docs/stages.md");
    let text = pipeline(&["stages", "--format", "markdown"]);
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&page, &text).expect("docs can be written");
    }
    let written = std::fs::read_to_string(&page).unwrap_or_default();
    assert!(written == text, "docs/stages.md is old: BLESS=1 tests/run docs");
    let wrong: Vec<&str> = text.lines().filter(|line| line.starts_with('|') && !line.ends_with('|')).collect();
    assert!(wrong.is_empty(), "cells that break their table: {wrong:?}");
}

/// Subcommands and flags that code blocks of the documentation use.
#[test]
fn no_command_is_shown_that_is_not_there() {
    let mut helps = BTreeMap::new();
    let mut wrong = Vec::new();
    let mut seen = 0;
    for (page, text) in pages() {
        for line in commands(&text) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let Some(at) = words.iter().position(|word| *word == "pipeline") else { continue };
            // A folder or service of that name is no command.
            if at > 0 && !is_before_a_command(words[at - 1]) {
                continue;
            }
            seen += 1;
            if let Err(why) = check(&words[at + 1..], &mut helps) {
                wrong.push(format!("{}: {line}: {why}", page.display()));
            }
        }
    }
    assert!(seen > 30, "only {seen} commands found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What may stand before a command in a line of shell.
fn is_before_a_command(word: &str) -> bool {
    word.contains('=') || ["&&", "||", "|", ";", "if", "!", "sudo", "time", "exec", "nohup", "$", "do"].contains(&word)
}

/// Lines of shell in code blocks, with lines that go on put together and comments left out.
fn commands(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut in_shell = false;
    for line in text.lines() {
        if let Some(language) = line.trim_start().strip_prefix("```") {
            in_shell = !in_shell && ["sh", "bash"].contains(&language.split(',').next().unwrap_or_default());
            continue;
        }
        if in_shell {
            lines.push(line.to_owned());
        }
    }
    let joined = lines.join("\n").replace("\\\n", " ");
    let code = |line: &str| line.split(" #").next().unwrap_or_default().trim().to_owned();
    joined.lines().map(code).filter(|line| !line.is_empty() && !line.starts_with('#')).collect()
}

/// Whether subcommand and flags are known; `helps` are the help texts asked for already.
fn check(words: &[&str], helps: &mut BTreeMap<String, String>) -> Result<(), String> {
    let mut path: Vec<&str> = Vec::new();
    let end = words.iter().position(|word| ["|", "&&", "||", ";", ">", "&"].contains(word)).unwrap_or(words.len());
    let words = &words[..end];
    for word in words.iter().take_while(|word| !word.starts_with('-')) {
        let help = help_of(&path, helps);
        if !has_subcommand(&help, word) {
            break;
        }
        path.push(word);
    }
    let help = help_of(&path, helps);
    if path.is_empty() && !words.first().is_some_and(|word| word.starts_with('-')) {
        return Err("no such subcommand".to_owned());
    }
    for flag in words.iter().filter(|word| word.starts_with("--") && word.len() > 2) {
        let flag = flag.split('=').next().unwrap_or_default();
        let is_there = help.split(|character: char| !(character.is_alphanumeric() || character == '-'));
        if !is_there.into_iter().any(|word| word == flag) {
            return Err(format!("\"pipeline {}\" has no {flag}", path.join(" ")));
        }
    }
    Ok(())
}

fn help_of(path: &[&str], helps: &mut BTreeMap<String, String>) -> String {
    let mut arguments = path.to_vec();
    arguments.push("--help");
    helps.entry(path.join(" ")).or_insert_with(|| pipeline(&arguments)).clone()
}

fn has_subcommand(help: &str, word: &str) -> bool {
    let list = help.split_once("Commands:").map_or("", |(_, rest)| rest);
    let list = list.split("\n\n").next().unwrap_or_default();
    list.lines().any(|line| line.split_whitespace().next() == Some(word) && line.starts_with("  "))
}

fn pipeline(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_pipeline")).args(arguments).current_dir(root()).output();
    let output = output.expect("the binary runs");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}
