//! `docs/rule.md` names every function that runs and every one that is refused, and no other.

use std::collections::BTreeSet;
use std::path::PathBuf;

use crate::transforms::rule::functions::{OF_MESSAGE, REFUSED, all};

/// The names in the first column of the table under a heading: `| `abs(number)` | … |`.
fn listed(page: &str, heading: &str) -> BTreeSet<String> {
    let section = page.split_once(heading).unwrap_or_else(|| panic!("no heading {heading}")).1;
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.map(|row| row.split(['(', '`']).next().unwrap().to_ascii_lowercase()).collect()
}

#[test]
fn the_page_lists_the_functions_there_are() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/rule.md");
    let page = std::fs::read_to_string(path).unwrap();
    let runs: BTreeSet<String> = all()
        .map(|function| function.name)
        .chain(OF_MESSAGE.iter().map(|(name, _)| *name))
        .map(str::to_owned)
        .collect();
    assert_eq!(listed(&page, "## Functions"), runs);
    for function in all() {
        assert!(
            page.contains(&format!("`{}`", function.usage)),
            "{} is not shown as `{}`",
            function.name,
            function.usage
        );
    }
    let refused: BTreeSet<String> = REFUSED.iter().map(|(name, ..)| (*name).to_owned()).collect();
    assert_eq!(listed(&page, "## Functions that are refused"), refused);
    assert!(runs.is_disjoint(&refused));
}
