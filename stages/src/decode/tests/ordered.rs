//! Batches decoded on several cores are those of one decoder, in their order.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};

use pipeline_engine::Counter;
use proptest::collection::vec;
use proptest::prelude::*;
use tokio::runtime::{Builder, Runtime};

use super::*;
use crate::decode::{Ordered, UnknownFields};

const COLUMNS: &str = "id = { type = \"text\", required = true }\nv = \"float64\"\nat = \"timestamp\"\n\
                       topic = { type = \"text\", message = \"topic\" }\nrest = { type = \"json\", rest = true }";
/// Large enough to be decoded by a task of its own.
const LARGE: usize = 1 << 20;

fn runtime(workers: usize) -> Runtime {
    Builder::new_multi_thread().worker_threads(workers).build().unwrap()
}

/// Payloads that fit, that don't, that become several rows, and that hold more than the schema knows.
fn payload() -> impl Strategy<Value = Vec<u8>> {
    let text = prop_oneof![
        8 => ("[a-d]{1,3}", -50..50_i32).prop_map(|(id, v)| format!("{{\"id\":\"{id}\",\"v\":{v}.5,\"at\":\"2026-01-31T12:00:00Z\"}}")),
        2 => ("[a-d]", "[e-h]{1,2}", any::<u8>()).prop_map(|(id, key, v)| format!("{{\"{key}\":{v},\"id\":\"{id}\"}}")),
        1 => vec(any::<u8>(), 0..5).prop_map(|all| {
            let rows: Vec<String> = all.iter().map(|v| format!("{{\"v\":{v},\"id\":\"x\"}}")).collect();
            format!("[{}]", rows.join(","))
        }),
        1 => Just("{\"id\":\"a\",\"v\":\"hot\"}".to_owned()),
        1 => Just("{\"v\":1}".to_owned()),
        1 => Just("{\"id\":\"a\",\"id\":\"b\"}".to_owned()),
        1 => Just("{\"id\":".to_owned()),
    ];
    prop_oneof![9 => text.prop_map(String::into_bytes), 1 => vec(any::<u8>(), 0..8)]
}

/// What becomes of the batches, and how many unknown fields were counted.
fn decoded(width: usize, batches: &[(Vec<Vec<u8>>, bool)]) -> (Vec<(usize, RecordBatch, RecordBatch)>, u64) {
    let count = Counter::default();
    let decoder = Decoder::new(Some(&schema(COLUMNS)), Format::Json, "devices")
        .with_unknown_fields(UnknownFields::Ignore, count.clone());
    let outcome = runtime(width).block_on(async move {
        let mut decoding = Ordered::new(decoder);
        let (mut waiting, mut outcome) = (batches.iter().cloned().enumerate(), Vec::new());
        loop {
            while decoding.has_room()
                && let Some((number, (payloads, is_large))) = waiting.next()
            {
                decoding.begin(if is_large { LARGE } else { 1 }, move |decoder| {
                    for (position, payload) in (1..).zip(&payloads) {
                        decoder.push(message(payload, position));
                    }
                    (number, decoder.take())
                });
            }
            let Some((number, decoded)) = decoding.next().await.unwrap() else { return outcome };
            outcome.push((number, decoded.rows, decoded.rejected));
        }
    });
    (outcome, count.get())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn on_four_cores_each_batch_is_what_it_is_on_one(batches in vec((vec(payload(), 0..60), any::<bool>()), 0..30)) {
        let alone = decoded(1, &batches);
        prop_assert_eq!(alone.0.len(), batches.len());
        prop_assert!(alone.0.iter().map(|(number, ..)| *number).eq(0..batches.len()));
        for width in [2, 4] {
            prop_assert_eq!(&decoded(width, &batches), &alone, "on {} cores", width);
        }
    }
}

#[test]
fn several_batches_are_decoded_at_the_same_time_and_no_more_than_fit() {
    let decoder = Decoder::new(Some(&schema(COLUMNS)), Format::Json, "devices");
    // Nobody leaves before all four are there.
    let all = Arc::new(Barrier::new(4));
    let numbers = runtime(9).block_on(async {
        let mut decoding = Ordered::new(decoder);
        let mut begun = 0;
        while decoding.has_room() {
            let all = all.clone();
            decoding.begin(LARGE, move |_| {
                all.wait();
                begun
            });
            begun += 1;
        }
        assert_eq!(begun, 4);
        let mut numbers = Vec::new();
        while let Some(number) = decoding.next().await.unwrap() {
            numbers.push(number);
        }
        numbers
    });
    assert_eq!(numbers, [0, 1, 2, 3]);
}

#[test]
fn a_small_batch_and_any_batch_of_one_core_is_decoded_where_the_source_stands() {
    for (workers, bytes) in [(4, 100), (1, LARGE)] {
        let decoder = Decoder::new(Some(&schema(COLUMNS)), Format::Json, "devices");
        runtime(workers).block_on(async {
            let mut decoding = Ordered::new(decoder);
            let is_done = Arc::new(AtomicBool::new(false));
            let done = is_done.clone();
            decoding.begin(bytes, move |_| done.store(true, Ordering::Relaxed));
            assert!(is_done.load(Ordering::Relaxed), "{workers} workers, {bytes} bytes");
        });
    }
}

#[test]
fn a_decoder_that_panics_is_a_bug_and_not_the_end_of_the_others() {
    let decoder = Decoder::new(Some(&schema(COLUMNS)), Format::Json, "devices");
    runtime(2).block_on(async {
        let mut decoding = Ordered::new(decoder);
        decoding.begin(LARGE, |_| panic!("planned"));
        decoding.begin(LARGE, |_| 7);
        assert_eq!(decoding.next().await.unwrap_err().fault(), pipeline_engine::stage::Fault::Bug);
        assert_eq!(decoding.next().await.unwrap(), Some(7));
        assert_eq!(decoding.next().await.unwrap(), None);
    });
}

#[test]
fn waiting_that_is_given_up_loses_no_batch() {
    let decoder = Decoder::new(Some(&schema(COLUMNS)), Format::Json, "devices");
    let (go, wait) = std::sync::mpsc::channel::<()>();
    runtime(2).block_on(async {
        let mut decoding = Ordered::new(decoder);
        decoding.begin(LARGE, move |_| wait.recv().is_ok());
        assert!(futures::FutureExt::now_or_never(decoding.next()).is_none(), "it can't be decoded yet");
        go.send(()).unwrap();
        assert_eq!(decoding.next().await.unwrap(), Some(true));
    });
}
