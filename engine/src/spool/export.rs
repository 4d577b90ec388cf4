//! Takes the records out of a spool that is damaged, or that belongs to no pipeline any more.
//!
//! Every record that an undamaged frame holds comes out, in order and once; what can't be read is
//! said in the [`Inspection`] that is given back. Like looking, it takes no lock and changes nothing.

use std::ops::{ControlFlow, RangeInclusive};
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::error::SpoolError;
use super::frame::{self, Record};
use super::inspect::{Inspection, look};
use crate::storage::Storage;
use crate::terminal::printable_json;
use crate::time::format_us;

/// A record and its number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportedRecord {
    /// Counts records from 1.
    pub lsn: u64,
    /// What was received.
    pub record: Record,
}

/// Gives the records of `lsns` to `take`, the oldest first, until that breaks off. Blocks.
///
/// # Errors
/// As for [`super::inspect`]. Damage is no error.
pub fn export(
    dir: &Path,
    storage: &dyn Storage,
    lsns: RangeInclusive<u64>,
    mut take: impl FnMut(ExportedRecord) -> ControlFlow<()>,
) -> Result<Inspection, SpoolError> {
    look(dir, storage, u64::MAX, &mut |bytes, head| {
        if head.first_lsn > *lsns.end() {
            return ControlFlow::Break(());
        }
        // An undamaged frame that can't be decoded was never written by this program.
        let records = frame::decode(&bytes, head).map(|frame| frame.records).unwrap_or_default();
        for (lsn, record) in (head.first_lsn..).zip(records).filter(|(lsn, _)| lsns.contains(lsn)) {
            take(ExportedRecord { lsn, record })?;
        }
        ControlFlow::Continue(())
    })
}

impl ExportedRecord {
    /// One line of JSON without the newline: `lsn`, `received_at`, `topic` and `payload`, and `flags`
    /// and `mark` if the source has set any. What is not text has its name end in `_base64`; control characters are
    /// written out.
    pub fn json(&self) -> String {
        let mut fields = Map::new();
        fields.insert("lsn".to_owned(), self.lsn.into());
        fields.insert("received_at".to_owned(), format_us(self.record.received_at_us).into());
        if self.record.flags != 0 {
            fields.insert("flags".to_owned(), self.record.flags.into());
        }
        if self.record.mark != 0 {
            fields.insert("mark".to_owned(), self.record.mark.into());
        }
        for (name, bytes) in [("topic", &self.record.topic), ("payload", &self.record.payload)] {
            match std::str::from_utf8(bytes) {
                Ok(text) => fields.insert(name.to_owned(), text.into()),
                Err(_) => fields.insert(format!("{name}_base64"), STANDARD.encode(bytes).into()),
            };
        }
        printable_json(Value::Object(fields).to_string())
    }
}
