//! `type = "http"` in a pipeline file.

use std::borrow::Cow;
use std::fmt;
use std::net::SocketAddr;

use pipeline_engine::dead_letter;
use pipeline_engine::secret::SECRET;
use pipeline_engine::spool::{RECORD_BYTES_MAX, SpoolOptions};
use pipeline_engine::stage::{BuildContext, BuildError, BuiltSource, Port, SourceConfig, StageDoc};
use pipeline_engine::units::SizeText;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde::de::{Deserializer, SeqAccess, Visitor};

use super::HttpSource;
use super::access::Access;
use super::body::Bounds;
use crate::decode::{Format, UnknownFields};
use crate::sources::decoder;
use crate::sources::spooled::SpoolConfig;

/// `type = "http"` in a `[sources.NAME]` table.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HttpSourceConfig {
    /// Address and port to take posts at. Others than this machine need a token. TLS is the matter of a proxy in front,
    /// which a Firehose needs.
    #[serde(default = "default_address")]
    address: String,
    /// What a post must bring along, as `Authorization: Bearer TOKEN` or as Firehose's access key: one token, or a list while
    /// an old one is replaced.
    #[serde(default)]
    tokens: Tokens,
    /// Let everybody post who can reach the address.
    #[serde(default)]
    insecure: bool,
    /// The largest body, as sent and unpacked. A larger one is refused with 413, after which a Firehose gives its
    /// records up: the default is the largest that it sends.
    #[serde(default = "default_body_max")]
    body_max: SizeText,
    /// The most memory that posts take together: bodies, unpacked too, and places of messages. A post that finds no room
    /// waits for it, and is told to come again (429) where that takes too long.
    #[serde(default = "default_memory_max")]
    memory_max: SizeText,
    /// A larger message is not decoded: its beginning leaves by `rejected`, with the reason `oversize`.
    #[serde(default = "default_payload_max")]
    payload_max: SizeText,
    /// The schema that messages are decoded by. Without one the rows are the messages themselves: `topic`, `payload` and
    /// `received_at`.
    schema: Option<String>,
    /// What becomes of a field that no column of the schema asks for; a column with `rest = true` keeps it as JSON. All are
    /// counted as `unknown_fields`, and the first one of its name is told.
    unknown_fields: Option<UnknownFields>,
    /// How messages are encoded. A body of JSON is one value, an array of them, or values one behind the other, such as
    /// lines; each value is a message. A body of another format is one message.
    #[serde(default)]
    format: Format,
    /// The most rows that travel together.
    #[serde(default = "default_batch_rows")]
    batch_rows: u32,
    /// Where messages wait until every sink has them.
    #[serde(default)]
    spool: SpoolConfig,
}

fn default_address() -> String {
    "127.0.0.1:8080".to_owned()
}

fn default_body_max() -> SizeText {
    SizeText(64 << 20)
}

fn default_memory_max() -> SizeText {
    SizeText(256 << 20)
}

fn default_payload_max() -> SizeText {
    SizeText(256 << 10)
}

fn default_batch_rows() -> u32 {
    8192
}

/// What a topic and the spool's own bytes take of a record.
const PAYLOAD_MAX: SizeText = SizeText(RECORD_BYTES_MAX as u64 - (1 << 20));
/// Bodies are counted in 32 bits.
const BODY_MAX: SizeText = SizeText(1 << 30);

impl SourceConfig for HttpSourceConfig {
    const DOC: StageDoc = StageDoc {
        type_name: "http",
        summary: "Takes in what is posted over HTTP, also by an Amazon Data Firehose, and answers 200 once it is on disk.",
        ports: &[(
            "rejected",
            "messages that do not fit the schema, the beginning of oversize ones, and a note of what a damaged disk has lost",
        )],
        failure: "Disk full or failing: posts are answered with 429 and Retry-After until it can write again, which it \
                  tries by itself. Permanent (the address is taken or not this machine's, a spool that is another \
                  source's): the run stops. A body that is no JSON is answered with 400 and why; a single bad message of a \
                  body leaves by `rejected`. \
                  Duplicates: a post that comes again with its Idempotency-Key or Firehose request id, the same \
                  path and content, is recognised and stored once, over restarts too, among the last million messages as long as \
                  the spool keeps them (`spool.retain`). What comes again without a key is a message of its own: use a \
                  key of the payload, such as device and timestamp, as the sink's key. \
                  After a start it goes on where every sink has stored everything.",
    };

    fn build(self, cx: &BuildContext) -> Result<BuiltSource, BuildError> {
        let address = self.address()?;
        let access = self.access(address)?;
        if self.batch_rows == 0 {
            return Err(BuildError::invalid("batch_rows", "a batch has at least one row"));
        }
        if self.payload_max.0 > PAYLOAD_MAX.0 {
            return Err(BuildError::invalid("payload_max", format!("the spool holds messages up to {PAYLOAD_MAX}")));
        }
        let bounds = self.bounds()?;
        let spool = self.spool.options(cx, SpoolOptions::GROUP_LINGER)?;
        let schema = self.schema.as_deref().map(|name| cx.schema("schema", name)).transpose()?;
        let decoder = decoder(cx, schema.as_deref(), self.format, self.unknown_fields)?;
        let mut outputs = decoder.outputs();
        if !outputs.iter().any(|(port, _)| *port == Port::REJECTED) {
            // Without a schema every message is a row; an oversize one is none all the same.
            outputs.push((Port::REJECTED, dead_letter::schema()));
        }
        let source = HttpSource {
            stage: cx.stage.clone(),
            address,
            access,
            bounds,
            format: self.format,
            schema,
            decoder,
            batch_rows_max: self.batch_rows as usize,
            spool_dir: cx.state_dir().join("spool"),
            spool,
        };
        Ok(BuiltSource { source: Box::new(source), outputs })
    }
}

impl HttpSourceConfig {
    fn address(&self) -> Result<SocketAddr, BuildError> {
        self.address.parse().map_err(|_| {
            BuildError::invalid("address", format!("\"{}\" is no address with a port", self.address))
                .hint("Such as \"127.0.0.1:8080\", \"[::1]:8080\" or, for all networks, \"0.0.0.0:8080\".")
        })
    }

    fn access(&self, address: SocketAddr) -> Result<Access, BuildError> {
        let tokens = &self.tokens.0;
        if let Some(place) = tokens.iter().position(|token| token.expose_secret().trim().is_empty()) {
            return Err(BuildError::invalid(format!("tokens.{place}"), "an empty token lets everybody in")
                .hint("Is the variable that it comes from set?"));
        }
        if !address.ip().is_loopback() && tokens.is_empty() && !self.insecure {
            return Err(BuildError::invalid("address", "others than this machine could post without a token")
                .hint("Set \"tokens\", or \"insecure = true\" if the network keeps them out."));
        }
        Ok(Access::new(tokens.clone()))
    }

    fn bounds(&self) -> Result<Bounds, BuildError> {
        if self.body_max.0 == 0 || self.body_max.0 > BODY_MAX.0 {
            return Err(BuildError::invalid("body_max", format!("a body has between 1 byte and {BODY_MAX}")));
        }
        let least = SizeText(Bounds::memory_for(self.body_max.0));
        if self.memory_max.0 < least.0 {
            return Err(BuildError::invalid("memory_max", format!("{} can't hold one body", self.memory_max))
                .hint(format!("One of {} (`body_max`), packed and unpacked, takes up to {least}.", self.body_max)));
        }
        Ok(Bounds {
            body_bytes_max: self.body_max.bytes(),
            memory_bytes_max: self.memory_max.bytes(),
            payload_bytes_max: self.payload_max.bytes(),
        })
    }
}

/// One token or a list of them.
#[derive(Debug, Default)]
struct Tokens(Vec<SecretString>);

impl<'de> Deserialize<'de> for Tokens {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // By hand, since `untagged` would lose the place of a mistake.
        deserializer.deserialize_any(TokensVisitor)
    }
}

struct TokensVisitor;

impl<'de> Visitor<'de> for TokensVisitor {
    type Value = Tokens;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a token or a list of tokens, such as \"${file:/run/secrets/ingest}\"")
    }

    fn visit_str<E>(self, token: &str) -> Result<Tokens, E> {
        Ok(Tokens(vec![token.to_owned().into()]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Tokens, A::Error> {
        let mut tokens = Vec::new();
        while let Some(token) = list.next_element::<SecretString>()? {
            tokens.push(token);
        }
        Ok(Tokens(tokens))
    }
}

impl JsonSchema for Tokens {
    fn schema_name() -> Cow<'static, str> {
        "Tokens".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "format": SECRET, "anyOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" } }] })
    }
}
