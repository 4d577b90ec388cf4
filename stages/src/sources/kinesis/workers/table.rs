//! The table of leases in DynamoDB. Every change is conditional: two workers that want the same lease at once can't both
//! have it.

use std::collections::BTreeMap;
use std::time::Duration;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::timeout::TimeoutConfig;
use aws_sdk_dynamodb::error::SdkError;
use aws_sdk_dynamodb::operation::update_item::builders::UpdateItemFluentBuilder;
use aws_sdk_dynamodb::types::{
    AttributeDefinition, AttributeValue, BillingMode, KeySchemaElement, KeyType, ScalarAttributeType, TableStatus,
};
use pipeline_engine::Counter;
use pipeline_engine::stage::{BuildError, StageError};

use super::super::roster::Origin;
use super::lease::{
    CHECKPOINT, CHECKPOINT_OWNER, CHILDREN, COUNTER, Checkpoint, KEY, Lease, OWNER, SUB_SEQUENCE, SWITCHES,
};
use super::patience::unless_throttled;
use crate::aws::fault::{self, ProvideErrorMetadata};
use crate::aws::{AwsSettings, Service, check_endpoint};

/// How often a table that is being created is looked at.
const CREATE_INTERVAL: Duration = Duration::from_secs(1);
/// What DynamoDB says where the condition of a change does not hold.
const NOT_SO: &str = "ConditionalCheckFailedException";

/// The keys that lead to a table.
pub(super) struct TableKeys {
    pub(super) table: String,
    pub(super) region: Option<String>,
    pub(super) endpoint: Option<String>,
    pub(super) allow_http: bool,
    /// In place of the process's own variables.
    pub(super) environment: Option<BTreeMap<String, String>>,
    /// A request that has no answer by then is given up.
    pub(super) request_timeout: Duration,
}

/// The table. Clones share connections.
#[derive(Debug, Clone)]
pub(in super::super) struct LeaseTable {
    name: String,
    settings: AwsSettings,
    request_timeout: Duration,
    client: Option<Client>,
    throttled: Counter,
}

/// What a table is like, for `pipeline doctor`.
pub(in super::super) enum Found {
    /// It is there, with so many leases.
    Leases(usize),
    /// It will be created.
    Nothing,
}

impl LeaseTable {
    /// Checks the keys; reaches nothing.
    ///
    /// # Errors
    /// The key of `workers` that is wrong.
    pub(super) fn new(keys: TableKeys) -> Result<Self, BuildError> {
        let TableKeys { table, region, endpoint, allow_http, environment, request_timeout } = keys;
        let allowed = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
        if !(3..=255).contains(&table.len()) || !table.chars().all(allowed) {
            return Err(BuildError::invalid("workers.table", format!("\"{table}\" is no name of a table in DynamoDB"))
                .hint("A name has letters, digits, \"_\", \".\" and \"-\", 3 to 255 of them."));
        }
        if let Some(endpoint) = &endpoint {
            check_endpoint(endpoint, allow_http)
                .map_err(|(text, hint)| BuildError::invalid("workers.endpoint", text).hint(hint))?;
        }
        let settings = AwsSettings { service: Service::DynamoDb, region, endpoint, allow_http, environment };
        Ok(Self { name: table, settings, request_timeout, client: None, throttled: Counter::default() })
    }

    /// Counts what the table asks to wait with.
    pub(super) fn count_throttled(&mut self, counter: Counter) {
        self.throttled = counter;
    }

    pub(in super::super) fn name(&self) -> &str {
        &self.name
    }

    /// Makes the client, unless there is one.
    ///
    /// # Errors
    /// As for [`AwsSettings::connect`].
    pub(in super::super) async fn connect(&mut self) -> Result<(), StageError> {
        if self.client.is_none() {
            let config = aws_sdk_dynamodb::config::Builder::from(&self.settings.connect().await?);
            let limit = self.request_timeout;
            let timeouts = TimeoutConfig::builder().connect_timeout(limit).operation_attempt_timeout(limit).build();
            self.client = Some(Client::from_conf(config.timeout_config(timeouts).build()));
        }
        Ok(())
    }

    fn client(&self) -> Result<&Client, StageError> {
        self.client.as_ref().ok_or_else(|| StageError::bug("the table of leases was asked before it was connected"))
    }

    /// Makes the table where it is missing, and waits until it can be used.
    ///
    /// # Errors
    /// As the service says.
    pub(super) async fn ensure(&self) -> Result<(), StageError> {
        let failed = |error| fault::of(error, &format!("the table of leases \"{}\" was not created", self.name));
        let bug = |error| StageError::bug("a table is described incompletely").because(error);
        loop {
            match self.status().await? {
                Some(TableStatus::Active | TableStatus::Updating) => return Ok(()),
                Some(_) => {}
                None => {
                    tracing::info!(table = self.name, "creating the table of leases");
                    let key = KeySchemaElement::builder().attribute_name(KEY).key_type(KeyType::Hash).build();
                    let attribute = AttributeDefinition::builder()
                        .attribute_name(KEY)
                        .attribute_type(ScalarAttributeType::S)
                        .build();
                    let request = self.client()?.create_table().table_name(&self.name);
                    let request = request.key_schema(key.map_err(bug)?).attribute_definitions(attribute.map_err(bug)?);
                    match request.billing_mode(BillingMode::PayPerRequest).send().await {
                        Ok(_) => {}
                        // Another worker was first.
                        Err(error) if fault::code_of(&error) == Some("ResourceInUseException") => {}
                        Err(error) => return Err(failed(error)),
                    }
                }
            }
            tokio::time::sleep(CREATE_INTERVAL).await;
        }
    }

    async fn status(&self) -> Result<Option<TableStatus>, StageError> {
        match self.client()?.describe_table().table_name(&self.name).send().await {
            Ok(answer) => Ok(answer.table.and_then(|table| table.table_status)),
            Err(error) if fault::code_of(&error) == Some("ResourceNotFoundException") => Ok(None),
            Err(error) => Err(fault::of(error, &format!("the table of leases \"{}\" was not described", self.name))),
        }
    }

    /// What there is, without changing anything.
    ///
    /// # Errors
    /// As the service says.
    pub(in super::super) async fn look(&mut self) -> Result<Found, StageError> {
        self.connect().await?;
        match self.status().await? {
            Some(_) => Ok(Found::Leases(self.leases(Origin::Horizon).await?.len())),
            None => Ok(Found::Nothing),
        }
    }

    /// All leases, as they are now. `start`: what `LATEST` of the KCL means.
    ///
    /// # Errors
    /// As the service says; or an item is none of a lease.
    pub(super) async fn leases(&self, start: Origin) -> Result<Vec<Lease>, StageError> {
        let mut leases = Vec::new();
        let mut next = None;
        loop {
            let request = self.client()?.scan().table_name(&self.name).consistent_read(true);
            let request = request.set_exclusive_start_key(next);
            let page = unless_throttled(|| self.throttled.increment(), || request.clone().send()).await;
            let page =
                page.map_err(|error| fault::of(error, &format!("the leases in \"{}\" were not read", self.name)))?;
            for item in page.items() {
                leases.push(Lease::decode(item, start).map_err(|why| {
                    StageError::permanent(format!("the table \"{}\" holds something else than leases", self.name))
                        .because(why)
                        .hint("Name a table of its own in \"workers.table\".")
                })?);
            }
            next = page.last_evaluated_key.filter(|key| !key.is_empty());
            if next.is_none() {
                leases.sort_by(|one, other| one.shard.cmp(&other.shard));
                return Ok(leases);
            }
        }
    }

    /// Puts the lease of a shard there, unless another worker has.
    ///
    /// # Errors
    /// As the service says.
    pub(super) async fn add(&self, lease: &Lease) -> Result<(), StageError> {
        let request = self.client()?.put_item().table_name(&self.name).set_item(Some(lease.encode()));
        let request = request.condition_expression(format!("attribute_not_exists({KEY})"));
        let put = unless_throttled(|| self.throttled.increment(), || request.clone().send()).await;
        self.unless_it_is_not_so(put, &lease.shard).map(drop)
    }

    /// Forgets the lease of a shard that the stream has forgotten.
    ///
    /// # Errors
    /// As the service says.
    pub(super) async fn forget(&self, shard: &str, counter: u64) -> Result<(), StageError> {
        let request = self.client()?.delete_item().table_name(&self.name).key(KEY, text(shard));
        let request = request.condition_expression(format!("{COUNTER} = :counter"));
        let request = request.expression_attribute_values(":counter", number(counter));
        let deleted = unless_throttled(|| self.throttled.increment(), || request.clone().send()).await;
        self.unless_it_is_not_so(deleted, shard).map(drop)
    }

    /// Takes a lease as it was seen. `from`: the worker that hands it over, which is left to store what it has read. Gives
    /// the counter; `None` where another one was quicker.
    ///
    /// # Errors
    /// As the service says.
    pub(super) async fn take(
        &self,
        lease: &Lease,
        worker: &str,
        from: Option<&str>,
    ) -> Result<Option<u64>, StageError> {
        let hand_over = match from {
            Some(_) => format!(", {CHECKPOINT_OWNER} = :from"),
            None => format!(" REMOVE {CHECKPOINT_OWNER}"),
        };
        let change = format!(
            "SET {OWNER} = :worker, {COUNTER} = :next, {SWITCHES} = if_not_exists({SWITCHES}, :zero) + :one{hand_over}"
        );
        let mut request = self.update(&lease.shard, change, format!("{COUNTER} = :counter"))?;
        request = request.expression_attribute_values(":worker", text(worker));
        request =
            request.expression_attribute_values(":zero", number(0)).expression_attribute_values(":one", number(1));
        if let Some(from) = from {
            request = request.expression_attribute_values(":from", text(from));
        }
        self.counted(request, &lease.shard, lease.counter).await
    }

    /// Renews a lease that this worker has, and says how far it has come. Gives the counter; `None` where another one has
    /// it.
    ///
    /// # Errors
    /// As the service says.
    pub(super) async fn renew(
        &self,
        shard: &str,
        worker: &str,
        counter: u64,
        checkpoint: Option<Checkpoint>,
    ) -> Result<Option<u64>, StageError> {
        let moved = checkpoint.map_or(String::new(), |_| format!(", {}", set_checkpoint()));
        let change = format!("SET {COUNTER} = :next{moved}");
        let request = self.update(shard, change, format!("{OWNER} = :worker AND {COUNTER} = :counter"))?;
        let request = with_checkpoint(request, checkpoint).expression_attribute_values(":worker", text(worker));
        self.counted(request, shard, counter).await
    }

    /// Lets go of a lease, and says how far it has come. `children`: what has come of a shard that has ended. False where
    /// another worker has it.
    ///
    /// # Errors
    /// As the service says.
    pub(super) async fn release(
        &self,
        shard: &str,
        worker: &str,
        counter: u64,
        checkpoint: Option<Checkpoint>,
        children: &[String],
    ) -> Result<bool, StageError> {
        let moved = checkpoint.map_or(String::new(), |_| format!(", {}", set_checkpoint()));
        let known = if children.is_empty() { String::new() } else { format!(", {CHILDREN} = :children") };
        let change = format!("SET {COUNTER} = :next{moved}{known} REMOVE {OWNER}, {CHECKPOINT_OWNER}");
        let request = self.update(shard, change, format!("{OWNER} = :worker AND {COUNTER} = :counter"))?;
        let mut request = with_checkpoint(request, checkpoint).expression_attribute_values(":worker", text(worker));
        if !children.is_empty() {
            request = request.expression_attribute_values(":children", AttributeValue::Ss(children.to_vec()));
        }
        Ok(self.counted(request, shard, counter).await?.is_some())
    }

    /// Ends a hand-over: everything that this worker has read is stored, and whoever has the lease now may begin. False where
    /// that has not waited.
    ///
    /// # Errors
    /// As the service says.
    pub(super) async fn hand_over(
        &self,
        shard: &str,
        worker: &str,
        checkpoint: Option<Checkpoint>,
    ) -> Result<bool, StageError> {
        let moved = checkpoint.map_or(String::new(), |_| format!("SET {} ", set_checkpoint()));
        let change = format!("{moved}REMOVE {CHECKPOINT_OWNER}");
        let request = self.update(shard, change, format!("{CHECKPOINT_OWNER} = :worker"))?;
        let request = with_checkpoint(request, checkpoint).expression_attribute_values(":worker", text(worker));
        self.changed(request, shard).await
    }

    fn update(&self, shard: &str, change: String, condition: String) -> Result<UpdateItemFluentBuilder, StageError> {
        let request = self.client()?.update_item().table_name(&self.name).key(KEY, text(shard));
        Ok(request.update_expression(change).condition_expression(condition))
    }

    /// Sends a change that moves the counter on by one.
    async fn counted(
        &self,
        request: UpdateItemFluentBuilder,
        shard: &str,
        counter: u64,
    ) -> Result<Option<u64>, StageError> {
        let request = request.expression_attribute_values(":counter", number(counter));
        let request = request.expression_attribute_values(":next", number(counter + 1));
        Ok(self.changed(request, shard).await?.then_some(counter + 1))
    }

    /// Whether a change was made. It is not where its condition does not hold.
    async fn changed(&self, request: UpdateItemFluentBuilder, shard: &str) -> Result<bool, StageError> {
        let outcome = unless_throttled(|| self.throttled.increment(), || request.clone().send()).await;
        Ok(self.unless_it_is_not_so(outcome, shard)?.is_some())
    }

    fn unless_it_is_not_so<T, E, R>(
        &self,
        outcome: Result<T, SdkError<E, R>>,
        shard: &str,
    ) -> Result<Option<T>, StageError>
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
        R: std::fmt::Debug + Send + Sync + 'static,
    {
        match outcome {
            Ok(answer) => Ok(Some(answer)),
            Err(error) if fault::code_of(&error) == Some(NOT_SO) => Ok(None),
            Err(error) => {
                Err(fault::of(error, &format!("the lease of \"{shard}\" in \"{}\" was not changed", self.name)))
            }
        }
    }
}

/// The part of a change that moves the checkpoint.
fn set_checkpoint() -> String {
    format!("{CHECKPOINT} = :checkpoint, {SUB_SEQUENCE} = :sub_sequence, {SWITCHES} = :none")
}

fn with_checkpoint(request: UpdateItemFluentBuilder, checkpoint: Option<Checkpoint>) -> UpdateItemFluentBuilder {
    let Some(checkpoint) = checkpoint else { return request };
    let (checkpoint, sub_sequence) = checkpoint.attributes();
    let request = request.expression_attribute_values(":checkpoint", checkpoint);
    request.expression_attribute_values(":sub_sequence", sub_sequence).expression_attribute_values(":none", number(0))
}

fn text(text: &str) -> AttributeValue {
    AttributeValue::S(text.to_owned())
}

fn number(number: u64) -> AttributeValue {
    AttributeValue::N(number.to_string())
}
