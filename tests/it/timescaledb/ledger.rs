//! Positions that are committed together with rows: every group once, whatever becomes of the answer.

use pipeline_engine::stage::{Advance, Committed};
use pipeline_engine::{Partition, Position, Span};

use super::proxy::{Cut, End, Proxy};
use super::*;

/// A sink into a new schema, so that its ledger is its own.
pub async fn ledgered(url: &str, settings: &str) -> UnderTest {
    let schema = unique("ledger");
    connect(&database_url()).await.batch_execute(&format!("CREATE SCHEMA {schema}")).await.unwrap();
    ledgered_in(&schema, url, settings).await
}

pub async fn ledgered_in(schema: &str, url: &str, settings: &str) -> UnderTest {
    let settings = format!("create = true\n{settings}");
    sink_at(url, &database_url(), &format!("{schema}.readings"), &settings, &telemetry_schema()).await
}

pub fn advance(from: u64, to: u64) -> Advance {
    advance_of("valid", "telemetry/1", from, to)
}

fn advance_of(input: &str, partition: &str, from: u64, to: u64) -> Advance {
    let from = (from > 0).then(|| Position::from(from));
    Advance { input: input.into(), partition: partition.into(), from, to: to.into(), tenure: None }
}

/// So many readings, the group of this number.
pub fn numbered(number: u64, rows: usize) -> Group {
    let batch = many(rows, i64::try_from(number).unwrap() * 1000);
    Group::advancing(vec![batch], vec![advance(number - 1, number)])
}

impl UnderTest {
    /// Opens it as a run that resumes does.
    pub async fn resume(&mut self) -> Result<Vec<Committed>, StageError> {
        self.open().await?;
        self.sink.sink.committed().await
    }

    /// The ledger: input, partition, position and rows.
    pub async fn ledger(&self) -> Vec<String> {
        let schema = self.table.split('.').next().unwrap();
        let sql = format!(
            "SELECT concat_ws(' ', input, partition, position, rows_total) FROM {schema}._pipeline_ledger \
             WHERE pipeline = 'detached' AND sink = 'db' AND updated_at > now() - interval '1 hour' ORDER BY 1"
        );
        self.client.query(&sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
    }

    /// Writes a group as the engine does while faults are transient.
    pub async fn insist(&mut self, group: &Group) {
        while let Err(error) = self.sink.sink.write(group).await {
            assert_eq!(error.fault(), Fault::Transient, "{}", error.chain());
        }
    }
}

#[tokio::test]
async fn rows_and_positions_are_stored_together_and_the_next_run_is_told() {
    let mut test = ledgered(&database_url(), "").await;
    assert_eq!(test.resume().await.unwrap(), []);
    let (one, two) = (Partition::resumable("telemetry/1"), Partition::resumable("telemetry/2"));
    let wide = Position([0, 1, 0, u64::MAX]);
    let batches = vec![
        Batch::new(many(3, 0).rows, one.open(Span::new(1, 1), 0)),
        Batch::new(many(4, 10).rows, two.open(Span::new(1, wide), 0)),
        Batch::new(many(5, 20).rows, one.open(Span::new(2, 2), 0)),
    ];
    let advances = vec![
        advance_of("valid", "telemetry/1", 0, 2),
        advance_of("late.rejected", "telemetry/1", 0, 1),
        Advance { to: wide, ..advance_of("valid", "telemetry/2", 0, 1) },
    ];
    test.sink.sink.write(&Group::advancing(batches, advances)).await.unwrap();
    test.sink.sink.write(&Group::advancing(vec![many(7, 30)], vec![advance(2, 9)])).await.unwrap();
    // A position moves also where no row is left.
    let rest = Group::advancing(Vec::new(), vec![advance_of("late.rejected", "telemetry/1", 1, 2)]);
    test.sink.sink.write(&rest).await.unwrap();
    let expected = ["late.rejected telemetry/1 2 0", "valid telemetry/1 9 15", &format!("valid telemetry/2 {wide} 4")];
    assert_eq!((test.ledger().await, test.count().await), (expected.map(str::to_owned).to_vec(), 19));

    test.sink.sink.close().await.unwrap();
    let schema = test.table.split('.').next().unwrap();
    let mut next = ledgered_in(schema, &database_url(), "").await;
    let mut committed = next.resume().await.unwrap();
    committed.sort();
    let entry = |input: &str, partition: &str, position| Committed {
        input: input.into(),
        partition: partition.into(),
        position,
    };
    let expected = [
        entry("late.rejected", "telemetry/1", 2.into()),
        entry("valid", "telemetry/1", 9.into()),
        entry("valid", "telemetry/2", wide),
    ];
    assert_eq!(committed, expected);
}

#[tokio::test]
async fn a_commit_whose_answer_was_lost_is_recognised_without_a_key() {
    for end in [End::Close, End::Reset, End::Silence] {
        let proxy = Proxy::before(&database_url()).await;
        let mut test = ledgered(&proxy.url, "key = []").await;
        test.resume().await.unwrap();
        test.sink.sink.write(&numbered(1, 500)).await.unwrap();
        proxy.arm(Cut::InReply(0), end);
        let error = test.sink.sink.write(&numbered(2, 500)).await.unwrap_err();
        assert_eq!(error.fault(), Fault::Transient, "{}", error.chain());
        test.insist(&numbered(2, 500)).await;
        test.insist(&numbered(3, 500)).await;
        assert_eq!((test.count().await, test.counter("commits_resolved")), (1500, 1), "{end:?}");
        assert_eq!(test.ledger().await, ["valid telemetry/1 3 1500"]);
    }
}

#[tokio::test]
async fn a_commit_that_never_reached_the_server_is_made_again() {
    for end in [End::Close, End::Reset, End::Silence] {
        let proxy = Proxy::before(&database_url()).await;
        let mut test = ledgered(&proxy.url, "key = []").await;
        test.resume().await.unwrap();
        proxy.arm(Cut::InCommit(0), end);
        let error = test.sink.sink.write(&numbered(1, 500)).await.unwrap_err();
        assert_eq!(error.fault(), Fault::Transient, "{}", error.chain());
        assert_eq!(test.count().await, 0);
        test.insist(&numbered(1, 500)).await;
        assert_eq!((test.count().await, test.counter("commits_resolved")), (500, 0), "{end:?}");
        assert_eq!(test.ledger().await, ["valid telemetry/1 1 500"]);
    }
}

#[tokio::test]
async fn a_group_with_refused_rows_moves_nothing_until_the_rest_of_it_is_stored() {
    let mut test = ledgered(&database_url(), "key = []").await;
    test.resume().await.unwrap();
    test.sql("ALTER TABLE TABLE_NAME ADD CHECK (temperature < 100)").await;
    let whole = Group::advancing(vec![many(50, 0), telemetry(&[("hot", 1, 200.0)])], vec![advance(0, 2)]);
    let error = test.sink.sink.write(&whole).await.unwrap_err();
    assert_eq!(refused(&error), [(1, 0, "23514")]);
    assert_eq!((test.count().await, test.ledger().await), (0, Vec::new()));
    test.sink.sink.write(&Group::advancing(vec![many(50, 0)], vec![advance(0, 2)])).await.unwrap();
    assert_eq!((test.count().await, test.ledger().await), (50, vec!["valid telemetry/1 2 50".to_owned()]));
}

#[tokio::test]
async fn a_ledger_that_somebody_else_has_moved_stops_the_run_and_says_which_way() {
    let mut test = ledgered(&database_url(), "key = []").await;
    test.resume().await.unwrap();
    test.sink.sink.write(&numbered(1, 10)).await.unwrap();
    let next = || Group::advancing(vec![many(10, 9000)], vec![advance(1, 5)]);
    let schema = test.table.split('.').next().unwrap().to_owned();
    for (position, parts) in [
        ("'3'", ["up to 1", "says 3", "Another run of this pipeline stores there"]),
        ("'0'", ["up to 1", "says 0", "The database was restored"]),
    ] {
        test.sql(&format!("UPDATE {schema}._pipeline_ledger SET position = {position}")).await;
        let error = test.sink.sink.write(&next()).await.unwrap_err();
        assert_eq!(error.fault(), Fault::Permanent, "{}", error.chain());
        parts.iter().for_each(|part| assert!(error.chain().contains(part), "{part}: {}", error.chain()));
        assert_eq!(test.count().await, 10);
    }
    test.sql(&format!("DELETE FROM {schema}._pipeline_ledger")).await;
    let error = test.sink.sink.write(&next()).await.unwrap_err();
    assert!(error.chain().contains("says nothing"), "{}", error.chain());
    // One of a group's two positions is where it would leave it: another group has been there.
    test.sql(&format!(
        "INSERT INTO {schema}._pipeline_ledger SELECT 'detached', 'db', 'valid', 'telemetry/' || n, n::text, 0 \
         FROM generate_series(1, 2) n"
    ))
    .await;
    let advances = vec![advance(1, 2), advance_of("valid", "telemetry/2", 1, 2)];
    let error = test.sink.sink.write(&Group::advancing(vec![many(10, 9000)], advances)).await.unwrap_err();
    assert!(
        error.chain().contains("\"telemetry/2\" up to 1") && error.chain().contains("Another run"),
        "{}",
        error.chain()
    );
    test.sql(&format!("UPDATE {schema}._pipeline_ledger SET position = 'x'")).await;
    let error = test.sink.sink.committed().await.unwrap_err();
    assert!(error.chain().contains("was changed by hand") && error.fault() == Fault::Permanent, "{}", error.chain());
}

#[tokio::test]
async fn a_ledger_that_the_user_may_not_make_or_write_is_permanent_with_what_to_run() {
    let mut test = ledgered(&database_url(), "").await;
    test.open().await.unwrap();
    let (role, schema) = (unique("role"), test.table.split('.').next().unwrap().to_owned());
    test.sql(&format!("CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA {schema} TO {role}")).await;
    test.sql(&format!("GRANT INSERT, SELECT ON TABLE_NAME TO {role}")).await;
    let url = database_url().replace("postgres@", &format!("{role}@"));
    let mut poor = sink_at(&url, &database_url(), &test.table, "", &telemetry_schema()).await;
    let error = poor.resume().await.unwrap_err();
    let text = error.chain();
    assert!(
        error.fault() == Fault::Permanent && text.contains("_pipeline_ledger\", where the sink's positions"),
        "{text}"
    );
    test.sql(text.split_once("Run: ").unwrap().1).await;
    let error = poor.resume().await.unwrap_err();
    assert_eq!(error.fault(), Fault::Permanent, "{}", error.chain());
    test.sql(error.chain().split_once("To mend it: ").unwrap().1).await;
    poor.resume().await.unwrap();
    poor.sink.sink.write(&numbered(1, 10)).await.unwrap();
    assert_eq!(poor.ledger().await, ["valid telemetry/1 1 10"]);
}

#[tokio::test]
async fn a_run_that_does_not_resume_leaves_no_ledger() {
    let mut test = ledgered(&database_url(), "").await;
    test.open().await.unwrap();
    test.write(vec![many(10, 0)]).await.unwrap();
    let schema = test.table.split('.').next().unwrap();
    let sql = format!("SELECT to_regclass('{schema}._pipeline_ledger') IS NULL");
    assert!(test.client.query_one(&sql, &[]).await.unwrap().get::<_, bool>(0));
}

async fn new_database(name: &'static str) -> String {
    tokio::task::spawn_blocking(move || crate::services::database(name)).await.unwrap()
}

#[tokio::test]
async fn sinks_that_waited_for_another_to_make_their_tables_find_them() {
    let url = new_database("made_once").await;
    let admin = connect(&url).await;
    let schema = telemetry_schema();
    let make = |name| sink_in(testing::build_context(name, ""), &url, &url, "readings", "create = true", &schema);
    let (mut one, mut two) = (make("one").await, make("two").await);
    // Both have looked, and seen nothing, when they come to wait.
    admin.batch_execute("BEGIN; SELECT pg_advisory_xact_lock(hashtext('pipeline creates a table'))").await.unwrap();
    let waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted \
                   AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    let release = async {
        while admin.query_one(waiting, &[]).await.unwrap().get::<_, i64>(0) < 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        admin.batch_execute("COMMIT").await.unwrap();
    };
    let (one, two, ()) = tokio::join!(one.resume(), two.resume(), release);
    for opened in [one, two] {
        assert_eq!(opened.unwrap_or_else(|error| panic!("{}", error.chain())), []);
    }
}

#[tokio::test]
async fn a_table_that_somebody_else_makes_at_the_same_time_is_found() {
    let url = new_database("made_beside").await;
    let admin = connect(&url).await;
    // As whoever knows nothing of the sinks' lock: made, and not there yet.
    admin
        .batch_execute(
            "BEGIN; CREATE TABLE _pipeline_ledger (pipeline text, sink text, input text, partition text, \
             position text NOT NULL, rows_total bigint NOT NULL, updated_at timestamptz NOT NULL DEFAULT now(), \
             PRIMARY KEY (pipeline, sink, input, partition))",
        )
        .await
        .unwrap();
    let mut sink = sink_at(&url, &url, "readings", "create = true", &telemetry_schema()).await;
    let watch = connect(&url).await;
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                   AND wait_event_type = 'Lock' AND wait_event = 'transactionid'";
    let commit = async {
        while watch.query_one(waiting, &[]).await.unwrap().get::<_, i64>(0) == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        admin.batch_execute("COMMIT").await.unwrap();
    };
    let (opened, ()) = tokio::join!(sink.resume(), commit);
    assert_eq!(opened.unwrap_or_else(|error| panic!("{}", error.chain())), []);
}
