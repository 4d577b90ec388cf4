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
        let taken =
            "Is another broker running there? The port is that of \"url\", here and in the sources that read from it.";
        // Tried first, since the broker's own error is a page of text.
        if let Err(error) = tokio::net::TcpListener::bind(listen).await {
            return Err(StageError::permanent(unusable("")).because(error).hint(taken));
        }
        // By default it would write a folder into the current directory, and drop what a slow
        // subscriber has not fetched beyond 10,000 messages.
        let storage = StorageConfig::new()
            .with_backend(StorageBackend::Memory)
            .with_max_queued_messages_per_client(1_000_000)
            .with_max_queued_bytes_per_client(256 << 20);
        // The subscriber's own Receive Maximum is the bound; by default it would be 64 messages, too few
        // for a sink that commits every few seconds.
        let mut config = BrokerConfig::new().with_bind_addresses(vec![listen]).with_max_outbound_inflight(u16::MAX);
        config.storage_config = storage;
        config.sys_topics_enabled = false;
        let mut broker = MqttBroker::with_config(config)
            .await
            .map_err(|error| StageError::permanent(unusable("")).because(error.to_string()).hint(taken))?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_that_is_taken_is_told_in_a_line() {
        let other = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let place = other.local_addr().expect("an address");
        let address = Address::parse("url", &format!("mqtt://{place}")).expect("a url");
        let error = EmbeddedBroker::start(&address).await.err().expect("somebody listens there");
        let text = error.chain();
        let start = format!("the embedded broker can't listen on \"{place}\": Address already in use");
        assert!(text.starts_with(&start) && text.contains("Is another broker running there?"), "{text}");
        assert!(!text.contains('\n'), "{text}");
    }
}
