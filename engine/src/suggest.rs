//! "Did you mean": the nearest of the words that would have worked.

/// A hint for an unknown word: the nearest known one, if it is near, then all of them; `none` where
/// there are none.
pub fn suggest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>, what: &str, none: &str) -> String {
    let known: Vec<&str> = known.into_iter().collect();
    if known.is_empty() {
        return none.to_owned();
    }
    let list = known.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
    match nearest(word, &known) {
        Some(near) => format!("Did you mean \"{near}\"? {what}: {list}."),
        None => format!("{what}: {list}."),
    }
}

/// The known word with the fewest edits, if those are few for its length.
pub fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let closest = known.iter().map(|name| (edits(word, name), *name)).min()?;
    (closest.0 <= 1 + word.chars().count() / 4).then_some(closest.1)
}

/// Insertions, removals, replacements and swaps of neighbours between two words.
fn edits(left: &str, right: &str) -> usize {
    let (left, right): (Vec<char>, Vec<char>) = (left.chars().collect(), right.chars().collect());
    let mut before_last = vec![0; right.len() + 1];
    let mut last: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, b) in right.iter().enumerate() {
            let mut cost = (last[j] + usize::from(a != b)).min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *a == right[j - 1] && left[i - 1] == *b {
                cost = cost.min(before_last[j - 1] + 1);
            }
            row.push(cost);
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_swap_of_neighbours_is_one_edit() {
        assert_eq!(nearest("vlaid", &["telemetry", "valid"]), Some("valid"));
    }

    #[test]
    fn a_word_that_is_far_from_all_has_no_nearest() {
        assert_eq!(nearest("xyz", &["telemetry", "valid"]), None);
    }
}
