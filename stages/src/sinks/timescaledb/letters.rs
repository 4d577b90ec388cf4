//! The dead letters in a table of the sink: read back, deleted, and noted as replayed.
//!
//! Which letters were replayed is in a table beside theirs, `_pipeline_replayed`, so that the letters
//! themselves stay as they were written. It is made by the first replay.

use std::collections::BTreeMap;

use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt};
use pipeline_engine::dead_letter;
use pipeline_engine::dlq::{Letter, LetterFilter, LetterGroup, LetterId, LetterStore, LetterStream, ReplayLog};
use pipeline_engine::stage::StageError;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row};

use super::table::Table;
use crate::dead_letters::Parts;
use crate::postgres::fault::while_opening;
use crate::postgres::{Database, Link};

const LOG: &str = "_pipeline_replayed";
const EPOCH: &str = "'epoch'::timestamptz";
const US: &str = "interval '1 microsecond'";

/// The columns of a table that hold the parts of a letter, as SQL. A part that is not stored is NULL.
#[derive(Debug, Clone)]
pub(super) struct LetterColumns {
    received_at: String,
    stage: String,
    reason: String,
    detail: String,
    topic: String,
    position: String,
    payload: String,
}

impl LetterColumns {
    /// `stored` are the input columns that go to the table, by index, in the order of its columns. `None`
    /// if a part is not stored without which a letter is none.
    pub(super) fn of(stored: &[usize], table: &Table) -> Option<Self> {
        let schema = dead_letter::schema();
        let column = |name: &str| {
            let index = schema.index_of(name).ok()?;
            let place = stored.iter().position(|stored| *stored == index)?;
            Some(format!("letters.\"{}\"", table.columns[place].name))
        };
        let optional = |name: &str| column(name).unwrap_or_else(|| "NULL::text".to_owned());
        Some(Self {
            received_at: column("received_at")?,
            stage: column("stage")?,
            reason: column("reason")?,
            detail: optional("detail"),
            topic: optional("topic"),
            position: optional("position"),
            payload: column("payload")?,
        })
    }
}

/// The letters in a table.
pub(super) struct TableLetters {
    place: Place,
    columns: LetterColumns,
}

/// A table of a database, connected to when it is first asked something.
struct Place {
    database: Database,
    table: String,
    log: String,
    pipeline: String,
    link: Option<Link>,
}

/// A condition in SQL and its parameters.
#[derive(Default)]
struct Condition {
    sql: Vec<String>,
    parameters: Vec<Box<dyn ToSql + Sync + Send>>,
}

/// The name of the table of replays beside the letters, and the statement that makes it where it is missing.
pub(crate) fn replay_log_ddl(letters: &Table) -> (String, String) {
    let log = Table { name: LOG.to_owned(), ..letters.clone() }.sql_name();
    let ddl = replay_log_ddl_of(&log);
    (log, ddl)
}

fn replay_log_ddl_of(log: &str) -> String {
    format!(
        "CREATE TABLE IF NOT EXISTS {log} (pipeline text NOT NULL, letter text NOT NULL, \
         replayed_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (pipeline, letter))"
    )
}

impl TableLetters {
    pub(super) fn new(database: &Database, table: &Table, columns: &LetterColumns, pipeline: &str) -> Self {
        let log = Table { name: LOG.to_owned(), ..table.clone() };
        let place = Place {
            database: database.clone(),
            table: table.sql_name(),
            log: log.sql_name(),
            pipeline: pipeline.to_owned(),
            link: None,
        };
        Self { place, columns: columns.clone() }
    }

    fn select(&self) -> String {
        let LetterColumns { stage, reason, detail, topic, position, payload, .. } = &self.columns;
        let received_at = self.received_at_us();
        format!("SELECT {received_at}, {stage}, {reason}, {detail}, {topic}, {position}, {payload}")
    }

    fn received_at_us(&self) -> String {
        format!("(extract(epoch FROM {}) * 1000000)::int8", self.columns.received_at)
    }

    /// All conditions but that on the id, which only we can compute.
    fn condition(&self, filter: &LetterFilter) -> Condition {
        let LetterColumns { received_at, stage, reason, topic, .. } = &self.columns;
        let mut condition = Condition::default();
        for (column, words) in [(stage, &filter.stages), (reason, &filter.reasons)] {
            if !words.is_empty() {
                condition.and(&format!("{column} = ANY($)"), words.clone());
            }
        }
        if let Some(since_us) = filter.since_us {
            condition.and(&format!("{received_at} >= {EPOCH} + $::int8 * {US}"), since_us);
        }
        if let Some(until_us) = filter.until_us {
            condition.and(&format!("{received_at} < {EPOCH} + $::int8 * {US}"), until_us);
        }
        if let Some(pattern) = filter.topic_pattern() {
            condition.and(&format!("{topic} ~ $"), pattern);
        }
        condition
    }

    async fn stream(&mut self, filter: &LetterFilter, end: &str) -> Result<LetterStream<'static>, StageError> {
        let (select, condition) = (self.select(), self.condition(filter));
        let sql = format!("{select} FROM {} AS letters {} {end}", self.place.table, condition.sql());
        let failed = self.place.failed("can't read");
        let client = self.place.client().await?;
        let rows = client.query_raw(&sql, condition.parameters()).await.map_err(&failed)?;
        Ok(rows.map_err(failed).and_then(|row| std::future::ready(letter(&row))).boxed())
    }
}

fn letter(row: &Row) -> Result<Letter, StageError> {
    let read = || {
        Ok::<_, tokio_postgres::Error>(Parts {
            received_at_us: row.try_get(0)?,
            stage: row.try_get(1)?,
            reason: row.try_get(2)?,
            detail: row.try_get(3)?,
            topic: row.try_get(4)?,
            position: row.try_get(5)?,
            payload: row.try_get::<_, &[u8]>(6)?.to_vec().into(),
        })
    };
    read().map(Parts::letter).map_err(|error| StageError::permanent("a row is no dead letter").because(error))
}

impl Condition {
    /// `$` in the text stands for the value.
    fn and(&mut self, text: &str, value: impl ToSql + Sync + Send + 'static) {
        self.parameters.push(Box::new(value));
        self.sql.push(text.replace('$', &format!("${}", self.parameters.len())));
    }

    fn sql(&self) -> String {
        if self.sql.is_empty() { String::new() } else { format!("WHERE {}", self.sql.join(" AND ")) }
    }

    fn parameters(&self) -> Vec<&(dyn ToSql + Sync)> {
        self.parameters.iter().map(|parameter| parameter.as_ref() as _).collect()
    }
}

impl Place {
    async fn client(&mut self) -> Result<&Client, StageError> {
        if self.link.as_ref().is_none_or(|link| link.client.is_closed()) {
            let link = self.database.connect().await?;
            let row = link.client.query_one("SELECT to_regclass($1) IS NULL", &[&self.table]).await;
            if row.map_err(self.failed("can't find"))?.get(0) {
                return Err(StageError::permanent(format!("there is no table {}", self.table))
                    .hint("The pipeline makes it when it first runs, if the sink has create = true."));
            }
            self.link = Some(link);
        }
        self.link.as_ref().map(|link| &link.client).ok_or_else(|| StageError::bug("a connection is gone"))
    }

    fn failed(&self, verb: &str) -> impl Fn(tokio_postgres::Error) -> StageError + Send + 'static {
        let doing = format!("{verb} the dead letters in {}", self.table);
        move |error| while_opening(error, &doing)
    }
}

#[async_trait]
impl LetterStore for TableLetters {
    fn place(&self) -> String {
        format!("table {} of {}", self.place.table, self.place.database)
    }

    async fn read<'s>(&'s mut self, filter: &'s LetterFilter) -> Result<LetterStream<'s>, StageError> {
        let order = format!("ORDER BY {}", self.columns.received_at);
        let letters = self.stream(filter, &order).await?;
        Ok(letters.try_filter(|letter| std::future::ready(filter.admits_id(letter))).boxed())
    }

    async fn groups(&mut self, filter: &LetterFilter) -> Result<Vec<LetterGroup>, StageError> {
        if !filter.ids.is_empty() {
            return pipeline_engine::dlq::groups_of(self.read(filter).await?).await;
        }
        let (at, condition) = (self.received_at_us(), self.condition(filter));
        let LetterColumns { stage, reason, .. } = &self.columns;
        let sql = format!(
            "SELECT {stage}, {reason}, count(*), min({at}), max({at}) FROM {} AS letters {} \
             GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2",
            self.place.table,
            condition.sql(),
        );
        let failed = self.place.failed("can't count");
        let rows = self.place.client().await?.query(&sql, &condition.parameters()).await.map_err(failed)?;
        let group = |row: &Row| LetterGroup {
            stage: row.get(0),
            reason: row.get(1),
            letters: u64::try_from(row.get::<_, i64>(2)).unwrap_or(0),
            first_us: row.get(3),
            last_us: row.get(4),
        };
        Ok(rows.iter().map(group).collect())
    }

    async fn newest(&mut self, filter: &LetterFilter, limit: usize) -> Result<Vec<Letter>, StageError> {
        let mut order = format!("ORDER BY {} DESC", self.columns.received_at);
        if filter.ids.is_empty() {
            order += &format!(" LIMIT {limit}");
        }
        let letters = self.stream(filter, &order).await?;
        letters.try_filter(|letter| std::future::ready(filter.admits_id(letter))).take(limit).try_collect().await
    }

    async fn delete(&mut self, filter: &LetterFilter) -> Result<u64, StageError> {
        if !filter.ids.is_empty() {
            return Err(StageError::bug("letters are deleted by their content, not by their ids"));
        }
        let condition = self.condition(filter);
        let sql = format!("DELETE FROM {} AS letters {}", self.place.table, condition.sql());
        let failed = self.place.failed("can't delete");
        self.place.client().await?.execute(&sql, &condition.parameters()).await.map_err(failed)
    }

    async fn delete_these(&mut self, letters: &[Letter]) -> Result<u64, StageError> {
        let LetterColumns { received_at, stage, reason, topic, position, payload, .. } = &self.columns;
        let sql = format!(
            "DELETE FROM {} AS letters USING unnest($1::int8[], $2::text[], $3::text[], $4::text[], $5::text[], \
             $6::bytea[]) AS gone (us, stage, reason, topic, position, payload) \
             WHERE {received_at} = {EPOCH} + gone.us * {US} AND {stage} = gone.stage AND {reason} = gone.reason \
             AND {topic} IS NOT DISTINCT FROM gone.topic AND {position} IS NOT DISTINCT FROM gone.position \
             AND {payload} = gone.payload",
            self.place.table
        );
        let times: Vec<i64> = letters.iter().map(|letter| letter.received_at_us).collect();
        let stages: Vec<&str> = letters.iter().map(|letter| letter.stage.as_str()).collect();
        let reasons: Vec<&str> = letters.iter().map(|letter| letter.reason.as_str()).collect();
        let topics: Vec<Option<&str>> = letters.iter().map(|letter| letter.topic.as_deref()).collect();
        let positions: Vec<Option<&str>> = letters.iter().map(|letter| letter.position.as_deref()).collect();
        let payloads: Vec<&[u8]> = letters.iter().map(|letter| &letter.payload[..]).collect();
        let failed = self.place.failed("can't delete");
        let client = self.place.client().await?;
        client.execute(&sql, &[&times, &stages, &reasons, &topics, &positions, &payloads]).await.map_err(failed)
    }

    fn replay_log(&self) -> Option<Box<dyn ReplayLog>> {
        let Place { database, table, log, pipeline, .. } = &self.place;
        let place = Place {
            database: database.clone(),
            table: table.clone(),
            log: log.clone(),
            pipeline: pipeline.clone(),
            link: None,
        };
        Some(Box::new(TableLog { place, is_made: false }))
    }
}

/// The log of replays in the database of the letters.
struct TableLog {
    place: Place,
    is_made: bool,
}

#[async_trait]
impl ReplayLog for TableLog {
    async fn replayed(&mut self, letters: &[LetterId]) -> Result<BTreeMap<LetterId, i64>, StageError> {
        let (failed, log, pipeline) =
            (self.place.failed("can't read the replays of"), self.place.log.clone(), self.place.pipeline.clone());
        let client = self.place.client().await?;
        if !self.is_made {
            let row = client.query_one("SELECT to_regclass($1) IS NOT NULL", &[&log]).await.map_err(&failed)?;
            self.is_made = row.get(0);
        }
        if !self.is_made {
            return Ok(BTreeMap::new());
        }
        let sql = format!(
            "SELECT letter, (extract(epoch FROM replayed_at) * 1000000)::int8 FROM {log} \
             WHERE pipeline = $1 AND letter = ANY($2)"
        );
        let ids: Vec<String> = letters.iter().map(ToString::to_string).collect();
        let rows = client.query(&sql, &[&pipeline, &ids]).await.map_err(failed)?;
        Ok(rows.iter().filter_map(|row| Some((LetterId::parse(row.get(0))?, row.get(1)))).collect())
    }

    async fn note(&mut self, letters: &[LetterId]) -> Result<(), StageError> {
        let (failed, log, pipeline) =
            (self.place.failed("can't note the replay of"), self.place.log.clone(), self.place.pipeline.clone());
        let client = self.place.client().await?;
        if !self.is_made {
            let sql = replay_log_ddl_of(&log);
            client.batch_execute(&sql).await.map_err(&failed)?;
            self.is_made = true;
        }
        let sql = format!(
            "INSERT INTO {log} (pipeline, letter) SELECT $1, unnest($2::text[]) \
             ON CONFLICT (pipeline, letter) DO UPDATE SET replayed_at = now()"
        );
        let ids: Vec<String> = letters.iter().map(ToString::to_string).collect();
        client.execute(&sql, &[&pipeline, &ids]).await.map(drop).map_err(failed)
    }
}
