//! Reads a payload straight into a [`Table`], through serde and so from any format.
//!
//! Nothing in between: no tree of values, and no allocation for a message that fits the schema.

use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use pipeline_engine::schema::ColumnType;

use super::drift::UnknownFields;
use super::fault::{Fault, Verdict, reason};
use super::json_text::JsonText;
use super::table::{NodeId, Place, ROOT, Table, Target};
use super::{Message, timestamp};

/// Leaves the reason in the table, since an error of serde carries only text.
trait OrRefuse<T> {
    fn or_refuse<E: Error>(self, table: &mut Table) -> Result<T, E>;
}

impl<T> OrRefuse<T> for Verdict<T> {
    #[inline]
    fn or_refuse<E: Error>(self, table: &mut Table) -> Result<T, E> {
        self.map_err(|fault| {
            table.fault = Some(fault);
            E::custom("refused")
        })
    }
}

/// All that is neither an array, an object nor null, for a visitor with a `refuse` that says so.
macro_rules! refuse_scalars {
    () => {
        fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
            self.refuse(if value { "true" } else { "false" })
        }

        fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
            self.refuse("a number")
        }

        fn visit_u64<E: Error>(self, _: u64) -> Result<(), E> {
            self.refuse("a number")
        }

        fn visit_i128<E: Error>(self, _: i128) -> Result<(), E> {
            self.refuse("a number")
        }

        fn visit_u128<E: Error>(self, _: u128) -> Result<(), E> {
            self.refuse("a number")
        }

        fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
            self.refuse("a number")
        }

        fn visit_str<E: Error>(self, _: &str) -> Result<(), E> {
            self.refuse("text")
        }

        fn visit_bytes<E: Error>(self, _: &[u8]) -> Result<(), E> {
            self.refuse("bytes")
        }

        fn visit_newtype_struct<D: Deserializer<'de>>(self, _: D) -> Result<(), D::Error> {
            self.refuse("a MessagePack extension")
        }
    };
}

/// The whole payload: an object is a row, an array of objects a row each.
pub(super) struct PayloadSeed<'t, 'm> {
    pub(super) table: &'t mut Table,
    pub(super) message: &'t Message<'m>,
}

impl<'de> DeserializeSeed<'de> for PayloadSeed<'_, '_> {
    type Value = ();

    #[inline]
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(PayloadVisitor { table: self.table, message: self.message, element: None })
    }
}

struct PayloadVisitor<'t, 'm> {
    table: &'t mut Table,
    message: &'t Message<'m>,
    /// Counted from 1, inside an array.
    element: Option<usize>,
}

impl PayloadVisitor<'_, '_> {
    fn refuse<E: Error>(self, found: &str) -> Result<(), E> {
        let expected = if self.element.is_some() { "an object" } else { "an object or an array of objects" };
        let fault = Fault::new(reason::NOT_AN_OBJECT, format!("expected {expected}, found {found}"));
        Err(fault).or_refuse(self.table)
    }
}

impl<'de> DeserializeSeed<'de> for PayloadVisitor<'_, '_> {
    type Value = ();

    #[inline]
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for PayloadVisitor<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object or an array of objects")
    }

    #[inline]
    fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<(), A::Error> {
        ObjectVisitor { table: self.table, node: ROOT }.visit_map(entries)?;
        self.table.finish_row(self.message).or_refuse(self.table)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        if self.element.is_some() {
            return self.refuse("an array");
        }
        let mut element = 1;
        loop {
            let visitor = PayloadVisitor { table: self.table, message: self.message, element: Some(element) };
            let read = elements.next_element_seed(visitor);
            if let Some(fault) = &mut self.table.fault {
                fault.detail.insert_str(0, &format!("element {element}: "));
            }
            if read?.is_none() {
                break;
            }
            element += 1;
        }
        if element == 1 {
            return Err(Fault::new(reason::EMPTY, "the array holds no objects")).or_refuse(self.table);
        }
        Ok(())
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.refuse("null")
    }

    fn visit_none<E: Error>(self) -> Result<(), E> {
        self.refuse("null")
    }

    refuse_scalars!();
}

/// An object with columns inside.
struct ObjectVisitor<'t> {
    table: &'t mut Table,
    node: NodeId,
}

impl ObjectVisitor<'_> {
    fn refuse<E: Error>(self, found: &str) -> Result<(), E> {
        Err(self.table.no_object(self.node, found)).or_refuse(self.table)
    }
}

impl<'de> Visitor<'de> for ObjectVisitor<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    #[inline]
    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        let mut ordinal = 0;
        loop {
            let key = KeySeed { table: self.table, node: self.node, ordinal };
            match entries.next_key_seed(key)? {
                None => return Ok(()),
                Some(Place::Node(child)) => entries.next_value_seed(ValueSeed { table: self.table, node: child })?,
                Some(Place::Unknown) if !self.table.wants_unknown() => {
                    entries.next_value::<IgnoredAny>()?;
                    self.table.count_unknown();
                }
                Some(place) => entries.next_value_seed(UnknownSeed { table: self.table, node: self.node, place })?,
            }
            ordinal += 1;
        }
    }

    /// Null for an object: nothing inside it has a value.
    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_none<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<(), A::Error> {
        self.refuse("an array")
    }

    refuse_scalars!();
}

/// A key of an object: where it leads. A whole number counts as its digits, any other key that is
/// no text leads nowhere.
struct KeySeed<'t> {
    table: &'t mut Table,
    node: NodeId,
    ordinal: usize,
}

impl<'de> DeserializeSeed<'de> for KeySeed<'_> {
    type Value = Place;

    #[inline]
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for KeySeed<'_> {
    type Value = Place;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key that is text or a whole number")
    }

    #[inline]
    fn visit_str<E: Error>(self, key: &str) -> Result<Self::Value, E> {
        Ok(self.table.find(self.node, self.ordinal, key))
    }

    fn visit_u64<E: Error>(self, key: u64) -> Result<Self::Value, E> {
        self.visit_str(&key.to_string())
    }

    fn visit_i64<E: Error>(self, key: i64) -> Result<Self::Value, E> {
        self.visit_str(&key.to_string())
    }

    fn visit_u128<E: Error>(self, key: u128) -> Result<Self::Value, E> {
        self.visit_str(&key.to_string())
    }

    fn visit_i128<E: Error>(self, key: i128) -> Result<Self::Value, E> {
        self.visit_str(&key.to_string())
    }

    fn visit_bytes<E: Error>(self, _: &[u8]) -> Result<Self::Value, E> {
        Ok(Place::Unnamed)
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Self::Value, E> {
        Ok(Place::Unnamed)
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Self::Value, E> {
        Ok(Place::Unnamed)
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(Place::Unnamed)
    }

    fn visit_none<E: Error>(self) -> Result<Self::Value, E> {
        Ok(Place::Unnamed)
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, extension: D) -> Result<Self::Value, D::Error> {
        IgnoredAny::deserialize(extension).map(|_| Place::Unnamed)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Place::Unnamed)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
        while entries.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Place::Unnamed)
    }
}

/// The value of a key that no column asks for.
struct UnknownSeed<'t> {
    table: &'t mut Table,
    node: NodeId,
    place: Place,
}

impl<'de> DeserializeSeed<'de> for UnknownSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        let Self { table, node, place } = self;
        table.count_unknown();
        if place == Place::New {
            table.tell_unknown(node);
        }
        if table.drift.policy == UnknownFields::Reject {
            return Err(table.unknown_field(node, place)).or_refuse(table);
        }
        match if place == Place::Unnamed { None } else { table.keep_unknown(node) } {
            Some(kept) => kept.deserialize(deserializer),
            None => IgnoredAny::deserialize(deserializer).map(drop),
        }
    }
}

/// The value of a key that leads somewhere.
struct ValueSeed<'t> {
    table: &'t mut Table,
    node: NodeId,
}

impl<'de> DeserializeSeed<'de> for ValueSeed<'_> {
    type Value = ();

    #[inline]
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        self.table.enter(self.node).or_refuse(self.table)?;
        match *self.table.target(self.node) {
            Target::Column(column) if self.table.columns[column].kind == ColumnType::Json => {
                read_json(self.table, column, deserializer)
            }
            Target::Column(column) => deserializer.deserialize_any(ColumnVisitor { table: self.table, column }),
            Target::Object => deserializer.deserialize_any(ObjectVisitor { table: self.table, node: self.node }),
            Target::Shared(_) => read_shared(self.table, self.node, deserializer),
        }
    }
}

fn json_of<'de, D: Deserializer<'de>>(table: &mut Table, column: usize, deserializer: D) -> Result<Vec<u8>, D::Error> {
    let mut out = Vec::new();
    let Table { fault, doubtful, columns, .. } = table;
    JsonText { out: &mut out, fault, doubtful, name: &columns[column].name }.deserialize(deserializer)?;
    Ok(out)
}

fn read_json<'de, D: Deserializer<'de>>(table: &mut Table, column: usize, deserializer: D) -> Result<(), D::Error> {
    let text = json_of(table, column, deserializer)?;
    table.columns[column].put_json(&text).or_refuse(table)
}

/// Several columns want the value: it is kept as JSON text and read once for each. Rare, so it may
/// be slow.
fn read_shared<'de, D: Deserializer<'de>>(table: &mut Table, node: NodeId, deserializer: D) -> Result<(), D::Error> {
    let columns = table.columns_at(node).to_vec();
    let text = json_of(table, columns[0], deserializer)?;
    let base64 = std::mem::replace(&mut table.base64, true);
    let read = read_shared_text(table, node, &columns, &text);
    table.base64 = base64;
    read.map_err(D::Error::custom)
}

fn read_shared_text(table: &mut Table, node: NodeId, columns: &[usize], text: &[u8]) -> serde_json::Result<()> {
    for &column in columns {
        let mut parser = serde_json::Deserializer::from_slice(text);
        if table.columns[column].kind == ColumnType::Json {
            table.columns[column].put_json(text).or_refuse(table)?;
        } else {
            Deserializer::deserialize_any(&mut parser, ColumnVisitor { table, column })?;
        }
    }
    if table.has_children(node) {
        let mut parser = serde_json::Deserializer::from_slice(text);
        let was_within = std::mem::replace(&mut table.is_within_shared, true);
        Deserializer::deserialize_any(&mut parser, ObjectVisitor { table, node })?;
        table.is_within_shared = was_within;
    }
    Ok(())
}

/// The value of one column.
struct ColumnVisitor<'t> {
    table: &'t mut Table,
    column: usize,
}

impl ColumnVisitor<'_> {
    fn refuse<E: Error>(self, found: &str) -> Result<(), E> {
        Err(self.table.columns[self.column].wrong_type(found)).or_refuse(self.table)
    }
}

impl<'de> Visitor<'de> for ColumnVisitor<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    /// Null is the absence of a value: the row finds out whether it may be.
    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_none<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }

    #[inline]
    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        self.table.columns[self.column].put_bool(value).or_refuse(self.table)
    }

    #[inline]
    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.table.columns[self.column].put_int(value).or_refuse(self.table)
    }

    #[inline]
    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        match i64::try_from(value) {
            Ok(value) => self.visit_i64(value),
            Err(_) => self.visit_i128(i128::from(value)),
        }
    }

    /// CBOR may write any whole number in the form for large ones.
    fn visit_i128<E: Error>(self, value: i128) -> Result<(), E> {
        match i64::try_from(value) {
            Ok(value) => self.visit_i64(value),
            Err(_) => self.table.columns[self.column].put_large_int(value).or_refuse(self.table),
        }
    }

    fn visit_u128<E: Error>(self, value: u128) -> Result<(), E> {
        self.visit_i128(i128::try_from(value).unwrap_or(i128::MAX))
    }

    #[inline]
    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        self.table.columns[self.column].put_float(value).or_refuse(self.table)
    }

    #[inline]
    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        self.table.columns[self.column].put_text(text, self.table.base64).or_refuse(self.table)
    }

    fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<(), E> {
        self.table.columns[self.column].put_bytes(bytes).or_refuse(self.table)
    }

    fn visit_borrowed_bytes<E: Error>(self, bytes: &'de [u8]) -> Result<(), E> {
        self.table.doubtful.note(bytes);
        self.visit_bytes(bytes)
    }

    /// A MessagePack extension: only the timestamp of its specification has a meaning here.
    fn visit_newtype_struct<D: Deserializer<'de>>(self, extension: D) -> Result<(), D::Error> {
        let (kind, bytes) = <(i8, &[u8])>::deserialize(extension)?;
        let column = &mut self.table.columns[self.column];
        let verdict = match msgpack_time(kind, bytes) {
            Some(time) => column.put_time(time, "a timestamp extension"),
            None => Err(column.wrong_type(format_args!("extension {kind} of {} bytes", bytes.len()))),
        };
        verdict.or_refuse(self.table)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<(), A::Error> {
        self.refuse("an array")
    }

    fn visit_map<A: MapAccess<'de>>(self, _: A) -> Result<(), A::Error> {
        self.refuse("an object")
    }
}

/// Extension -1: seconds of 32 bits; 30 bits of nanoseconds and 34 of seconds; or 32 and 64.
fn msgpack_time(kind: i8, bytes: &[u8]) -> Option<Result<i64, timestamp::Mistake>> {
    let (seconds, nanos) = match (kind, bytes.len()) {
        (-1, 4) => (i64::from(u32::from_be_bytes(bytes.try_into().ok()?)), 0),
        (-1, 8) => {
            let both = u64::from_be_bytes(bytes.try_into().ok()?);
            (i64::try_from(both & 0x3_ffff_ffff).ok()?, u32::try_from(both >> 34).ok()?)
        }
        (-1, 12) => {
            let (nanos, seconds) = bytes.split_first_chunk::<4>()?;
            (i64::from_be_bytes(seconds.try_into().ok()?), u32::from_be_bytes(*nanos))
        }
        _ => return None,
    };
    if nanos >= 1_000_000_000 {
        return Some(Err(timestamp::Mistake::NotATime));
    }
    Some(timestamp::from_parts(seconds, nanos))
}
