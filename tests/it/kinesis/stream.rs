//! A stream of a test's own, and what a test does to it from outside.

use std::time::Duration;

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::config::{BehaviorVersion, Config, Credentials, Region};
use aws_sdk_kinesis::primitives::Blob;
use aws_sdk_kinesis::types::{PutRecordsRequestEntry, Shard, ShardIteratorType, StreamStatus};

use crate::services;

/// A stream, and a client that asks the service itself.
pub struct Stream {
    pub name: String,
    pub endpoint: String,
    pub client: Client,
}

/// A record to put: partition key and data.
pub type Put = (String, Vec<u8>);

impl Stream {
    /// A new stream of so many shards.
    pub async fn new(prefix: &str, shards: i32) -> Self {
        // It may start a service, which blocks.
        let endpoint = tokio::task::spawn_blocking(services::kinesis_endpoint).await.unwrap();
        let credentials = Credentials::new("test", "test", None, None, "test");
        let config = Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("us-east-1"))
            .endpoint_url(&endpoint)
            .credentials_provider(credentials)
            .build();
        let stream = Self { name: services::unique(prefix), endpoint, client: Client::from_conf(config) };
        stream.client.create_stream().stream_name(&stream.name).shard_count(shards).send().await.unwrap();
        stream.wait_until_active().await;
        stream
    }

    /// AWS's variables for a program that uses it, with another endpoint if one is given.
    pub fn environment(&self, endpoint: Option<&str>) -> Vec<(String, String)> {
        let endpoint = endpoint.unwrap_or(&self.endpoint);
        [
            ("AWS_ENDPOINT_URL_KINESIS", endpoint),
            ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", "test"),
            ("AWS_REGION", "us-east-1"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
    }

    pub async fn wait_until_active(&self) {
        for _ in 0..600 {
            let answer = self.client.describe_stream_summary().stream_name(&self.name).send().await.unwrap();
            if *answer.stream_description_summary().unwrap().stream_status() == StreamStatus::Active {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{} does not become active", self.name);
    }

    /// Puts records in their order: those of one key may be in one request, as long as all of it is taken.
    pub async fn put(&self, records: impl IntoIterator<Item = Put>) {
        let records: Vec<Put> = records.into_iter().collect();
        for some in records.chunks(500) {
            let entry = |(key, data): &Put| {
                PutRecordsRequestEntry::builder().partition_key(key).data(Blob::new(data.clone())).build().unwrap()
            };
            let entries = some.iter().map(entry).collect();
            let request = self.client.put_records().stream_name(&self.name).set_records(Some(entries));
            let answer = request.send().await.unwrap();
            assert_eq!(answer.failed_record_count().unwrap_or(0), 0, "the emulator takes what it is given");
        }
    }

    pub async fn shards(&self) -> Vec<Shard> {
        let answer = self.client.list_shards().stream_name(&self.name).send().await.unwrap();
        answer.shards().to_vec()
    }

    pub async fn open_shards(&self) -> Vec<Shard> {
        let is_open =
            |shard: &Shard| shard.sequence_number_range().is_none_or(|range| range.ending_sequence_number().is_none());
        self.shards().await.into_iter().filter(is_open).collect()
    }

    /// Splits the open shard of this number in the middle.
    pub async fn split(&self, number: usize) {
        let open = self.open_shards().await;
        let shard = &open[number];
        let (start, end) = range(shard);
        let middle = start + (end - start) / 2 + 1;
        let request = self.client.split_shard().stream_name(&self.name).shard_to_split(shard.shard_id());
        request.new_starting_hash_key(middle.to_string()).send().await.unwrap();
        self.wait_until_active().await;
    }

    /// Merges the first two open shards that lie beside each other.
    pub async fn merge(&self) {
        let mut open = self.open_shards().await;
        open.sort_by_key(range);
        let request = self.client.merge_shards().stream_name(&self.name).shard_to_merge(open[0].shard_id());
        request.adjacent_shard_to_merge(open[1].shard_id()).send().await.unwrap();
        self.wait_until_active().await;
    }

    /// Everything in the stream, shard by shard in its order: partition key and data.
    pub async fn read_all(&self) -> Vec<Vec<Put>> {
        let mut all = Vec::new();
        for shard in self.shards().await {
            let request = self.client.get_shard_iterator().stream_name(&self.name).shard_id(shard.shard_id());
            let answer = request.shard_iterator_type(ShardIteratorType::TrimHorizon).send().await.unwrap();
            let mut next = answer.shard_iterator;
            let mut records = Vec::new();
            while let Some(iterator) = next.take() {
                let answer = self.client.get_records().shard_iterator(iterator).send().await.unwrap();
                if answer.records().is_empty() && answer.millis_behind_latest() == Some(0) {
                    break;
                }
                let put = |record: &aws_sdk_kinesis::types::Record| {
                    (record.partition_key().unwrap_or_default().to_owned(), record.data().as_ref().to_vec())
                };
                records.extend(answer.records().iter().map(put));
                next = answer.next_shard_iterator;
            }
            all.push(records);
        }
        all
    }
}

fn range(shard: &Shard) -> (u128, u128) {
    let range = shard.hash_key_range().unwrap();
    (range.starting_hash_key().parse().unwrap(), range.ending_hash_key().parse().unwrap())
}
