//! Replay and purge against a store, a log and a source that the test plays itself.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use arrow::datatypes::{DataType, Field, SchemaRef};
use futures::StreamExt;
use schemars::JsonSchema;
use serde::Deserialize;

use super::*;
use crate::dead_letter;
use crate::plan::Plan;
use crate::stage::{
    Batch, BuildContext, BuildError, BuiltSink, BuiltSource, BuiltTransform, Emitter, Group, Grouping, Port, Sink,
    SinkConfig, Source, SourceConfig, SourceContext, StageDoc, Transform, TransformConfig,
};

const DOC: StageDoc = StageDoc { type_name: "test", summary: "", ports: &[("rejected", ""), ("odd", "")], failure: "" };

fn schema(columns: &[&str]) -> SchemaRef {
    Arc::new(arrow::datatypes::Schema::new(
        columns.iter().map(|name| Field::new(*name, DataType::Utf8, false)).collect::<Vec<_>>(),
    ))
}

/// What was sent to a source, and what it does with the next message of a text.
#[derive(Debug, Clone, Default)]
struct Outside(Arc<Mutex<Vec<String>>>);

impl Outside {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

#[derive(Deserialize, JsonSchema)]
struct TestSource {
    #[serde(skip)]
    outside: Option<Outside>,
}

impl SourceConfig for TestSource {
    const DOC: StageDoc = DOC;
    fn build(self, _: &BuildContext) -> Result<BuiltSource, BuildError> {
        let outputs = vec![(Port::MAIN, schema(&["a", "b"])), (Port::REJECTED, dead_letter::schema())];
        Ok(BuiltSource { source: Box::new(self), outputs })
    }
}

#[async_trait]
impl Source for TestSource {
    async fn run(self: Box<Self>, _: SourceContext) -> Result<(), StageError> {
        Ok(())
    }

    fn resender(&self) -> Option<Box<dyn Resender>> {
        self.outside.clone().map(|outside| Box::new(outside) as _)
    }
}

#[async_trait]
impl Resender for Outside {
    fn message(&self, letter: &Letter, form: LetterForm, topic: Option<&str>) -> Result<Resent, String> {
        let topic = letter.topic.as_deref().or(topic).ok_or("knows no topic")?;
        Ok(Resent { topic: format!("{form:?} {topic}"), payload: letter.payload.clone() })
    }

    async fn send(&mut self, messages: &[Resent]) -> Result<Vec<Result<(), NotSent>>, StageError> {
        let mut outcomes = Vec::new();
        for Resent { topic, payload } in messages {
            outcomes.push(match &payload[..] {
                b"refused" => Err(NotSent::Refused("not here".to_owned())),
                b"later" => Err(NotSent::Later("not now".to_owned())),
                text => {
                    self.0.lock().unwrap().push(format!("{topic} {}", String::from_utf8_lossy(text)));
                    Ok(())
                }
            });
        }
        Ok(outcomes)
    }

    async fn close(&mut self) {}
}

#[derive(Clone, Deserialize, JsonSchema)]
struct TestTransform {}

impl TransformConfig for TestTransform {
    const DOC: StageDoc = DOC;
    fn build(self, input: &SchemaRef, _: &BuildContext) -> Result<BuiltTransform, BuildError> {
        let outputs = vec![
            (Port::MAIN, input.clone()),
            (Port::new("odd"), schema(&["a"])),
            (Port::REJECTED, dead_letter::schema()),
        ];
        Ok(BuiltTransform { transform: Box::new(self), outputs })
    }
}

impl Transform for TestTransform {
    fn apply(&mut self, batch: Batch, out: &mut Emitter) -> Result<(), StageError> {
        out.emit(batch);
        Ok(())
    }
}

#[derive(Deserialize, JsonSchema)]
struct TestSink {}

impl SinkConfig for TestSink {
    const DOC: StageDoc = DOC;
    fn build(self, _: &SchemaRef, _: &BuildContext) -> Result<BuiltSink, BuildError> {
        let outputs = vec![(Port::REJECTED, dead_letter::schema())];
        Ok(BuiltSink { sink: Box::new(self), grouping: Grouping::default(), outputs })
    }
}

#[async_trait]
impl Sink for TestSink {
    async fn open(&mut self) -> Result<(), StageError> {
        Ok(())
    }
    async fn write(&mut self, _: &Group) -> Result<(), StageError> {
        Ok(())
    }
    fn dead_letters(&self) -> Option<Box<dyn LetterStore>> {
        Some(Box::new(Memory::default()))
    }
}

/// Letters and a log in memory.
#[derive(Debug, Clone, Default)]
struct Memory {
    letters: Vec<Letter>,
    replayed: BTreeSet<LetterId>,
}

#[async_trait]
impl LetterStore for Memory {
    fn place(&self) -> String {
        "memory".to_owned()
    }
    async fn read<'s>(&'s mut self, filter: &'s LetterFilter) -> Result<LetterStream<'s>, StageError> {
        Ok(futures::stream::iter(self.letters.iter().filter(|letter| filter.admits(letter)).cloned().map(Ok)).boxed())
    }
    async fn delete(&mut self, filter: &LetterFilter) -> Result<u64, StageError> {
        let before = self.letters.len();
        self.letters.retain(|letter| !filter.admits(letter));
        Ok((before - self.letters.len()) as u64)
    }
    async fn delete_these(&mut self, letters: &[Letter]) -> Result<u64, StageError> {
        let before = self.letters.len();
        self.letters.retain(|letter| !letters.contains(letter));
        Ok((before - self.letters.len()) as u64)
    }
    fn replay_log(&self) -> Option<Box<dyn ReplayLog>> {
        None
    }
}

#[async_trait]
impl ReplayLog for BTreeSet<LetterId> {
    async fn replayed(&mut self, letters: &[LetterId]) -> Result<BTreeMap<LetterId, i64>, StageError> {
        Ok(letters.iter().filter(|id| self.contains(id)).map(|id| (*id, 1)).collect())
    }
    async fn note(&mut self, letters: &[LetterId]) -> Result<(), StageError> {
        self.extend(letters);
        Ok(())
    }
}

fn letter(number: u8, stage: &str, payload: &str) -> Letter {
    Letter {
        id: LetterId([number; 16]),
        received_at_us: i64::from(number),
        stage: stage.to_owned(),
        reason: "r".to_owned(),
        detail: None,
        topic: Some("t".to_owned()),
        position: None,
        payload: payload.to_owned().into(),
    }
}

/// Two sources, of which the second takes nothing back; `odd` reads rows that lack a column.
fn plan(outside: &Outside) -> Plan {
    Plan::builder("p")
        .source("in", TestSource { outside: Some(outside.clone()) })
        .source("file", TestSource { outside: None })
        .transform("checked", &["in"], TestTransform {})
        .transform("both", &["in", "file"], TestTransform {})
        .sink("out", &["checked"], TestSink {})
        .sink("odd", &["checked.odd"], TestSink {})
        .sink("all", &["both"], TestSink {})
        .sink("letters", &["in.rejected", "file.rejected", "checked.rejected"], TestSink {})
        .build()
        .unwrap_or_else(|mistakes| panic!("{mistakes}"))
}

async fn run(memory: &mut Memory, outside: &Outside, options: ReplayOptions) -> (ReplayReport, Result<(), StageError>) {
    let mut report = ReplayReport::default();
    let (mut store, log) = (memory.clone(), &mut memory.replayed);
    let filter = LetterFilter::default();
    let outcome = replay(&plan(outside), &mut store, log, &filter, &options, &mut report).await;
    (report, outcome)
}

#[test]
fn only_sinks_that_read_dead_letters_are_asked_for_them() {
    let plan = plan(&Outside::default());
    let stores = plan.letter_stores();
    assert_eq!(stores.iter().map(|(name, ..)| *name).collect::<Vec<_>>(), ["letters"]);
}

#[tokio::test]
async fn a_letter_is_sent_once_unless_asked_again() {
    let outside = Outside::default();
    let twin = letter(1, "in", "one");
    let letters = vec![twin.clone(), letter(2, "checked", "two"), twin, letter(3, "out", "three")];
    let mut memory = Memory { letters, ..Memory::default() };
    let (report, outcome) = run(&mut memory, &outside, ReplayOptions { dry_run: true, ..Default::default() }).await;
    outcome.unwrap();
    assert_eq!((report.sent, outside.take()), (3, Vec::new()));
    let (report, outcome) = run(&mut memory, &outside, ReplayOptions { limit: Some(2), ..Default::default() }).await;
    outcome.unwrap();
    assert_eq!((report.sent, report.replayed_before), (2, 0));
    assert_eq!(outside.take(), ["Message t one", "Row t two"]);
    let (report, outcome) = run(&mut memory, &outside, ReplayOptions::default()).await;
    outcome.unwrap();
    assert_eq!((report.sent, report.replayed_before), (1, 2));
    assert_eq!(outside.take(), ["Row t three"]);
    let (report, outcome) = run(&mut memory, &outside, ReplayOptions { again: true, ..Default::default() }).await;
    outcome.unwrap();
    assert_eq!((report.sent, report.replayed_before, outside.take().len()), (3, 0, 3));
}

#[tokio::test]
async fn what_can_not_be_replayed_is_said_with_its_reason() {
    let outside = Outside::default();
    let from_file = Letter { position: Some("file/1 7..9".to_owned()), ..letter(5, "both", "e") };
    let from_in = Letter { position: Some("in/1 7..9".to_owned()), ..letter(6, "both", "f") };
    let no_topic = Letter { topic: None, ..letter(7, "in", "g") };
    let letters = vec![
        letter(1, "gone", "a"),
        letter(2, "file", "b"),
        letter(3, "odd", "c"),
        letter(4, "all", "d"),
        from_file,
        from_in,
        no_topic,
        letter(8, "in", "refused"),
    ];
    let mut memory = Memory { letters, ..Memory::default() };
    let (report, outcome) = run(&mut memory, &outside, ReplayOptions::default()).await;
    outcome.unwrap();
    assert_eq!(outside.take(), ["Row t f"]);
    let reasons: Vec<(&str, u8)> =
        report.unsent.iter().map(|(reason, unsent)| (reason.as_str(), unsent.example.0[0])).collect();
    let expected = [
        ("came from \"file\", and nothing can be sent to a source of type test", 2),
        ("came from one of several sources, and does not say from which", 4),
        (
            "is a row that \"odd\" reads, which has not all columns of the source \"in\": no message can be made of it",
            3,
        ),
        ("knows no topic", 7),
        ("was refused again on its way: not here", 8),
        ("was refused by \"gone\", which is no stage of the pipeline any more", 1),
    ];
    assert_eq!(reasons, expected);
    assert_eq!(report.letters_unsent(), 7);
    let again = run(&mut memory, &outside, ReplayOptions { topic: Some("x".to_owned()), ..Default::default() }).await;
    again.1.unwrap();
    assert_eq!(outside.take(), ["Message x g"], "only what was sent is noted as replayed");
}

#[tokio::test]
async fn what_was_sent_before_an_outage_is_not_sent_again_after_it() {
    let outside = Outside::default();
    let letters = vec![letter(1, "in", "one"), letter(2, "in", "later"), letter(3, "in", "three")];
    let mut memory = Memory { letters, ..Memory::default() };
    let (report, outcome) = run(&mut memory, &outside, ReplayOptions::default()).await;
    let error = outcome.unwrap_err();
    assert_eq!(error.to_string(), "not all letters could be sent: not now");
    assert_eq!((report.sent, outside.take().len()), (2, 2));
    memory.letters[1].payload = "two".into();
    let (report, outcome) = run(&mut memory, &outside, ReplayOptions::default()).await;
    outcome.unwrap();
    assert_eq!((report.sent, report.replayed_before, outside.take()), (1, 2, vec!["Message t two".to_owned()]));
}

#[tokio::test]
async fn only_what_is_meant_is_purged() {
    let letters: Vec<Letter> = (1..=200).map(|number| letter(number, "in", "x")).collect();
    let mut memory = Memory { letters, replayed: [letter(9, "", "").id, letter(10, "", "").id].into() };
    let early = LetterFilter { until_us: Some(10), ..LetterFilter::default() };
    let mut log = memory.replayed.clone();
    assert_eq!(purge(&mut memory, &early, Some(&mut log)).await.unwrap(), 1, "9 was replayed, 10 came too late");
    assert_eq!(purge(&mut memory, &early, None).await.unwrap(), 8);
    let named = LetterFilter { ids: vec!["0B0b".to_owned(), "0c".to_owned()], ..LetterFilter::default() };
    assert_eq!(purge(&mut memory, &named, None).await.unwrap(), 2);
    assert_eq!(memory.letters.len(), 189);
}

#[tokio::test]
async fn groups_and_the_newest_letters_are_found_by_reading() {
    let letters = (1..=9).map(|number| letter(number, if number == 3 { "a" } else { "b" }, "x")).collect();
    let mut memory = Memory { letters, ..Memory::default() };
    let filter = LetterFilter { since_us: Some(2), ..LetterFilter::default() };
    let groups = memory.groups(&filter).await.unwrap();
    let shown: Vec<_> =
        groups.iter().map(|group| (group.stage.as_str(), group.letters, group.first_us, group.last_us)).collect();
    assert_eq!(shown, [("b", 7, 2, 9), ("a", 1, 3, 3)]);
    let newest: Vec<_> = memory.newest(&filter, 3).await.unwrap().iter().map(|letter| letter.received_at_us).collect();
    assert_eq!(newest, [9, 8, 7]);
}

#[test]
fn a_letter_is_shown_without_moving_the_cursor() {
    let mut letter = letter(0xab, "in", "{\"x\":\"\u{1b}[2J\"}\n");
    letter.detail = Some("not\u{7} JSON".to_owned());
    let text = LetterText { letter: &letter, replayed_at_us: Some(0) };
    let id = "ab".repeat(16);
    let whole = format!(
        "letter    {id}\nreceived  1970-01-01T00:00:00.000171Z\nstage     in\nreason    r\ndetail    not\\u{{7}} JSON\n\
         topic     t\nreplayed  1970-01-01T00:00:00.000000Z\npayload   {{\"x\":\"\\u{{1b}}[2J\"}}\\n\n"
    );
    assert_eq!(text.to_string(), whole);
    assert_eq!(text.line(), format!("{id}  1970-01-01T00:00:00.000171Z  in  r  t  (replayed)"));
    letter.payload = Bytes::from_static(b"\xff\x00");
    let text = LetterText { letter: &letter, replayed_at_us: None };
    assert!(text.to_string().ends_with("payload   2 bytes that are no text: ff00\n"), "{text}");
    let json: serde_json::Value = serde_json::from_str(&text.json()).unwrap();
    assert_eq!((&json["payload_base64"], &json["replayed_at"]), (&"/wA=".into(), &serde_json::Value::Null));
    assert_eq!(LetterId::parse(&id), Some(letter.id));
    assert_eq!(LetterId::parse("+bab"), None);
}
