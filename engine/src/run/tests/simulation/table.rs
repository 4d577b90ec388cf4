//! A sink that stores rows and its position in one transaction of a database that outlives the process.
//!
//! Commits get lost on both ways: the sink then reads back how far it has come. Where the database says
//! which rows it refuses, rows have no key and any row that came twice would be there twice; where it
//! does not, the engine halves groups, what is stored of a half has no position yet, and rows are known
//! by their number.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::AsArray;
use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use rand::RngExt;
use rand::rngs::StdRng;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::time::sleep;

use super::climate::{Trouble, chance};
use super::planted::Bug;
use super::trace::Event;
use super::windows::rows_of;
use super::world::{Database, REFUSED, Row, World};
use crate::dead_letter;
use crate::run::tests::DOC;
use crate::stage::*;

/// One table as a sink.
#[derive(Default, Deserialize, JsonSchema)]
pub(super) struct Table {
    #[serde(skip)]
    pub name: &'static str,
    /// Which life of the process this is.
    pub life: usize,
    #[serde(skip)]
    pub world: Option<Arc<World>>,
}

impl SinkConfig for Table {
    const DOC: StageDoc = DOC;

    fn build(self, _: &SchemaRef, _: &BuildContext) -> Result<BuiltSink, BuildError> {
        let world = self.world.expect("given");
        let rng = chance(world.seed, &format!("{} {}", self.name, self.life));
        let outputs = if self.name == "table" { vec![(Port::REJECTED, dead_letter::schema())] } else { Vec::new() };
        let sink = Session { name: self.name, world, rng };
        Ok(BuiltSink { sink: Box::new(sink), grouping: Grouping::default(), outputs })
    }
}

/// What a call of any sink suffers: its latency, and the fault that ends it.
pub(super) async fn suffer(world: &World, name: &'static str, rng: &mut StdRng) -> Result<(), StageError> {
    let (quick, slow) = (rng.random_range(0..world.climate.latency_ms_max), rng.random_range(1_000..20_000));
    let trouble = world.trouble(name);
    let latency_ms = if trouble == Some(Trouble::Slow) { slow } else { quick };
    sleep(Duration::from_millis(latency_ms)).await;
    world.step().await;
    let (fault, error) = match world.trouble(name) {
        Some(Trouble::Away) => ("away", StageError::transient("connection refused")),
        Some(Trouble::NeedsPerson) => ("needs a person", StageError::permanent("password authentication failed")),
        _ if world.happens(rng, world.climate.faults) => ("fault", StageError::transient("connection reset")),
        _ => return Ok(()),
    };
    world.trace.note(Event::Faulted { sink: name, fault });
    Err(error)
}

struct Session {
    name: &'static str,
    world: Arc<World>,
    rng: StdRng,
}

#[async_trait]
impl Sink for Session {
    async fn open(&mut self) -> Result<(), StageError> {
        suffer(&self.world, self.name, &mut self.rng).await
    }

    async fn committed(&mut self) -> Result<Vec<Committed>, StageError> {
        suffer(&self.world, self.name, &mut self.rng).await?;
        let database = self.world.database();
        let of_this = database.positions.iter().filter(|((table, ..), _)| *table == self.name);
        let committed = of_this.map(|((_, input, partition), position)| Committed {
            input: input.clone(),
            partition: partition.clone(),
            position: *position,
        });
        Ok(committed.collect())
    }

    async fn write(&mut self, group: &Group) -> Result<(), StageError> {
        suffer(&self.world, self.name, &mut self.rng).await?;
        if self.is_done(group)? {
            self.world.trace.note(Event::Committed { table: self.name, rows: group.rows(), known: true });
            return Ok(());
        }
        self.check_refused(group)?;
        if self.world.happens(&mut self.rng, self.world.climate.unknown) {
            if self.rng.random() {
                self.commit(group).await;
            }
            self.world.step().await;
            self.world.trace.note(Event::Faulted { sink: self.name, fault: "outcome unknown" });
            return Err(StageError::transient("connection lost during COMMIT"));
        }
        self.commit(group).await;
        self.world.step().await;
        Ok(())
    }
}

impl Session {
    /// The group was committed, and the answer got lost.
    fn is_done(&self, group: &Group) -> Result<bool, StageError> {
        let database = self.world.database();
        let stored = |advance: &Advance| {
            let key = (self.name, advance.input.clone(), advance.partition.clone());
            database.positions.get(&key).copied()
        };
        let advances = group.advances();
        if !advances.is_empty() && advances.iter().all(|advance| stored(advance) == Some(advance.to)) {
            return Ok(true);
        }
        match advances.iter().find(|advance| stored(advance) != advance.from) {
            Some(advance) => Err(StageError::bug(format!("{advance:?}, and {:?} is on record", stored(advance)))),
            None => Ok(false),
        }
    }

    /// A constraint of the table.
    fn check_refused(&self, group: &Group) -> Result<(), StageError> {
        if self.name != "table" {
            return Ok(());
        }
        let mut refused = Vec::new();
        for (batch, rows) in group.batches().iter().enumerate() {
            let bad = rows_of(&rows.rows).into_iter().enumerate().filter(|(_, reading)| reading[3] == REFUSED);
            refused.extend(bad.map(|(row, _)| {
                let (reason, detail) = ("23514".to_owned(), "the value is out of range".to_owned());
                Refused { batch, row, reason, detail }
            }));
        }
        match refused.is_empty() {
            true => Ok(()),
            false if self.world.climate.names_refused => Err(StageError::refused(refused)),
            false => Err(StageError::data("a value is out of range").code("23514")),
        }
    }

    /// One transaction.
    async fn commit(&self, group: &Group) {
        self.insert(&mut self.world.database(), group);
        if self.world.has(Bug::PositionOutsideTransaction) {
            // A transaction for the rows, and then one for the position.
            sleep(Duration::from_millis(5)).await;
            self.world.step().await;
        }
        let mut database = self.world.database();
        for advance in group.advances() {
            let key = (self.name, advance.input.clone(), advance.partition.clone());
            database.positions.insert(key, advance.to);
        }
        drop(database);
        self.world.trace.note(Event::Committed { table: self.name, rows: group.rows(), known: false });
    }

    fn insert(&self, database: &mut Database, group: &Group) {
        let table = database.tables.entry(self.name).or_default();
        let rows = group.batches().iter().flat_map(|batch| match self.name {
            "letters" => letters_of(&batch.rows),
            _ => rows_of(&batch.rows),
        });
        let has_key = !self.world.climate.names_refused;
        for row in rows {
            if !(has_key && self.name != "rollups" && table.contains(&row)) {
                table.push(row);
            }
        }
    }
}

/// Of a dead letter the number of the message that it is about.
fn letters_of(letters: &RecordBatch) -> Vec<Row> {
    let payloads = letters.column_by_name("payload").expect("a dead letter").as_binary::<i32>();
    let number = |payload: &[u8]| -> i64 {
        let text = String::from_utf8_lossy(payload);
        let digits = text.trim_start_matches(|c: char| !c.is_ascii_digit());
        let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
        digits[..end].parse().expect("each payload begins with its number")
    };
    payloads.iter().map(|payload| vec![number(payload.unwrap_or_default())]).collect()
}
