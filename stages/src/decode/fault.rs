//! Why a message was refused: a word to group by, and a sentence for a person.

/// The words that a decoder's dead letters carry as their reason.
pub(crate) mod reason {
    /// A payload without bytes, or an array without objects.
    pub(crate) const EMPTY: &str = "empty";
    /// Not JSON.
    pub(crate) const INVALID_JSON: &str = "invalid_json";
    /// Not CBOR.
    pub(crate) const INVALID_CBOR: &str = "invalid_cbor";
    /// Not MessagePack.
    pub(crate) const INVALID_MSGPACK: &str = "invalid_msgpack";
    /// A record of a CSV file that does not fit its header.
    pub(crate) const INVALID_CSV: &str = "invalid_csv";
    /// Text that is not UTF-8.
    pub(crate) const INVALID_UTF8: &str = "invalid_utf8";
    /// Something follows the end of the value.
    pub(crate) const TRAILING_DATA: &str = "trailing_data";
    /// Nested beyond [`super::super::DEPTH_MAX`].
    pub(crate) const TOO_DEEP: &str = "too_deep";
    /// The payload, or an element of its array, is no object.
    pub(crate) const NOT_AN_OBJECT: &str = "not_an_object";
    /// A key that leads to a column stands twice in one object.
    pub(crate) const DUPLICATE_KEY: &str = "duplicate_key";
    /// A field that no column asks for, where the source refuses such.
    pub(crate) const UNKNOWN_FIELD: &str = "unknown_field";
    /// A value of another type than its column.
    pub(crate) const WRONG_TYPE: &str = "wrong_type";
    /// No value, or null, for a required column.
    pub(crate) const MISSING: &str = "missing";
    /// A number or a time that its column can't hold.
    pub(crate) const OUT_OF_RANGE: &str = "out_of_range";
    /// NaN, an infinity, or a number beyond 64-bit floats.
    pub(crate) const NOT_FINITE: &str = "not_finite";
    /// Text that is no point in time.
    pub(crate) const BAD_TIMESTAMP: &str = "bad_timestamp";
    /// Text that is not base64.
    pub(crate) const BAD_BASE64: &str = "bad_base64";
    /// Text with the character U+0000, which PostgreSQL can't store.
    pub(crate) const NUL: &str = "nul";
    /// A value longer than its column may hold.
    pub(crate) const TOO_LONG: &str = "too_long";
    /// A record that a producer has packed others into, and that can't be taken apart.
    #[cfg(feature = "kinesis")]
    pub(crate) const AGGREGATE_DAMAGED: &str = "aggregate_damaged";
    /// A line of a file beyond the source's limit.
    pub(crate) const LINE_TOO_LONG: &str = "line_too_long";
}

/// One reason to refuse a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    /// One of [`reason`].
    pub(crate) reason: &'static str,
    /// A sentence for a person.
    pub(crate) detail: String,
}

/// Boxed, so that the good path moves a pointer and not a string.
pub(crate) type Verdict<T = ()> = Result<T, Box<Fault>>;

impl Fault {
    #[cold]
    pub(crate) fn new(reason: &'static str, detail: impl Into<String>) -> Box<Self> {
        Box::new(Self { reason, detail: detail.into() })
    }
}
