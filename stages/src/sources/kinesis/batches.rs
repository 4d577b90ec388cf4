//! From the records of a shard to batches whose bounds are the same whenever they are read.
//!
//! Sinks know what they have stored by the last position of a batch, so a batch that is read again must end where it
//! ended before, whatever came in one answer of the stream then or comes in one now. Bounds that earlier runs have used
//! are on record ([`super::journal`]) and used again; behind them, what has come together travels together, and its bounds
//! go on record before it is sent.
//!
//! | a record is | it travels |
//! |---|---|
//! | within recorded bounds | with all others within them |
//! | before recorded bounds that it should be within, or beyond a record that was damaged | alone: no bound can be inside it |
//! | behind all recorded bounds | with what comes with it |

use std::collections::VecDeque;

use bytes::Bytes;
use pipeline_engine::{Position, Span};

use super::journal::Recorded;
use super::roster::Origin;
use crate::kinesis::Sequence;
use crate::kinesis::aggregation::{self, Contents};

/// A batch is closed once it holds this many bytes of payload.
const BATCH_BYTES_MAX: usize = 8 << 20;

/// A record of a shard, as the stream gives it.
#[derive(Debug, Clone)]
pub(super) struct Raw {
    pub(super) sequence: Sequence,
    pub(super) partition_key: String,
    pub(super) data: Bytes,
    /// When the stream received it, microseconds since 1970.
    pub(super) arrived_at_us: i64,
}

/// A message of a shard: a record, or one of those packed into it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) position: Position,
    pub(super) partition_key: String,
    pub(super) payload: Bytes,
    pub(super) arrived_at_us: i64,
    /// Why it is no message: a packed record that can't be taken apart.
    pub(super) damage: Option<String>,
}

/// What is sent under one promise.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Assembled {
    /// At least one, in order.
    pub(super) messages: Vec<Message>,
    pub(super) span: Span,
    /// Its bounds have to go on record before it is sent.
    pub(super) is_new: bool,
}

/// Where to read on in a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bound {
    /// Everything behind this position.
    After(Position),
    /// Everything from this position on.
    From(Position),
}

impl Bound {
    fn admits(self, position: Position) -> bool {
        match self {
            Self::After(bound) => position > bound,
            Self::From(bound) => position >= bound,
        }
    }

    /// The record to ask the stream for, the first that may hold something to read. A record is read again where it may
    /// hold more than was taken from it.
    pub(super) fn sequence(self) -> Sequence {
        let (Self::After(position) | Self::From(position)) = self;
        Sequence::of(position).0
    }
}

/// Puts the records of one shard together.
#[derive(Debug)]
pub(super) struct Assembly {
    /// Bounds that earlier runs have used, the oldest first.
    recorded: VecDeque<Span>,
    /// Positions that no batch may straddle, since sinks have come to them, the first first.
    cuts: VecDeque<Position>,
    bound: Option<Bound>,
    /// Bounds up to here were let go of.
    passed: Option<Position>,
    /// Bounds may have been lost for records that arrived before this.
    alone_until_us: i64,
    rows_max: usize,
    held: Vec<Message>,
    held_bytes: usize,
    ready: Vec<Assembled>,
}

impl Assembly {
    /// `after`: where every sink has come to. With what is recorded of the shard; a checkpoint that was put back may stand
    /// before what has passed by that.
    pub(super) fn new(after: Option<Position>, recorded: Recorded, rows_max: usize) -> Self {
        let Recorded { passed, spans, alone_until_us, .. } = recorded;
        let after = after.or(passed);
        let recorded: VecDeque<Span> =
            spans.into_iter().filter(|span| after.is_none_or(|after| span.last > after)).collect();
        let first = || recorded.front().map(|span| Bound::From(span.first));
        let bound = after.map(Bound::After).or_else(first);
        let (held, ready) = (Vec::new(), Vec::new());
        let cuts = VecDeque::new();
        Self { recorded, cuts, bound, passed, alone_until_us, rows_max, held, held_bytes: 0, ready }
    }

    /// For a shard that workers share: what an earlier one has sent ends at positions that sinks tell, and needs no record
    /// of its own. `cuts`: those that they have come to, in order.
    pub(super) fn between(after: Option<Position>, cuts: Vec<Position>, rows_max: usize) -> Self {
        let recorded = Recorded { origin: Origin::Horizon, passed: None, spans: Vec::new(), alone_until_us: i64::MIN };
        Self { cuts: cuts.into(), ..Self::new(after, recorded, rows_max) }
    }

    /// Where to read on; `None` where the shard starts.
    pub(super) fn bound(&self) -> Option<Bound> {
        self.bound
    }

    /// Takes in what has come in one answer, in order. What was taken in before is left out.
    pub(super) fn take_in(&mut self, records: Vec<Raw>) -> Vec<Assembled> {
        for record in records {
            self.take_in_record(record);
        }
        if self.recorded.is_empty() {
            self.close_new();
        }
        std::mem::take(&mut self.ready)
    }

    /// Nothing comes any more: what was kept back for the rest of its batch, which the stream has no more.
    pub(super) fn finish(&mut self) -> Vec<Assembled> {
        match self.recorded.pop_front() {
            Some(span) => self.close_recorded(span),
            None => self.close_new(),
        }
        std::mem::take(&mut self.ready)
    }

    fn take_in_record(&mut self, record: Raw) {
        let Raw { sequence, partition_key, data, arrived_at_us } = record;
        let whole = |payload, damage| Message {
            position: sequence.position(0),
            partition_key: partition_key.clone(),
            payload,
            arrived_at_us,
            damage,
        };
        match aggregation::unpack(&data) {
            Contents::Ordinary => self.push(whole(data, None)),
            Contents::Damaged(why) => self.push(whole(data, Some(why))),
            Contents::Packed(unpacked) => {
                for (sub_sequence, unpacked) in (0..).zip(unpacked) {
                    let position = sequence.position(sub_sequence);
                    let (partition_key, payload) = (unpacked.partition_key, unpacked.data);
                    self.push(Message { position, partition_key, payload, arrived_at_us, damage: None });
                }
            }
        }
    }

    fn push(&mut self, message: Message) {
        let position = message.position;
        if self.bound.is_some_and(|bound| !bound.admits(position)) {
            return;
        }
        self.bound = Some(Bound::After(position));
        // The stream has forgotten the end of that batch.
        while let Some(span) = self.recorded.pop_front_if(|span| span.last < position) {
            self.close_recorded(span);
        }
        match self.recorded.front().copied() {
            Some(span) if position < span.first => self.send_alone(message),
            Some(span) => {
                self.hold(message);
                if position == span.last {
                    self.recorded.pop_front();
                    self.close_recorded(span);
                }
            }
            None if message.arrived_at_us < self.alone_until_us || self.passed >= Some(position) => {
                self.close_new();
                self.send_alone(message);
            }
            None => {
                while self.cuts.pop_front_if(|cut| *cut < position).is_some() {
                    self.close_new();
                }
                self.hold(message);
                let is_cut = self.cuts.pop_front_if(|cut| *cut == position).is_some();
                if is_cut || self.held.len() >= self.rows_max || self.held_bytes >= BATCH_BYTES_MAX {
                    self.close_new();
                }
            }
        }
    }

    fn hold(&mut self, message: Message) {
        self.held_bytes += message.payload.len();
        self.held.push(message);
    }

    fn send_alone(&mut self, message: Message) {
        let span = Span::new(message.position, message.position);
        self.ready.push(Assembled { messages: vec![message], span, is_new: true });
    }

    fn close_recorded(&mut self, span: Span) {
        self.close(|_| span.last, false);
    }

    fn close_new(&mut self) {
        self.close(|last| last, true);
    }

    fn close(&mut self, last: impl FnOnce(Position) -> Position, is_new: bool) {
        self.held_bytes = 0;
        let messages = std::mem::take(&mut self.held);
        if let (Some(first), Some(newest)) = (messages.first(), messages.last()) {
            let span = Span::new(first.position, last(newest.position));
            self.ready.push(Assembled { messages, span, is_new });
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;
    use crate::kinesis::aggregation::Packer;

    fn raw(sequence: u64, data: impl Into<Bytes>) -> Raw {
        let sequence = sequence.to_string().parse().unwrap();
        Raw { sequence, partition_key: "device".to_owned(), data: data.into(), arrived_at_us: 1_000 }
    }

    fn packed(sequence: u64, of: u64) -> Raw {
        let mut packer = Packer::default();
        (0..of).for_each(|number| packer.push("device", format!("{sequence}/{number}").into()));
        raw(sequence, packer.finish())
    }

    fn recorded(passed: Option<Position>, spans: Vec<Span>, alone_until_us: i64) -> Recorded {
        Recorded { origin: Origin::Horizon, passed, spans, alone_until_us }
    }

    /// Of nothing that was read before.
    fn fresh() -> Recorded {
        recorded(None, Vec::new(), 0)
    }

    fn position(sequence: u64, sub_sequence: u64) -> Position {
        Position([0, 0, sequence, sub_sequence])
    }

    fn spans(assembled: &[Assembled]) -> Vec<Span> {
        assembled.iter().map(|batch| batch.span).collect()
    }

    #[test]
    fn what_comes_together_travels_together_up_to_a_bound() {
        let mut assembly = Assembly::new(None, fresh(), 3);
        let batches = assembly.take_in((1..=5).map(|sequence| raw(sequence, "x")).collect());
        let expected = [Span::new(position(1, 0), position(3, 0)), Span::new(position(4, 0), position(5, 0))];
        assert_eq!(spans(&batches), expected);
        assert!(batches.iter().all(|batch| batch.is_new));
        assert_eq!(assembly.bound(), Some(Bound::After(position(5, 0))));
        assert_eq!(assembly.finish(), []);
    }

    #[test]
    fn a_packed_record_is_taken_apart_and_may_be_parted() {
        let mut assembly = Assembly::new(None, fresh(), 3);
        let batches = assembly.take_in(vec![packed(7, 4)]);
        let expected = [Span::new(position(7, 0), position(7, 2)), Span::new(position(7, 3), position(7, 3))];
        assert_eq!(spans(&batches), expected);
        assert_eq!(batches[1].messages[0].payload, "7/3");
        // A run that goes on behind the first of the two asks for the record again, and leaves out what it has.
        let mut again = Assembly::new(Some(position(7, 2)), fresh(), 3);
        assert_eq!(again.bound().unwrap().sequence(), "7".parse().unwrap());
        let batches = again.take_in(vec![packed(7, 4), raw(8, "x")]);
        assert_eq!(spans(&batches), [Span::new(position(7, 3), position(8, 0))]);
    }

    #[test]
    fn recorded_bounds_are_used_again_however_the_records_come() {
        let spans_before = vec![Span::new(position(1, 0), position(3, 0)), Span::new(position(4, 0), position(4, 0))];
        for at_once in 1..=6 {
            let mut assembly = Assembly::new(None, recorded(None, spans_before.clone(), 0), 2);
            let records: Vec<Raw> = (1..=6).map(|sequence| raw(sequence, "x")).collect();
            let batches: Vec<Assembled> =
                records.chunks(at_once).flat_map(|records| assembly.take_in(records.to_vec())).collect();
            assert_eq!(spans(&batches)[..2], spans_before, "{at_once} at once");
            let new: Vec<bool> = batches.iter().map(|batch| batch.is_new).collect();
            assert_eq!(new[..3], [false, false, true]);
            assert_eq!(batches.iter().map(|batch| batch.messages.len()).sum::<usize>(), 6);
        }
    }

    #[test]
    fn what_the_stream_has_forgotten_of_a_batch_is_not_waited_for() {
        let before = vec![Span::new(position(1, 0), position(3, 0)), Span::new(position(4, 0), position(9, 0))];
        let mut assembly = Assembly::new(None, recorded(None, before, 0), 10);
        // Of the first batch nothing is left, of the second its beginning is gone.
        let batches = assembly.take_in(vec![raw(6, "x"), raw(8, "x")]);
        assert_eq!(batches, []);
        // Nor is its end there: the shard ends.
        assert_eq!(spans(&assembly.finish()), [Span::new(position(6, 0), position(9, 0))]);
    }

    #[test]
    fn where_bounds_may_be_lost_every_message_travels_alone() {
        let before = Span::new(position(4, 0), position(5, 0));
        let mut assembly = Assembly::new(Some(position(1, 0)), recorded(None, vec![before], 2_000), 10);
        let mut records: Vec<Raw> = (1..=7).map(|sequence| raw(sequence, "x")).collect();
        records.extend((8..=9).map(|sequence| Raw { arrived_at_us: 2_000, ..raw(sequence, "x") }));
        let alone = |sequence| Span::new(position(sequence, 0), position(sequence, 0));
        let expected = [alone(2), alone(3), before, alone(6), alone(7), Span::new(position(8, 0), position(9, 0))];
        assert_eq!(spans(&assembly.take_in(records)), expected);
        // A checkpoint that was put back: bounds up to what had passed are gone.
        let mut assembly = Assembly::new(Some(position(1, 0)), recorded(Some(position(3, 0)), Vec::new(), 0), 10);
        let records: Vec<Raw> = (1..=5).map(|sequence| raw(sequence, "x")).collect();
        let expected = [alone(2), alone(3), Span::new(position(4, 0), position(5, 0))];
        assert_eq!(spans(&assembly.take_in(records)), expected);
    }

    #[test]
    fn a_packed_record_that_can_not_be_taken_apart_is_one_message_with_its_reason() {
        use md5::{Digest as _, Md5};
        let body = b"\x1a\xff";
        let sealed = [&[0xf3, 0x89, 0x9a, 0xc2][..], body, Md5::digest(body).as_slice()].concat();
        let mut assembly = Assembly::new(None, fresh(), 10);
        let batches = assembly.take_in(vec![raw(1, sealed.clone())]);
        assert_eq!(batches[0].messages[0].payload, sealed);
        assert!(batches[0].messages[0].damage.is_some());
    }

    /// Runs that end anywhere and read on anywhere before: no batch of any run straddles the end of one of another.
    #[test]
    fn no_batch_of_any_run_straddles_an_end_that_another_has_used() {
        for seed in 0..300 {
            let mut chance = StdRng::seed_from_u64(seed);
            let stream: Vec<Raw> = (1..60)
                .map(|sequence| match chance.random_range(0..4) {
                    0 => packed(sequence, chance.random_range(0..6)),
                    _ => raw(sequence, "x"),
                })
                .collect();
            let mut journal: Vec<Span> = Vec::new();
            let mut after: Option<Position> = None;
            for _ in 0..8 {
                let known = recorded(None, journal.clone(), 0);
                let mut assembly = Assembly::new(after, known, chance.random_range(1..9));
                let from = assembly.bound().map_or(0, |bound| {
                    stream.iter().position(|record| record.sequence >= bound.sequence()).unwrap_or(stream.len())
                });
                let until = chance.random_range(from..=stream.len());
                let mut rest = &stream[from..until];
                while !rest.is_empty() {
                    let (some, later) = rest.split_at(chance.random_range(1..=rest.len()));
                    rest = later;
                    for batch in assembly.take_in(some.to_vec()) {
                        let known = journal.iter().position(|span| span.last >= batch.span.last);
                        if batch.is_new {
                            assert_eq!(known, None, "seed {seed}: {:?} is new", batch.span);
                            journal.push(batch.span);
                        } else {
                            assert!(journal.contains(&batch.span), "seed {seed}: {:?}", batch.span);
                        }
                    }
                }
                // The next run reads on after any batch that is checkpointed by then.
                if !journal.is_empty() && chance.random_bool(0.7) {
                    let at = journal[chance.random_range(0..journal.len())].last;
                    after = after.max(Some(at));
                }
            }
        }
    }

    #[test]
    fn a_batch_of_a_shard_that_is_taken_over_ends_where_a_sink_has_come_to() {
        let place = |number: u64| raw(number, "x").sequence.position(0);
        let cuts = [4, 5, 9].map(place).to_vec();
        let mut assembly = Assembly::between(Some(place(2)), cuts, 100);
        // The stream has forgotten the ninth.
        let records = (1..=12).filter(|number| *number != 9).map(|number| raw(number, "x")).collect();
        let ends: Vec<Position> = assembly.take_in(records).iter().map(|batch| batch.span.last).collect();
        assert_eq!(ends, [4, 5, 8, 12].map(place));
    }
}
