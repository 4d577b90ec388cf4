//! Rows that a sink refuses, where sinks keep positions: each is one dead letter, whatever else its batch
//! holds.

use super::resumed::{BATCHES, Ledger, Log, Outside};
use super::*;
use crate::spool::testing::SimulatedDisk;

/// How the outside says what it refuses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Answer {
    /// That there is something.
    #[default]
    Something,
    /// All of it, by name.
    Named,
    /// One row by name, and of what is then left the next.
    NamedOneByOne,
}

/// A ledger that refuses numbers which end in 3 or 7.
#[derive(Default, Deserialize, JsonSchema)]
struct Refusing {
    #[serde(skip)]
    answer: Answer,
    #[serde(skip)]
    ledger: Ledger,
}

fn is_refused(number: i64) -> bool {
    matches!(number % 10, 3 | 7)
}

impl SinkConfig for Refusing {
    const DOC: StageDoc = DOC;

    fn build(self, _: &SchemaRef, _: &BuildContext) -> Result<BuiltSink, BuildError> {
        let outputs = vec![(Port::REJECTED, dead_letter::schema())];
        Ok(BuiltSink { sink: Box::new(self), grouping: Grouping::default(), outputs })
    }
}

#[async_trait]
impl Sink for Refusing {
    async fn open(&mut self) -> Result<(), StageError> {
        Ok(())
    }

    async fn write(&mut self, group: &Group) -> Result<(), StageError> {
        let mut refused = Vec::new();
        for (batch, rows) in group.batches().iter().enumerate() {
            let numbers = rows.rows.column(0).as_primitive::<Int64Type>().values();
            let bad = numbers.iter().enumerate().filter(|(_, number)| is_refused(**number));
            refused.extend(bad.map(|(row, _)| Refused { batch, row, reason: "23514".into(), detail: "bad".into() }));
        }
        match self.answer {
            _ if refused.is_empty() => {
                // Of a half nothing is on record until the whole is stored.
                if group.advances().is_empty() {
                    let rows = group
                        .batches()
                        .iter()
                        .flat_map(|batch| batch.rows.column(0).as_primitive::<Int64Type>().values().to_vec());
                    self.ledger.outside.lock().unwrap().rows.extend(rows);
                    return Ok(());
                }
                self.ledger.write(group).await
            }
            Answer::Something => Err(StageError::data("a value is out of range").code("23514")),
            Answer::Named => Err(StageError::refused(refused)),
            Answer::NamedOneByOne => {
                refused.truncate(1);
                Err(StageError::refused(refused))
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn every_refused_row_is_a_dead_letter_however_the_sink_names_it() {
    for answer in [Answer::Something, Answer::Named, Answer::NamedOneByOne] {
        let home = tempfile::tempdir().expect("a folder");
        let table: Arc<Mutex<Outside>> = Arc::default();
        let letters: Arc<Mutex<Outside>> = Arc::default();
        let ledger = |outside: &Arc<Mutex<Outside>>| Ledger { outside: outside.clone(), ..Ledger::default() };
        let plan = Plan::builder("p")
            .data_dir(home.path())
            .source("log", Log)
            .sink("table", &["log"], Refusing { answer, ledger: ledger(&table) })
            .sink("letters", &["table.rejected"], ledger(&letters))
            .build()
            .unwrap();
        let run = Run::new(plan).on_storage(SimulatedDisk::new(1).mount());
        let report = run.until(std::future::pending()).await.unwrap();
        let mut stored = table.lock().unwrap().rows.clone();
        stored.sort_unstable();
        let all = 0..i64::try_from(BATCHES).unwrap() * 10;
        assert_eq!(stored, all.clone().filter(|number| !is_refused(*number)).collect::<Vec<_>>(), "{answer:?}");
        let refused = all.filter(|number| is_refused(*number)).collect::<Vec<_>>();
        assert_eq!(letters.lock().unwrap().rows, refused, "{answer:?}");
        assert!(is_balanced(&report), "{answer:?}: {report}");
    }
}
