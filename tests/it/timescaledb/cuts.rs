//! Connections cut at random bytes of COPY and of COMMIT: every group is stored exactly once.
//!
//! The table has no key, so nothing but the ledger can tell a group that comes again.

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;

use super::ledger::{ledgered, numbered};
use super::proxy::{Cut, End, Proxy};
use super::*;

const CUTS: u64 = 100;
const ROWS: usize = 300;

fn end(random: &mut Pcg64Mcg) -> End {
    [End::Close, End::Reset, End::Silence][random.random_range(0..3)]
}

/// Writes `CUTS` groups, each with its connection cut at a place that `cut` chooses, and looks.
async fn cut_each(seed: u64, cut: impl Fn(&mut Pcg64Mcg, usize) -> Cut) -> UnderTest {
    let mut random = Pcg64Mcg::seed_from_u64(seed);
    let proxy = Proxy::before(&database_url()).await;
    let mut test = ledgered(&proxy.url, "key = []").await;
    test.resume().await.unwrap();
    let before = proxy.bytes_up();
    test.sink.sink.write(&numbered(1, ROWS)).await.unwrap();
    let bytes = proxy.bytes_up() - before;
    for number in 2..=CUTS + 1 {
        let (place, end) = (cut(&mut random, bytes), end(&mut random));
        proxy.arm(place, end);
        test.insist(&numbered(number, ROWS)).await;
        assert!(proxy.has_cut(), "seed {seed}, group {number}: {place:?}");
        let stored = test.count().await;
        assert_eq!(
            stored,
            i64::try_from(number).unwrap() * ROWS as i64,
            "seed {seed}, group {number}: {place:?} {end:?}"
        );
        proxy.end_silence();
    }
    let rows = (CUTS + 1) * ROWS as u64;
    assert_eq!(test.ledger().await, [format!("valid telemetry/1 {} {rows}", CUTS + 1)], "seed {seed}");
    let distinct = format!("SELECT count(DISTINCT (device_id, timestamp)) FROM {}", test.table);
    assert_eq!(test.client.query_one(&distinct, &[]).await.unwrap().get::<_, i64>(0), rows as i64, "seed {seed}");
    test
}

#[tokio::test]
async fn a_group_is_stored_once_wherever_in_it_the_connection_is_cut() {
    // All that reaches the server for a group is a BEGIN, its positions, its COPY and a COMMIT.
    cut_each(1, |random, bytes| Cut::AfterBytes(random.random_range(0..bytes))).await;
}

#[tokio::test]
async fn a_group_is_stored_once_wherever_in_its_commit_the_connection_is_cut() {
    let test = cut_each(2, |random, _| match random.random_range(0..30) {
        // Of the COMMIT, 12 bytes, one at least is missing; or of the answer, 18 bytes with the one that it is
        // ready again.
        sent @ 0..12 => Cut::InCommit(sent),
        answered => Cut::InReply(answered - 12),
    })
    .await;
    let resolved = test.counter("commits_resolved");
    assert!(resolved > 20 && resolved < CUTS, "{resolved} commits were known by their positions");
}
