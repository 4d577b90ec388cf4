//! A stop that comes while the outside has not answered yet.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

use tokio::sync::Notify;

use super::*;

/// Its outside takes the connection and says nothing.
#[derive(Clone, Deserialize, JsonSchema)]
struct Unanswered {
    #[serde(skip)]
    began: Arc<Notify>,
    #[serde(skip)]
    has_ended: Arc<AtomicBool>,
    /// Gone once the test gives up waiting.
    #[serde(skip)]
    answer: Option<Arc<Mutex<mpsc::Receiver<()>>>>,
}

impl TransformConfig for Unanswered {
    const DOC: StageDoc = DOC;

    fn build(self, input: &SchemaRef, _: &BuildContext) -> Result<BuiltTransform, BuildError> {
        Ok(BuiltTransform { transform: Box::new(self), outputs: vec![(Port::MAIN, input.clone())] })
    }
}

impl Transform for Unanswered {
    fn open(&mut self) -> Result<(), StageError> {
        self.began.notify_one();
        // An answer that never comes, but for a test that would otherwise hang as well.
        self.answer.as_ref().unwrap().lock().unwrap().recv_timeout(Duration::from_secs(30)).ok();
        self.has_ended.store(true, Ordering::SeqCst);
        Ok(())
    }

    fn apply(&mut self, batch: Batch, out: &mut Emitter) -> Result<(), StageError> {
        out.emit(batch);
        Ok(())
    }
}

#[tokio::test]
async fn a_transform_whose_outside_does_not_answer_keeps_no_stop_from_being_heard() {
    let (began, has_ended) = (Arc::new(Notify::new()), Arc::new(AtomicBool::new(false)));
    let (answer, waiting) = mpsc::channel();
    let answer_of = Some(Arc::new(Mutex::new(waiting)));
    let table = Unanswered { began: began.clone(), has_ended: has_ended.clone(), answer: answer_of };
    let plan = Plan::builder("p")
        .source("numbers", Numbers::new(0))
        .transform("table", &["numbers"], table)
        .sink("db", &["table"], Memory::default())
        .build()
        .unwrap();
    Run::new(plan).until(async move { began.notified().await }).await.unwrap();
    assert!(!has_ended.load(Ordering::SeqCst), "the stop has waited for the outside");
    drop(answer);
}

/// A source that resumes and to which nothing comes.
#[derive(Deserialize, JsonSchema)]
struct Quiet {}

impl SourceConfig for Quiet {
    const DOC: StageDoc = DOC;

    fn build(self, _: &BuildContext) -> Result<BuiltSource, BuildError> {
        Ok(BuiltSource { source: Box::new(self), outputs: vec![(Port::MAIN, schema())] })
    }
}

#[async_trait]
impl Source for Quiet {
    fn is_resumable(&self) -> bool {
        true
    }

    async fn run(self: Box<Self>, cx: SourceContext) -> Result<(), StageError> {
        cx.stop_requested().await;
        let partition = cx.partition("quiet");
        cx.drain(&partition).await
    }
}

/// A sink whose outside takes the connection and says nothing.
#[derive(Deserialize, JsonSchema)]
struct Silent {}

impl SinkConfig for Silent {
    const DOC: StageDoc = DOC;

    fn build(self, _: &SchemaRef, _: &BuildContext) -> Result<BuiltSink, BuildError> {
        Ok(BuiltSink { sink: Box::new(self), grouping: Grouping::default(), outputs: Vec::new() })
    }
}

#[async_trait]
impl Sink for Silent {
    async fn open(&mut self) -> Result<(), StageError> {
        std::future::pending().await
    }

    async fn write(&mut self, _: &Group) -> Result<(), StageError> {
        Err(StageError::bug("it was never opened"))
    }
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_has_nothing_to_store_and_is_not_open_yet_ends_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let plan = Plan::builder("p")
        .data_dir(folder.path())
        .drain_timeout(Duration::from_secs(25))
        .source("quiet", Quiet {})
        .sink("db", &["quiet"], Silent {})
        .build()
        .unwrap();
    let started = tokio::time::Instant::now();
    Run::new(plan).until(tokio::time::sleep(Duration::from_secs(60))).await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(61), "it has used up the drain timeout");
}
