//! Stores that know no conditional create are found out on opening.

use std::sync::{Arc, Mutex};

use pipeline_engine::stage::Fault;
use serde_json::json;

use super::old_store::{Condition, OldStore};
use super::{DAY_US, block_on, group, lake_keys, readings, sink};
use crate::services;

#[test]
fn a_store_without_conditional_create_is_found_out_and_looked_at_first() {
    for condition in [Condition::Ignored, Condition::NotImplemented, Condition::Invalid] {
        block_on(async {
            let store = OldStore::start(condition).await;
            let keys = json!({ "url": "s3://old/lake", "endpoint": store.url });
            let open = || async {
                let mut sink = sink(keys.clone(), services::s3().environment());
                let (opened, log) = logged(sink.open()).await;
                opened.expect("it works without");
                (sink, log)
            };
            let (mut first, log) = open().await;
            assert!(log.contains("WARN") && log.contains(&store.url) && log.contains("If-None-Match"), "{log}");
            assert_eq!(store.paths(), [""; 0], "the probe is gone");
            let group = group(&[readings(Some(DAY_US), 10)]);
            first.write(&group).await.expect("it is stored");
            let path = store.paths().remove(0);
            let rows = store.content(&path);

            let (mut second, _) = open().await;
            second.write(&group).await.expect("it is found there");
            assert_eq!((store.paths(), store.content(&path)), (vec![path.clone()], rows));
            assert_eq!(store.asked(&format!("PUT {path}")), 1, "{condition:?}");

            store.replace(&path, b"somebody else's");
            let (mut third, _) = open().await;
            let error = third.write(&group).await.expect_err("the name is taken");
            assert_eq!(error.fault(), Fault::Permanent);
            assert_eq!(store.content(&path), b"somebody else's");

            let found = third.probe().await.expect("it can be written to");
            assert!(found.contains("ignores If-None-Match"), "{found}");
        });
    }
}

#[test]
fn a_store_with_conditional_create_is_left_to_keep_it() {
    block_on(async {
        let store = OldStore::start(Condition::Kept).await;
        let mut sink = sink(json!({ "url": "s3://new/lake", "endpoint": store.url }), services::s3().environment());
        let (opened, log) = logged(sink.open()).await;
        opened.expect("it can be written to");
        assert!(!log.contains("WARN"), "{log}");
        assert_eq!(sink.probe().await.expect("it can be written to"), "the store takes objects");
        sink.write(&group(&[readings(Some(DAY_US), 10)])).await.expect("it is stored");
        assert_eq!(store.asked(&format!("HEAD {}", store.paths()[0])), 0, "nobody looked");
    });
}

#[test]
fn several_workers_are_refused_a_store_that_does_not_keep_both_conditions() {
    block_on(async {
        for (condition, names) in [
            (Condition::Kept, "(If-Match)"),
            (Condition::Ignored, "(If-None-Match)"),
            (Condition::NotImplemented, "(If-None-Match)"),
        ] {
            let store = OldStore::start(condition).await;
            let keys = json!({ "url": "s3://old/lake", "endpoint": store.url });
            let mut sink = sink(keys, services::s3().environment());
            sink.share();
            let error = sink.open().await.expect_err("rows would be stored twice");
            assert_eq!(error.fault(), Fault::Permanent);
            assert!(error.to_string().contains(names), "{}", error.chain());
            assert_eq!(sink.probe().await.expect_err("the same").to_string(), error.to_string());
            assert_eq!(store.paths(), [""; 0], "the probe is gone");
        }
    });
}

/// Ceph takes ETags without their quotes only.
#[test]
fn of_workers_that_claim_a_partition_at_once_the_store_lets_one_have_it() {
    let bucket = services::bucket();
    block_on(async {
        for tenure in 1..=10 {
            let mut claims = Vec::new();
            for _ in 0..6 {
                let mut sink = sink(lake_keys(&bucket), services::s3().environment());
                sink.share();
                claims.push(tokio::spawn(async move {
                    sink.open().await.expect("the store keeps both conditions");
                    loop {
                        match sink.adopt("telemetry/shard", tenure, &[]).await {
                            Ok(_) => return true,
                            Err(error) if !error.superseded_partitions().is_empty() => return false,
                            Err(error) => assert_eq!(error.fault(), Fault::Transient, "{}", error.chain()),
                        }
                    }
                }));
            }
            let mut held = 0;
            for claim in claims {
                held += u32::from(claim.await.expect("no panic"));
            }
            assert_eq!(held, 1, "of tenure {tenure}");
        }
    });
}

/// What was logged while a future ran, on this thread.
async fn logged<F: Future>(future: F) -> (F::Output, String) {
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);
    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    // The future of `block_on` stays on its thread.
    let guard = tracing::subscriber::set_default(subscriber);
    let output = future.await;
    drop(guard);
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).expect("text");
    (output, text)
}
