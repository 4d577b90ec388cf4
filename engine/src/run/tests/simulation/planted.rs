//! Mistakes made on purpose, each of which the simulation must find: one that finds nothing proves
//! nothing.

use super::invariants::Invariant::{self, *};
use super::simulate;
use crate::simulated;
use crate::spool::PlantedBug;

/// A mistake that is known from systems of this kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bug {
    /// A message is acknowledged before it is synced.
    AckBeforeFsync,
    /// A sink commits rows, and then how far it has come.
    PositionOutsideTransaction,
    /// An acknowledgement goes out on another connection than its message came by, where its packet id may
    /// be that of another message.
    StaleAck,
    /// Objects have the time for a name, so that a group that is made again is another object.
    WallClockRotation,
    /// A segment is deleted before it is durable that nobody needs it.
    UnlinkBeforeCursor,
    /// A batch that is dropped on the way counts as delivered.
    DroppedIsDelivered,
    /// A checkpoint is kept although not all before it is stored.
    CheckpointBeforeSinks,
    /// A transform's state is taken at the first barrier, not when that of every edge has come.
    SnapshotUnaligned,
    /// A sync that has failed is tried again, and succeeds without having written anything.
    SyncTriedAgain,
    /// What the broker sends again is not recognised.
    RedeliveryStoredTwice,
}

impl Bug {
    /// Where it is one of the spool's own.
    pub(super) fn of_spool(self) -> Option<PlantedBug> {
        match self {
            Self::AckBeforeFsync => Some(PlantedBug::DurableBeforeSync),
            Self::UnlinkBeforeCursor => Some(PlantedBug::UnlinkBeforeCursor),
            Self::SyncTriedAgain => Some(PlantedBug::SyncTriedAgain),
            _ => None,
        }
    }

    /// Where it is one of the engine's own.
    pub(super) fn of_engine(self) -> Option<simulated::PlantedBug> {
        match self {
            Self::DroppedIsDelivered => Some(simulated::PlantedBug::DroppedIsDelivered),
            Self::CheckpointBeforeSinks => Some(simulated::PlantedBug::CheckpointBeforeSinks),
            Self::SnapshotUnaligned => Some(simulated::PlantedBug::SnapshotUnaligned),
            _ => None,
        }
    }
}

/// So many seeds are tried until one finds it. The rarest is found by one of forty or so.
const SEEDS_MAX: u64 = 300;

/// The mistake is found, by one of the invariants that it breaks; and the seed that finds it is clean without
/// it.
fn assert_found(bug: Bug, breaks: &[Invariant]) {
    let violations = |seed| Some(simulate(seed, Some(bug)).violations).filter(|violations| !violations.is_empty());
    let found = (0..SEEDS_MAX).find_map(|seed| Some((seed, violations(seed)?)));
    let (seed, violations) = found.unwrap_or_else(|| panic!("{bug:?} is not found in {SEEDS_MAX} seeds"));
    let expected = violations.iter().find(|violation| breaks.contains(&violation.invariant));
    let Some(expected) = expected else { panic!("seed {seed} finds {bug:?} by something else: {violations:#?}") };
    println!("{bug:?} is found by seed {seed}: {expected}");
    assert_eq!(simulate(seed, None).violations, [], "without it");
}

#[test]
fn an_acknowledgement_before_the_sync_is_found() {
    assert_found(Bug::AckBeforeFsync, &[SpoolIsSound, NothingLost]);
}

#[test]
fn a_position_outside_the_transaction_is_found() {
    assert_found(Bug::PositionOutsideTransaction, &[NothingTwice]);
}

#[test]
fn an_acknowledgement_on_another_connection_is_found() {
    assert_found(Bug::StaleAck, &[AcknowledgedInOrder]);
}

#[test]
fn objects_cut_by_the_wall_clock_are_found() {
    assert_found(Bug::WallClockRotation, &[NothingTwice]);
}

#[test]
fn a_segment_deleted_before_its_cursor_is_durable_is_found() {
    assert_found(Bug::UnlinkBeforeCursor, &[SpoolIsSound]);
}

#[test]
fn a_dropped_batch_that_counts_as_delivered_is_found() {
    assert_found(Bug::DroppedIsDelivered, &[NothingLost, StateGoesOn]);
}

#[test]
fn a_checkpoint_before_the_sinks_have_stored_it_is_found() {
    assert_found(Bug::CheckpointBeforeSinks, &[NothingLost, StateGoesOn]);
}

#[test]
fn a_snapshot_taken_without_alignment_is_found() {
    assert_found(Bug::SnapshotUnaligned, &[StateGoesOn]);
}

#[test]
fn a_sync_tried_again_and_taken_for_success_is_found() {
    assert_found(Bug::SyncTriedAgain, &[SpoolIsSound, NothingLost, NoMistakeOfItsOwn]);
}

#[test]
fn a_redelivery_that_is_stored_twice_is_found() {
    assert_found(Bug::RedeliveryStoredTwice, &[NothingTwice, StateGoesOn]);
}
