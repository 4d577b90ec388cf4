//! Takes in what others post over HTTP, keeps each on disk, and answers 200 then.
//!
//! The server and its requests are the intake; the rest is what every spooled source does: see `super::spooled`. It also
//! answers as the endpoint of an Amazon Data Firehose (see `firehose`), told apart by the headers of that protocol.
//!
//! **Danger:** a client whose answer was lost can't know whether its post was taken, and posts again. That is recognised
//! where the post has a key: `Idempotency-Key`, or Firehose's request id (see `repeats`). Without one it is taken for a
//! message of its own: the sinks' keys make one row of it.

mod access;
mod body;
mod config;
mod examine;
mod firehose;
mod intake;
mod listener;
mod memory;
mod post;
mod refusal;
mod repeats;
mod resend;
mod server;
mod split;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pipeline_engine::dlq::Resender;
use pipeline_engine::schema::DeclaredSchema;
use pipeline_engine::spool::SpoolOptions;
use pipeline_engine::stage::{DiskBounds, Examination, Source, SourceContext, StageError};
use tokio::net::TcpListener;

use super::spooled::{self, Forward, Opened};
use crate::decode::{Decoder, Format};
use access::Access;
use body::Bounds;
pub use config::HttpSourceConfig;
use intake::{Counters, Intake};
use repeats::Requests;
use resend::Resend;
use server::Server;

/// A run that has just ended may still hold the address for so many tenths of a second.
const BIND_ATTEMPTS: u32 = 30;

/// The source, ready to run.
struct HttpSource {
    stage: String,
    address: SocketAddr,
    access: Access,
    bounds: Bounds,
    format: Format,
    schema: Option<Arc<DeclaredSchema>>,
    decoder: Decoder,
    batch_rows_max: usize,
    spool_dir: PathBuf,
    spool: SpoolOptions,
}

#[async_trait]
impl Source for HttpSource {
    async fn run(self: Box<Self>, cx: SourceContext) -> Result<(), StageError> {
        let opened = spooled::open(&cx, &self.stage, self.spool_dir, self.spool).await?;
        let Some(Opened { spool, writer, report }) = opened else { return Ok(()) };
        let requests = Requests::in_spool(&spool).await?;
        // Before anything is sent on: an address that is somebody else's ends the run at once.
        let listener = bind(self.address).await?;
        tracing::info!(stage = self.stage, address = %self.address, "takes in posts");
        let intake = Intake::new(&cx, &spool, writer, requests, Counters::of(&cx));
        let server = Server::new(&self.stage, self.access, self.bounds, self.format, intake);
        let forward = Forward {
            stage: self.stage,
            decoder: self.decoder,
            rows_max: self.batch_rows_max,
            found_lsn: report.durable_lsn,
        };
        let receiving = server.run(listener, cx.stop_token());
        spooled::forward_beside(forward, &cx, spool, receiving).await
    }

    fn is_resumable(&self) -> bool {
        true
    }

    async fn probe(&mut self) -> Result<String, StageError> {
        examine::address(self.address).await
    }

    async fn examine(&mut self, report: &Examination) {
        examine::examine(self, report).await;
    }

    fn resender(&self) -> Option<Box<dyn Resender>> {
        let (address, token) = (self.address, self.access.token());
        let (schema, format) = (self.schema.clone(), self.format);
        Some(Box::new(Resend { address, token, schema, format, client: None }))
    }

    fn disk_bounds(&self) -> Option<DiskBounds> {
        Some(DiskBounds { bytes_max: self.spool.bytes_max, free_bytes_min: self.spool.free_space_min })
    }
}

async fn bind(address: SocketAddr) -> Result<TcpListener, StageError> {
    let mut attempts = 1;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return Ok(listener),
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && attempts < BIND_ATTEMPTS => {
                attempts += 1;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err(error) => return Err(examine::unusable(address, error)),
        }
    }
}

#[cfg(test)]
mod tests;
