//! All stages looked at at the same time, each for so long at most.

use std::time::Duration;

use futures::future::join_all;

use super::Run;
use crate::examination::{Examination, Examined, Finding, Verdict};
use crate::plan::Node;
use crate::registry::Built;

impl Run {
    /// Has every stage look at its outside; what a stage writes there it takes back. One entry a stage, in the order of
    /// the plan. A stage that has no answer after `limit`, or panics, holds up no other: what it has found by then is there.
    pub async fn examine(mut self, limit: Duration) -> Vec<Examined> {
        let (resumes, is_shared) = (self.plan.resumes(), self.plan.is_shared());
        let nodes = std::mem::take(&mut self.plan.nodes);
        let report = || Examination::new(resumes).shared(is_shared);
        join_all(nodes.into_iter().map(|node| examine(node, report(), limit))).await
    }
}

async fn examine(node: Node, report: Examination, limit: Duration) -> Examined {
    let Node { name, type_name, built, .. } = node;
    let mut task = tokio::spawn(look(built, report.clone()));
    let ended = tokio::time::timeout(limit, &mut task).await;
    let fault = match ended {
        Ok(Ok(())) => None,
        Ok(Err(panic)) => Some((format!("the check itself failed: {panic}"), "This is a bug: please report it.")),
        Err(_) => {
            task.abort();
            let waited = humantime::format_duration(limit);
            Some((format!("no answer within {waited}"), "Look whether it hangs, or give it longer by --timeout."))
        }
    };
    let (mut findings, under_way) = report.take();
    if let Some((found, fix)) = fault {
        let check = under_way.unwrap_or("reach");
        findings.push(Finding { check, verdict: Verdict::Fail, found, fix: Some(fix.to_owned()) });
    }
    Examined { stage: name, type_name, findings }
}

async fn look(built: Built, report: Examination) {
    match built {
        Built::Source(mut built) => built.source.examine(&report).await,
        Built::Sink(mut built) => built.sink.examine(&report).await,
        // Transforms read files and start programs, which blocks.
        Built::Transform(mut built) => {
            let looked = tokio::task::spawn_blocking(move || built.transform.examine(&report));
            if let Err(panic) = looked.await
                && let Ok(reason) = panic.try_into_panic()
            {
                std::panic::resume_unwind(reason);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::datatypes::{DataType, Field, Schema};
    use async_trait::async_trait;

    use super::*;
    use crate::context::SourceContext;
    use crate::error::StageError;
    use crate::plan::Plan;
    use crate::stage::{BuildContext, BuildError, BuiltSink, BuiltSource, Group, Grouping, Port, Sink, Source};
    use crate::stage::{SinkConfig, SourceConfig, StageDoc};

    const DOC: StageDoc = StageDoc { type_name: "test", summary: "", ports: &[], failure: "" };

    struct Fine;

    #[async_trait]
    impl Source for Fine {
        async fn run(self: Box<Self>, _: SourceContext) -> Result<(), StageError> {
            Ok(())
        }
    }

    #[derive(serde::Deserialize, schemars::JsonSchema)]
    struct FineConfig {}

    impl SourceConfig for FineConfig {
        const DOC: StageDoc = DOC;

        fn build(self, _: &BuildContext) -> Result<BuiltSource, BuildError> {
            let schema = Arc::new(Schema::new(vec![Field::new("x", DataType::Utf8, true)]));
            Ok(BuiltSource { source: Box::new(Fine), outputs: vec![(Port::MAIN, schema)] })
        }
    }

    #[derive(Clone, Copy, serde::Deserialize, schemars::JsonSchema)]
    enum Outside {
        Hangs,
        Panics,
        Refuses,
    }

    #[derive(serde::Deserialize, schemars::JsonSchema)]
    struct OutsideConfig(Outside);

    #[async_trait]
    impl Sink for Outside {
        async fn open(&mut self) -> Result<(), StageError> {
            Ok(())
        }

        async fn write(&mut self, _: &Group) -> Result<(), StageError> {
            Ok(())
        }

        async fn probe(&mut self) -> Result<String, StageError> {
            Err(StageError::permanent("not with us").hint("Ask."))
        }

        async fn examine(&mut self, report: &Examination) {
            match self {
                Self::Refuses => crate::stage::examine_by_probe(self.probe().await, report),
                Self::Panics => panic!("at once"),
                Self::Hangs => {
                    report.pass("network", "there");
                    report.begin("login");
                    std::future::pending().await
                }
            }
        }
    }

    impl SinkConfig for OutsideConfig {
        const DOC: StageDoc = DOC;

        fn build(self, _: &arrow::datatypes::SchemaRef, _: &BuildContext) -> Result<BuiltSink, BuildError> {
            Ok(BuiltSink { sink: Box::new(self.0), grouping: Grouping::default(), outputs: Vec::new() })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stage_that_hangs_or_panics_hides_no_other() {
        let plan = Plan::builder("test")
            .source("in", FineConfig {})
            .sink("hangs", &["in"], OutsideConfig(Outside::Hangs))
            .sink("panics", &["in"], OutsideConfig(Outside::Panics))
            .sink("refuses", &["in"], OutsideConfig(Outside::Refuses))
            .build()
            .expect("a valid plan");
        let examined = Run::new(plan).examine(Duration::from_secs(20)).await;
        let of = |stage: &str| {
            let found = examined.iter().find(|examined| examined.stage == stage).expect("an entry a stage");
            found.findings.iter().map(|it| format!("{:?} {}: {}", it.verdict, it.check, it.found)).collect::<Vec<_>>()
        };
        assert_eq!(of("in"), ["Pass reach: nothing to reach"]);
        assert_eq!(of("hangs"), ["Pass network: there", "Fail login: no answer within 20s"]);
        assert!(of("panics")[0].starts_with("Fail reach: the check itself failed"), "{:?}", of("panics"));
        assert_eq!(of("refuses"), ["Fail reach: not with us"]);
    }
}
