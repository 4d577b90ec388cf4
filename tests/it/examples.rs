//! The examples do what they say.

use pipeline_engine::stage::Port;

#[path = "../../examples/embed.rs"]
mod embed;

#[tokio::test]
async fn an_embedded_pipeline_runs_a_stage_of_the_programs_own() {
    let lake = tempfile::tempdir().expect("a folder");
    let report = embed::run(lake.path()).await.expect("it runs");
    let warm = report.stage("warm").expect("the program's stage");
    assert_eq!(warm.rows_in(), 5000);
    let kept = warm.rows_out(Port::MAIN);
    assert!((1..5000).contains(&kept), "{kept} of 5000 are warm");
    let sink = report.stage("lake").expect("the sink");
    assert_eq!(sink.rows_stored(), kept);
    assert!(report.balances().iter().all(|(_, balance)| balance.imbalance() == 0), "{report}");
}
