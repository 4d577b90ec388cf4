//! A broker inside this process, for demos and tests: it keeps nothing, and asks nobody who they are.

use std::net::SocketAddr;
use std::time::Duration;

use mqtt5::broker::config::{BrokerConfig, StorageBackend, StorageConfig};
use mqtt5::broker::{BrokerShutdownHandle, MqttBroker};
use pipeline_engine::stage::StageError;
use tokio::task::JoinHandle;

use super::address::Address;

/// How long its connections may take to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// A running broker; dropping it stops it.
pub(crate) struct EmbeddedBroker {
    stop: BrokerShutdownHandle,
    task: JoinHandle<()>,
}

impl EmbeddedBroker {
    /// Listens on the address, and returns once clients can connect.
    pub(crate) async fn start(address: &Address) -> Result<Self, StageError> {
        let place = address.socket();
        let unusable = |text: &str| format!("the embedded broker can't listen on \"{place}\"{text}");
        let found = tokio::net::lookup_host(&place)
            .await
            .map_err(|error| StageError::permanent(unusable("")).because(error))?
            .next();
        let listen: SocketAddr = found.ok_or_else(|| StageError::permanent(unusable(": it is no address")))?;
        // By default it would write a folder into the current directory, and drop what a slow
        // subscriber has not fetched beyond 10,000 messages.
        let storage = StorageConfig::new()
            .with_backend(StorageBackend::Memory)
            .with_max_queued_messages_per_client(1_000_000)
            .with_max_queued_bytes_per_client(256 << 20);
        let mut config = BrokerConfig::new().with_bind_addresses(vec![listen]);
        config.storage_config = storage;
        config.sys_topics_enabled = false;
        let mut broker = MqttBroker::with_config(config).await.map_err(|error| {
            StageError::permanent(unusable("")).because(error.to_string()).hint("Is another broker running there?")
        })?;
        let stop = broker.shutdown_handle();
        let mut ready = broker.ready_receiver();
        let task = tokio::spawn(async move {
            if let Err(error) = broker.run().await {
                tracing::error!(%error, "the embedded broker ended");
            }
        });
        if ready.wait_for(|ready| *ready).await.is_err() {
            return Err(StageError::bug("the embedded broker ended before it had started"));
        }
        tracing::info!(address = %listen, "an embedded broker is listening; it keeps nothing");
        Ok(Self { stop, task })
    }

    /// Stops it, waiting for its connections to end.
    pub(crate) async fn stop(mut self) {
        self.stop.shutdown();
        if tokio::time::timeout(STOP_TIMEOUT, &mut self.task).await.is_err() {
            tracing::debug!("the embedded broker did not end in time");
        }
    }
}

impl Drop for EmbeddedBroker {
    fn drop(&mut self) {
        self.task.abort();
    }
}
