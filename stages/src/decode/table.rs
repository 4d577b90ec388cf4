//! The columns of the batch that is being decoded, and the keys that lead to them.
//!
//! A row is complete only when [`Table::finish_row`] has said so; until then
//! [`Table::take_back`] leaves no trace of it.

use arrow::array::ArrayRef;
use pipeline_engine::schema::{DeclaredSchema, Origin};

use super::Message;
use super::column::Column;
use super::drift::{Drift, UnknownFields};
use super::fault::{Fault, Verdict, reason};
use super::json_text::JsonText;
use super::msgpack::Doubtful;
use super::rest::Rest;

/// An index into [`Table::nodes`].
pub(super) type NodeId = usize;

/// The node of the payload itself.
pub(super) const ROOT: NodeId = 0;

#[derive(Debug)]
pub(super) struct Table {
    pub(super) columns: Vec<Column>,
    origins: Vec<Origin>,
    nodes: Vec<Node>,
    rows: usize,
    /// Differs for each row, so that a node knows without clearing whether this row has met it.
    row_stamp: u64,
    /// Why the message that is being read can't become rows: serde's errors carry only text.
    pub(super) fault: Option<Box<Fault>>,
    /// Whether text may stand for bytes: the payload's format has none of its own.
    pub(super) base64: bool,
    /// Bytes of the message that is being read which may be text.
    pub(super) doubtful: Doubtful,
    /// What payloads hold beyond the schema.
    pub(super) drift: Drift,
    rest: Option<Rest>,
    /// The key of the field at hand, where somebody wants to know it.
    key: String,
    /// Columns take the whole object that is being read: nothing inside it is unknown.
    pub(super) is_within_shared: bool,
}

/// Where a key of an object leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// To a column, or to an object with columns inside.
    Node(NodeId),
    /// To nothing that a column asks for.
    Unknown,
    /// The same, and nobody has been told yet.
    New,
    /// The key is neither text nor a whole number.
    Unnamed,
}

/// A place in the payload that a path of keys leads to or through.
#[derive(Debug)]
struct Node {
    path: String,
    /// The last key of the path, and the node before it.
    key: Box<str>,
    parent: NodeId,
    /// Sorted by key.
    children: Vec<(Box<str>, NodeId)>,
    target: Target,
    /// The row that met it last.
    stamp: u64,
    /// What the keys of the last object were, in their order: the next message of the same fleet
    /// has the same ones.
    learned: Vec<Learned>,
}

/// What to do with the value of a key.
#[derive(Debug, Clone)]
pub(super) enum Target {
    /// It is the value of this column.
    Column(usize),
    /// It is an object with columns inside.
    Object,
    /// It is the value of several columns, or of one and has others inside.
    Shared(Box<[usize]>),
}

#[derive(Debug)]
struct Learned {
    key: Vec<u8>,
    child: Option<NodeId>,
}

/// Beyond so many keys in an object, and for keys longer than so many bytes, nothing is learned.
const LEARNED_MAX: usize = 64;
/// How much of a key is told.
const PATH_KEY_BYTES_MAX: usize = 80;

impl Table {
    pub(super) fn new(schema: &DeclaredSchema) -> Self {
        let columns =
            schema.columns.iter().map(|column| Column::new(&column.name, column.kind, column.format, column.required));
        let mut table = Self {
            columns: columns.collect(),
            origins: schema.columns.iter().map(|column| column.origin.clone()).collect(),
            nodes: vec![Node::new(String::new(), "", ROOT)],
            rows: 0,
            row_stamp: 1,
            fault: None,
            base64: false,
            doubtful: Doubtful::default(),
            drift: Drift::default(),
            rest: None,
            key: String::new(),
            is_within_shared: false,
        };
        for (index, column) in schema.columns.iter().enumerate() {
            match &column.origin {
                Origin::Field(path) => table.lead_to(path, index),
                Origin::Rest => table.rest = Some(Rest::new(index)),
                Origin::TopicSegment(_) | Origin::Topic | Origin::ReceivedAt => {}
            }
        }
        table
    }

    fn lead_to(&mut self, path: &[String], column: usize) {
        let mut node = ROOT;
        for key in path {
            node = match self.child(node, key) {
                Ok(child) => child,
                Err(place) => {
                    let above = &self.nodes[node].path;
                    let path = if above.is_empty() { key.clone() } else { format!("{above}.{key}") };
                    let child = self.nodes.len();
                    self.nodes.push(Node::new(path, key, node));
                    self.nodes[node].children.insert(place, (key.as_str().into(), child));
                    if let Target::Column(other) = self.nodes[node].target {
                        self.nodes[node].target = Target::Shared([other].into());
                    }
                    child
                }
            };
        }
        let node = &mut self.nodes[node];
        node.target = match &node.target {
            Target::Object if node.children.is_empty() => Target::Column(column),
            Target::Object => Target::Shared([column].into()),
            Target::Column(other) => Target::Shared([*other, column].into()),
            Target::Shared(others) => Target::Shared(others.iter().copied().chain([column]).collect()),
        };
    }

    fn child(&self, node: NodeId, key: &str) -> Result<NodeId, usize> {
        let children = &self.nodes[node].children;
        children.binary_search_by(|(name, _)| (**name).cmp(key)).map(|index| children[index].1)
    }

    /// Where the `ordinal`th key of an object leads.
    #[inline]
    pub(super) fn find(&mut self, node: NodeId, ordinal: usize, key: &str) -> Place {
        let place = match self.nodes[node].learned.get(ordinal) {
            Some(learned) if learned.key == key.as_bytes() => learned.child.map_or(Place::Unknown, Place::Node),
            _ => self.learn(node, ordinal, key),
        };
        if place == Place::New || place == Place::Unknown && self.wants_unknown() {
            self.key.clear();
            self.key.push_str(key);
        }
        place
    }

    /// Whether it does not do to count a field that no column asks for.
    pub(super) fn wants_unknown(&self) -> bool {
        !self.is_within_shared && (self.rest.is_some() || self.drift.policy == UnknownFields::Reject)
    }

    fn learn(&mut self, node: NodeId, ordinal: usize, key: &str) -> Place {
        let child = self.child(node, key).ok();
        if ordinal < LEARNED_MAX && key.len() <= LEARNED_MAX {
            let learned = &mut self.nodes[node].learned;
            // A key too long to be learned leaves a gap that no key matches: it is no UTF-8.
            while learned.len() <= ordinal {
                learned.push(Learned { key: vec![0xff], child: None });
            }
            let place = &mut learned[ordinal];
            place.key.clear();
            place.key.extend_from_slice(key.as_bytes());
            place.child = child;
        }
        match child {
            Some(child) => Place::Node(child),
            None if !self.is_within_shared && self.drift.is_new(node, key) => Place::New,
            None => Place::Unknown,
        }
    }

    #[inline]
    pub(super) fn count_unknown(&mut self) {
        if !self.is_within_shared {
            self.drift.count();
        }
    }

    /// The path of the unknown field at hand, as far as a person will read.
    fn unknown_path(&self, node: NodeId) -> String {
        let key = &self.key[..self.key.floor_char_boundary(PATH_KEY_BYTES_MAX)];
        let above = &self.nodes[node].path;
        let cut = if key.len() < self.key.len() { "…" } else { "" };
        if above.is_empty() { format!("{key}{cut}") } else { format!("{above}.{key}{cut}") }
    }

    pub(super) fn tell_unknown(&mut self, node: NodeId) {
        let kept_in = self.rest.as_ref().map(|rest| self.columns[rest.column].name.as_str());
        self.drift.tell_field(&self.unknown_path(node), kept_in);
    }

    #[cold]
    pub(super) fn unknown_field(&self, node: NodeId, place: Place) -> Box<Fault> {
        let detail = match place {
            Place::Unnamed => "a field has a key that is neither text nor a whole number".to_owned(),
            _ => format!("no column asks for the field {:?}", self.unknown_path(node)),
        };
        Fault::new(reason::UNKNOWN_FIELD, detail)
    }

    /// Where the value of the unknown field at hand is written, behind its key; `None` where it is not kept.
    pub(super) fn keep_unknown(&mut self, node: NodeId) -> Option<JsonText<'_>> {
        let Self { rest, nodes, key, fault, doubtful, columns, .. } = self;
        let rest = rest.as_mut()?;
        let mut chain = Vec::new();
        let mut at = node;
        while at != ROOT {
            chain.push((at, &*nodes[at].key));
            at = nodes[at].parent;
        }
        chain.reverse();
        let name = &columns[rest.column].name;
        Some(JsonText { out: rest.begin(&chain, key), fault, doubtful, name })
    }

    /// Keeps a field of a record, which is text, or refuses it.
    pub(super) fn put_unknown_field(&mut self, name: &str, text: &str) -> Verdict {
        self.drift.count();
        self.key.clear();
        self.key.push_str(name);
        if self.drift.policy == UnknownFields::Reject {
            return Err(self.unknown_field(ROOT, Place::Unknown));
        }
        match self.keep_unknown(ROOT) {
            Some(kept) => kept.put_field(text),
            None => Ok(()),
        }
    }

    /// Tells of the fields of a header that no column asks for.
    pub(super) fn tell_unknown_in_header(&mut self, name: &str) {
        if self.drift.is_new(ROOT, name) {
            self.key.clear();
            self.key.push_str(name);
            self.tell_unknown(ROOT);
        }
    }

    /// The node that this path of keys leads to, if a column lies there.
    pub(super) fn node_of(&self, dotted: &str) -> Option<NodeId> {
        self.nodes.iter().position(|node| node.path == dotted && !matches!(node.target, Target::Object))
    }

    /// The path of the first required column that no node in `given` leads to.
    pub(super) fn first_missing(&self, given: &[Option<NodeId>]) -> Option<&str> {
        let required = |node: NodeId| self.columns_at(node).iter().any(|column| self.columns[*column].required);
        let missing = (0..self.nodes.len()).find(|node| required(*node) && !given.contains(&Some(*node)))?;
        Some(&self.nodes[missing].path)
    }

    pub(super) fn columns_at(&self, node: NodeId) -> &[usize] {
        match &self.nodes[node].target {
            Target::Column(column) => std::slice::from_ref(column),
            Target::Object => &[],
            Target::Shared(columns) => columns,
        }
    }

    /// Notes that this row has met the node.
    ///
    /// # Errors
    /// It had met it before: two values, and nothing says which one is meant.
    pub(super) fn enter(&mut self, node: NodeId) -> Verdict {
        let node = &mut self.nodes[node];
        if node.stamp == self.row_stamp {
            return Err(Fault::new(
                reason::DUPLICATE_KEY,
                format!("the key \"{}\" stands twice in one object", node.path),
            ));
        }
        node.stamp = self.row_stamp;
        Ok(())
    }

    pub(super) fn target(&self, node: NodeId) -> &Target {
        &self.nodes[node].target
    }

    pub(super) fn has_children(&self, node: NodeId) -> bool {
        !self.nodes[node].children.is_empty()
    }

    #[cold]
    pub(super) fn no_object(&self, node: NodeId, found: &str) -> Box<Fault> {
        Fault::new(
            reason::WRONG_TYPE,
            format!("the key \"{}\" must hold an object, found {found}", self.nodes[node].path),
        )
    }

    /// Gives the row what comes with the message, and null where the payload had nothing.
    ///
    /// # Errors
    /// A required column has no value.
    pub(super) fn finish_row(&mut self, message: &Message<'_>) -> Verdict {
        if let Some(rest) = &mut self.rest {
            let column = rest.column;
            if let Some(object) = rest.end() {
                self.columns[column].put_json(object)?;
            }
            rest.clear();
        }
        for (column, origin) in self.columns.iter_mut().zip(&self.origins) {
            if column.len() > self.rows {
                continue;
            }
            let text = match origin {
                Origin::Field(_) | Origin::Rest => None,
                Origin::Topic => message.topic,
                Origin::TopicSegment(number) => message.topic.and_then(|topic| topic.split('/').nth(number - 1)),
                Origin::ReceivedAt => {
                    column.put_micros(message.received_at_us)?;
                    continue;
                }
            };
            match text {
                Some(text) => column.put_text(text, false)?,
                None if column.required => return Err(column.missing()),
                None => column.put_null(),
            }
        }
        self.rows += 1;
        self.row_stamp += 1;
        Ok(())
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Forgets everything from the row `rows` on, also a row that was only begun.
    pub(super) fn take_back(&mut self, rows: usize) {
        self.columns.iter_mut().for_each(|column| column.truncate(rows));
        self.rows = rows;
        self.row_stamp += 1;
        self.is_within_shared = false;
        if let Some(rest) = &mut self.rest {
            rest.clear();
        }
    }

    pub(super) fn take(&mut self) -> Vec<ArrayRef> {
        self.rows = 0;
        self.columns.iter_mut().map(Column::take).collect()
    }

    /// Columns that hold the time of receipt.
    pub(super) fn received_at_columns(&self) -> Vec<usize> {
        (0..self.origins.len()).filter(|index| self.origins[*index] == Origin::ReceivedAt).collect()
    }

    /// Puts the text of a CSV field, which has no types of its own, into a column.
    pub(super) fn put_field(&mut self, column: usize, text: &str) -> Verdict {
        use pipeline_engine::schema::ColumnType::{
            Binary, Bool, Float32, Float64, Int16, Int32, Int64, Json, Text, Timestamp,
        };
        let column = &mut self.columns[column];
        let trimmed = text.trim_ascii();
        match column.kind {
            Text => column.put_text(text, true),
            Binary => column.put_text(trimmed, true),
            Bool if trimmed.eq_ignore_ascii_case("true") => column.put_bool(true),
            Bool if trimmed.eq_ignore_ascii_case("false") => column.put_bool(false),
            Int16 | Int32 | Int64 | Float32 | Float64 | Timestamp => {
                match (trimmed.parse::<i64>(), trimmed.parse::<f64>()) {
                    (Ok(value), _) => column.put_int(value),
                    (_, Ok(value)) => column.put_float(value),
                    _ => column.put_text(trimmed, true),
                }
            }
            Json => super::json_text::reformat(column, trimmed),
            Bool => Err(column.wrong_type(super::column::Quoted(text))),
        }
    }
}

impl Node {
    fn new(path: String, key: &str, parent: NodeId) -> Self {
        Self {
            path,
            key: key.into(),
            parent,
            children: Vec::new(),
            target: Target::Object,
            stamp: 0,
            learned: Vec::new(),
        }
    }
}
