//! Several workers share a stream: each has some of its shards, by leases in a table of DynamoDB.
//!
//! ```text
//!            take (free, or its counter stands still)
//!   free ──────────────────────────────────────────────▶ claimed ──▶ read ──▶ SHARD_END
//!     ▲                                                     ▲          │ │
//!     │                 checkpointOwner gone, or patience over        │ │ asked for by another worker
//!     │                                                 asked for ◀────┼─┘ (leaseOwner = it, checkpointOwner = us)
//!     └──── released at a stop ◀── all stored, checkpoint kept ◀───────┘
//! ```
//!
//! - `lease.rs` is the layout of the table, which is that of the KCL; `table.rs` changes it, each time under a condition.
//! - `balance.rs` says which leases a worker should have.
//! - `patience.rs` is for what the table asks to wait with.
//! - `sharing.rs` is the run; `upkeep.rs` its leases, `shards.rs` what becomes of their shards (`held.rs`).
//!
//! **Guarantee.** The table alone can't keep a worker from storing that was paused past its lease. The counter at which a
//! worker took a lease is the number of its tenure, and the sinks refuse whatever comes under a lower one than they have on
//! record ([`pipeline_engine::stage::Sink::adopt`]). A tenure begins with asking the sinks how far each has come: these
//! positions are where batches must end that are read again, so no journal of bounds has to move from disk to disk.

mod balance;
mod held;
mod lease;
mod patience;
mod shards;
mod sharing;
mod table;
mod upkeep;

use std::collections::BTreeMap;
use std::time::Duration;

use pipeline_engine::stage::BuildError;
use pipeline_engine::units::DurationText;
use schemars::JsonSchema;
use serde::Deserialize;

pub(super) use sharing::SharedReading;
use table::TableKeys;
pub(super) use table::{Found, LeaseTable};

/// A renewal and what it waits for must fit into a third of it.
const LEASE_MIN: Duration = Duration::from_secs(2);
/// A request that hangs must leave time for another before leases run out.
const REQUESTS_A_LEASE: u32 = 4;
const REQUEST_TIMEOUT_MIN: Duration = Duration::from_secs(1);

/// Several workers share the stream: the same pipeline file, run several times.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WorkersConfig {
    /// The name that all workers of this pipeline have in common. What is stored is counted under it: another name is
    /// another reader of the stream.
    application: String,
    /// The table of leases in DynamoDB, by default named as the application. Created where it is missing. One for each
    /// stream.
    table: Option<String>,
    /// What this worker is called in the table. Another one for each process; by default made of the machine's name and chance.
    worker_id: Option<String>,
    /// How long a worker may be silent before others take its shards. Renewed three times as often.
    #[serde(default = "default_lease")]
    lease: DurationText,
    /// How long whoever hands a shard over may take to store what it has read of it. Whoever waits for it then takes it.
    #[serde(default = "default_hand_over")]
    hand_over: DurationText,
    /// The region of the table, if not that of the stream.
    region: Option<String>,
    /// The DynamoDB API to use, if not that of AWS: `http://127.0.0.1:8000`. Overrides AWS_ENDPOINT_URL_DYNAMODB and
    /// AWS_ENDPOINT_URL.
    endpoint: Option<String>,
}

fn default_lease() -> DurationText {
    DurationText(Duration::from_secs(10))
}

fn default_hand_over() -> DurationText {
    DurationText(Duration::from_secs(30))
}

/// One of several workers.
#[derive(Debug, Clone)]
pub(super) struct Workers {
    pub(super) table: LeaseTable,
    application: String,
    worker_id: Option<String>,
    lasts: Duration,
    hand_over: Duration,
}

/// What a table has in common with its stream.
pub(super) struct OfStream<'a> {
    pub(super) region: Option<&'a String>,
    pub(super) allow_http: bool,
    pub(super) environment: Option<&'a BTreeMap<String, String>>,
}

impl WorkersConfig {
    /// Checks the keys; reaches nothing.
    ///
    /// # Errors
    /// The key that is wrong.
    pub(super) fn build(self, stream: OfStream<'_>) -> Result<Workers, BuildError> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
        if self.application.is_empty() || !self.application.chars().all(allowed) {
            let message = format!("\"{}\" is no name of an application", self.application);
            return Err(BuildError::invalid("workers.application", message)
                .hint("A name has letters, digits, \"_\", \".\" and \"-\"."));
        }
        if self.worker_id.as_ref().is_some_and(String::is_empty) {
            return Err(BuildError::invalid("workers.worker_id", "a worker's name has at least one character"));
        }
        if self.lease.0 < LEASE_MIN {
            return Err(BuildError::invalid("workers.lease", "a lease lasts 2 s at least")
                .hint("It is renewed three times as often, and every renewal is a request."));
        }
        let table = LeaseTable::new(TableKeys {
            table: self.table.unwrap_or_else(|| self.application.clone()),
            region: self.region.or_else(|| stream.region.cloned()),
            endpoint: self.endpoint,
            allow_http: stream.allow_http,
            environment: stream.environment.cloned(),
            request_timeout: (self.lease.0 / REQUESTS_A_LEASE).max(REQUEST_TIMEOUT_MIN),
        })?;
        Ok(Workers {
            table,
            application: self.application,
            worker_id: self.worker_id,
            lasts: self.lease.0,
            hand_over: self.hand_over.0,
        })
    }
}

impl Workers {
    /// What this worker is called; another one at each start where no name is given.
    async fn name(&self) -> String {
        if let Some(name) = &self.worker_id {
            return name.clone();
        }
        let host = tokio::fs::read_to_string("/proc/sys/kernel/hostname").await.unwrap_or_default();
        let host = Some(host.trim()).filter(|host| !host.is_empty()).unwrap_or("worker").to_owned();
        format!("{host}:{:08x}", rand::random::<u32>())
    }
}
