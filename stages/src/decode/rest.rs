//! The fields of a message that no other column asks for, as one JSON object.
//!
//! Written while the payload is read, in its order. A field inside an object that has columns keeps its place: beside
//! `state.reported.temp`, an unknown `state.reported.fan` is `{"state":{"reported":{"fan":…}}}`.

use super::table::{NodeId, ROOT};

/// The object of the row at hand, as far as it has come.
#[derive(Debug)]
pub(super) struct Rest {
    /// The column that takes it.
    pub(super) column: usize,
    text: Vec<u8>,
    /// Objects that are begun and not ended, outermost first; the root is not among them.
    open: Vec<NodeId>,
}

impl Rest {
    pub(super) fn new(column: usize) -> Self {
        Self { column, text: Vec::new(), open: Vec::new() }
    }

    /// Begins a field of the object at the end of `chain`, which leads to it from the root with the keys on its way; its value is
    /// what is written next.
    pub(super) fn begin<'k>(&mut self, chain: &[(NodeId, &'k str)], key: &'k str) -> &mut Vec<u8> {
        debug_assert!(chain.iter().all(|(node, _)| *node != ROOT));
        if self.text.is_empty() {
            self.text.push(b'{');
        }
        // Objects come whole, one behind or inside the other: what is left is not come back to.
        let shared = self.open.iter().zip(chain).take_while(|(open, (node, _))| *open == node).count();
        for _ in self.open.drain(shared..) {
            self.text.push(b'}');
        }
        for (node, key) in &chain[shared..] {
            self.key(key);
            self.text.push(b'{');
            self.open.push(*node);
        }
        self.key(key);
        &mut self.text
    }

    fn key(&mut self, key: &str) {
        if self.text.last() != Some(&b'{') {
            self.text.push(b',');
        }
        serde_json::to_writer(&mut self.text, key).expect("memory takes all that is written");
        self.text.push(b':');
    }

    /// The whole object; `None` if no field has come.
    pub(super) fn end(&mut self) -> Option<&[u8]> {
        if self.text.is_empty() {
            return None;
        }
        for _ in self.open.drain(..) {
            self.text.push(b'}');
        }
        self.text.push(b'}');
        Some(&self.text)
    }

    /// Forgets the row at hand.
    pub(super) fn clear(&mut self) {
        self.text.clear();
        self.open.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_keep_their_place() {
        let mut rest = Rest::new(0);
        assert_eq!(rest.end(), None);
        let (state, reported, other) = ((3, "state"), (4, "reported"), (7, "ot\"her"));
        for (chain, key) in [
            (&[][..], "a"),
            (&[state, reported], "b"),
            (&[state, reported], "c"),
            (&[state], "d"),
            (&[other], "e"),
            (&[], "f"),
        ] {
            rest.begin(chain, key).extend(b"1");
        }
        let text = rest.end().map(String::from_utf8_lossy).unwrap().into_owned();
        assert_eq!(text, r#"{"a":1,"state":{"reported":{"b":1,"c":1},"d":1},"ot\"her":{"e":1},"f":1}"#);
        rest.clear();
        rest.begin(&[state], "x").extend(b"{}");
        assert_eq!(rest.end(), Some(br#"{"state":{"x":{}}}"#.as_slice()));
    }
}
