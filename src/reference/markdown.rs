//! The whole reference as one page of Markdown: `docs/stages.md`.

use pipeline_engine::{Kind, Registry};

use super::{Page, of_kind, settings};

/// Everything, settings first. Ends with one newline.
pub fn render(registry: &Registry) -> String {
    let mut text = String::from(
        "# Stages and settings\n\n\
         Made by `pipeline stages --format markdown` from the types that read a pipeline file; `pipeline stages TYPE` \
         shows one of them in a terminal.\n",
    );
    text.push_str(
        "\n## The file\n\n\
         A pipeline file is TOML. Its tables are these, and no others. In the text of a value `${VAR}` and `${VAR:-default}` stand for \
         a variable of the environment, `${file:PATH}` for what a file holds, `${credential:NAME}` for a credential that systemd \
         gives to the unit; `$${` is a literal `${`.\n",
    );
    settings().iter().for_each(|page| write(&mut text, page));
    for (kind, title) in [(Kind::Source, "Sources"), (Kind::Transform, "Transforms"), (Kind::Sink, "Sinks")] {
        let pages = of_kind(registry, kind);
        text += &format!("\n## {title}\n\n| type | what it does |\n|---|---|\n");
        for page in &pages {
            let word = page.type_name.unwrap_or_default();
            text += &format!("| [`{word}`](#{}) | {} |\n", anchor(page), cell(&page.summary));
        }
        pages.iter().for_each(|page| write(&mut text, page));
    }
    text
}

fn write(text: &mut String, page: &Page) {
    let title = heading(page);
    *text += &format!("\n### {title}\n\n{}\n\n", prose(&page.summary));
    text.push_str("| key | | |\n|---|---|---|\n");
    for key in &page.keys {
        *text += &format!("| `{}` | {} | {} |\n", key.name, cell(&key.facts), cell(&key.text));
    }
    if !page.ports.is_empty() {
        text.push_str("\n| port | what leaves by it |\n|---|---|\n");
        for (port, what) in &page.ports {
            *text += &format!("| `{port}` | {} |\n", cell(what));
        }
    }
    if let Some(failure) = page.failure {
        *text += &format!("\n*On failure*: {}\n", prose(failure));
    }
}

/// A word that is a source and a sink has two headings, told apart by their tables.
fn heading(page: &Page) -> String {
    match page.type_name {
        Some(word) => format!("{} {word}", kind_word(page)),
        None => page.table.trim_matches(['[', ']']).to_owned(),
    }
}

fn kind_word(page: &Page) -> &str {
    let table = page.table.trim_start_matches('[');
    table.split("s.").next().unwrap_or(table)
}

/// As GitHub and mdBook name the place of a heading.
fn anchor(page: &Page) -> String {
    heading(page).to_lowercase().replace(' ', "-")
}

fn prose(text: &str) -> String {
    text.lines().map(str::trim).collect::<Vec<_>>().join("\n")
}

/// One line, with nothing that would end the cell or be taken for HTML.
fn cell(text: &str) -> String {
    let mut cell = String::new();
    let mut in_code = false;
    for character in prose(text).replace("\n\n", "<br>").replace('\n', " ").replace("<br>", "\0").chars() {
        match character {
            '\0' => cell.push_str("<br>"),
            '|' => cell.push_str("\\|"),
            '<' if !in_code => cell.push_str("&lt;"),
            '`' => {
                in_code = !in_code;
                cell.push('`');
            }
            other => cell.push(other),
        }
    }
    cell
}
