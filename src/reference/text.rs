//! A page of the reference for a terminal.

use super::Page;

/// The page, ending in an empty line.
pub fn render(page: &Page) -> String {
    let mut text = String::new();
    text += &match page.type_name {
        Some(type_name) => format!("{}\ntype = \"{type_name}\"\n\n{}\n\n", page.table, page.summary),
        None => format!("{}: {}\n\n", page.table, page.summary),
    };
    text += "Keys\n";
    for key in &page.keys {
        text += &format!("  {} ({})\n{}\n", key.name, key.facts, indent(&key.text, "      "));
    }
    text += "\n";
    if !page.ports.is_empty() {
        text += "Ports\n";
        for (port, what) in &page.ports {
            text += &format!("  {port:<12} {what}\n");
        }
        text += "\n";
    }
    if let Some(failure) = page.failure {
        text += &format!("On failure\n{}\n\n", indent(failure, "  "));
    }
    text
}

fn indent(text: &str, by: &str) -> String {
    text.lines().map(|line| format!("{by}{}", line.trim())).collect::<Vec<_>>().join("\n")
}
