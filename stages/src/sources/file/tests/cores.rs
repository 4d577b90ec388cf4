//! What leaves does not depend on how many cores decode.

use arrow::array::RecordBatch;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const LINE_BYTES_MAX: usize = 2_000;

/// Batches by the main port and by `rejected`, each with its partition and span; and the error, if any.
type Left = (Vec<(String, RecordBatch)>, Vec<(String, RecordBatch)>, Option<String>);

/// Runs the source on so many cores.
fn run_on(workers: usize, text: &str) -> Left {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build().unwrap();
    runtime.block_on(async {
        let built = config(text).build(&build_context("files", SCHEMAS)).unwrap();
        let (cx, mut outlet) = testing::source(100_000);
        let source = tokio::spawn(built.source.run(cx));
        let (mut rows, mut rejected) = (Vec::new(), Vec::new());
        while let Some(batch) = outlet.next().await {
            rows.push(told(batch));
        }
        while let Some(batch) = outlet.next_rejected().await {
            rejected.push(told(batch));
        }
        (rows, rejected, source.await.unwrap().err().map(|error| error.chain()))
    })
}

/// A batch without the time of its receipt, which differs from run to run.
fn told(batch: Batch) -> (String, RecordBatch) {
    let kept: Vec<usize> = (0..batch.rows.num_columns())
        .filter(|column| batch.rows.schema().field(*column).name() != "received_at")
        .collect();
    let (partition, span) = batch.ack().span().unwrap();
    let told = (format!("{partition} {span}"), batch.rows.project(&kept).unwrap());
    testing::deliver(batch);
    told
}

/// Lines of every kind, some of which are no records.
fn line() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => (any::<i64>(), "[a-z]{0,20}").prop_map(|(id, note)| format!("{{\"id\":{id},\"note\":\"{note}\"}}")),
        1 => any::<i32>().prop_map(|id| format!("[{{\"id\":{id}}},{{\"id\":2,\"fan\":true}}]")),
        1 => Just("{\"id\":\"seven\"}".to_owned()),
        1 => Just("{\"id\":7,\"note\":\"seven\"}\r".to_owned()),
        1 => Just("{\"id\":".to_owned()),
        1 => Just(" \r".to_owned()),
        1 => Just(String::new()),
        1 => (LINE_BYTES_MAX - 30..LINE_BYTES_MAX + 10).prop_map(|bytes| format!("{{\"id\":8,\"note\":\"{}\"}}", "x".repeat(bytes))),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]
    #[test]
    fn batches_and_dead_letters_are_the_same_on_four_cores(
        mixed in vec(line(), 1..40),
        lines in 20_000..30_000_usize,
        // A chunk ends for its bytes where lines have a thousand and more.
        wide in prop_oneof![3 => Just(0), 1 => Just(1_500_usize)],
        cut in prop_oneof![3 => Just(0), 1 => 1..2_000_usize],
        schema in prop_oneof![Just("schema = \"notes\""), Just("topic = \"fleet/a\"")],
    ) {
        let folder = TempDir::new().unwrap();
        let mut content = "\u{feff}".to_owned();
        for (number, line) in mixed.iter().cycle().take(lines).enumerate() {
            content.push_str(line);
            content.push('\n');
            if number % 2 == 0 {
                content.push_str(&format!("{{\"id\":{number},\"note\":\"{}\"}}\n", "w".repeat(wide)));
            }
        }
        let mut packed = gzip(content.as_bytes());
        packed.truncate(packed.len() - cut.min(packed.len() / 2));
        let paths = [write(&folder, "a.jsonl.gz", packed), write(&folder, "b.jsonl", &content[..content.len() / 3])];
        let text = format!("path = {paths:?}\nformat = \"jsonl\"\nline_bytes_max = \"{LINE_BYTES_MAX}B\"\n{schema}");
        let alone = run_on(1, &text);
        prop_assert_eq!(alone.2.is_some(), cut > 0, "{:?}", alone.2);
        prop_assert!(cut > 0 || alone.0.len() > 2, "there are several batches");
        for workers in [2, 4] {
            prop_assert!(run_on(workers, &text) == alone, "on {} cores", workers);
        }
    }
}

#[test]
fn a_stop_on_several_cores_ends_reading_and_what_was_sent_is_whole() {
    let folder = TempDir::new().unwrap();
    let content: String = (1..=100_000).map(|id| format!("{{\"id\":{id}}}\n")).collect();
    let path = write(&folder, "a.jsonl", content);
    let text = format!("path = '{path}'\nformat = \"jsonl\"\nschema = \"notes\"");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
    runtime.block_on(async {
        let built = config(&text).build(&build_context("files", SCHEMAS)).unwrap();
        let (cx, mut outlet) = testing::source(8192);
        let source = tokio::spawn(built.source.run(cx));
        let first = outlet.next().await.unwrap();
        outlet.stop();
        let mut outcome = Outcome::default();
        take_rows(first, &mut outcome);
        let rest = collect(outlet).await;
        assert!(source.await.unwrap().is_ok());
        outcome.rows.extend(rest.rows);
        assert!(outcome.rows.len() < 100_000, "it stopped before the end");
        let expected: Vec<String> = (1..=outcome.rows.len()).map(|id| format!("{{\"id\":{id}}}")).collect();
        assert_eq!(outcome.rows, expected);
        assert_eq!(outcome.rows.len() % 8192, 0);
    });
}
