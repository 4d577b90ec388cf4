//! What is left out lies within the bound, whatever comes and wherever the run is cut.

use proptest::prelude::*;

use super::*;

/// A row of a stream, with its place in it.
#[derive(Debug, Clone)]
struct Row {
    device: usize,
    time_us: i64,
    values: [Option<f64>; 2],
}

#[derive(Debug, Clone)]
struct Stream {
    rows: Vec<Row>,
    door: bool,
    ignores_nulls: bool,
    absolute: f64,
    percent: f64,
    heartbeat_s: Option<i64>,
    lateness_s: i64,
    idle_s: i64,
    held_rows_max: u32,
    /// How many rows a batch has, and after which one the run is ended and resumed.
    batch: usize,
    restart: usize,
}

/// Steps, lines, noise, gaps and numbers that are none.
fn value() -> impl Strategy<Value = Option<f64>> {
    prop_oneof![
        8 => (-20i32..20).prop_map(|tenths| Some(f64::from(tenths) / 10.0)),
        2 => (-1e9..1e9).prop_map(Some),
        1 => Just(None),
        1 => prop_oneof![Just(f64::NAN), Just(f64::INFINITY), Just(f64::MAX), Just(f64::MIN)].prop_map(Some),
    ]
}

fn stream() -> impl Strategy<Value = Stream> {
    let step = (0usize..4, 0i64..4, prop_oneof![4 => Just(0i64), 1 => 0i64..12], value(), value(), any::<bool>());
    let rows = prop::collection::vec(step, 1..120).prop_map(|steps| {
        let mut second = 100;
        let mut line = 0.0;
        let row = |(device, step, back, left, right, on_line): (usize, i64, i64, Option<f64>, Option<f64>, bool)| {
            second += step;
            line += step as f64 * 0.3;
            let left = if on_line { Some(line) } else { left };
            Row { device, time_us: (second - back) * SECOND, values: [left, right] }
        };
        steps.into_iter().map(row).collect::<Vec<_>>()
    });
    let rule = (any::<[bool; 2]>(), prop_oneof![Just(0.0), 0.0..3.0], prop_oneof![Just(0.0), 0.0..20.0]);
    let times = (prop::option::of(1i64..10), 0i64..8, prop_oneof![Just(5i64), Just(100_000)]);
    let room = (prop_oneof![Just(3u32), Just(1000)], 1usize..40, 0usize..6);
    (rows, rule, times, room).prop_map(|(rows, rule, times, room)| Stream {
        rows,
        door: rule.0[0],
        ignores_nulls: rule.0[1],
        absolute: rule.1,
        percent: rule.2,
        heartbeat_s: times.0,
        lateness_s: times.1,
        idle_s: times.2,
        held_rows_max: room.0,
        batch: room.1,
        restart: room.2,
    })
}

impl Stream {
    /// How many columns are thinned: lines that ignore nulls have one.
    fn columns(&self) -> usize {
        if self.door && self.ignores_nulls { 1 } else { 2 }
    }

    fn number(&self, row: usize, column: usize) -> Option<f64> {
        self.rows[row].values[column].filter(|value| value.is_finite())
    }

    /// Whether a row is left out without a look at it.
    fn says_nothing(&self, row: usize) -> bool {
        self.door && self.ignores_nulls && self.number(row, 0).is_none()
    }

    fn config(&self) -> String {
        let method = if self.door { "swinging_door" } else { "dead_band" };
        let bounds = |bound: f64| match self.columns() {
            1 => format!("{{ temperature = {bound:?} }}"),
            _ => format!("{{ temperature = {bound:?}, humidity = {bound:?} }}"),
        };
        let nulls = if self.ignores_nulls { "ignore" } else { "gap" };
        let heartbeat = self.heartbeat_s.map_or(String::new(), |seconds| format!("heartbeat = \"{seconds}s\"\n"));
        format!(
            "method = \"{method}\"\nabsolute = {}\npercent = {}\n{heartbeat}allowed_lateness = \"{}s\"\n\
             idle_timeout = \"{}s\"\nheld_rows_max = {}\nnulls = \"{nulls}\"",
            bounds(self.absolute),
            bounds(self.percent),
            self.lateness_s,
            self.idle_s,
            self.held_rows_max
        )
    }

    fn readings(&self) -> Vec<Reading> {
        let reading = |(number, row): (usize, &Row)| Reading {
            temperature: row.values[0],
            humidity: row.values[1],
            status: Some(number.to_string()),
            ..Reading::of(["a", "b", "c", "d"][row.device], row.time_us)
        };
        self.rows.iter().enumerate().map(reading).collect()
    }

    /// The places of the rows that stayed, in the order in which they left, and of those that were late.
    fn outcome(&self, batch: usize, restart: Option<usize>) -> (Vec<usize>, Vec<usize>) {
        let mut current = stage(&self.config());
        let (mut kept, mut late) = (Vec::new(), Vec::new());
        let places = |outcome: &Outcome, port| -> Vec<usize> {
            outcome.texts(port, "status").iter().map(|number| number.parse().unwrap()).collect()
        };
        for (number, part) in self.readings().chunks(batch).enumerate() {
            let outcome = run(&mut *current.transform, part);
            kept.extend(places(&outcome, Port::MAIN));
            late.extend(places(&outcome, LATE));
            if restart == Some(number) {
                let snapshot = current.transform.snapshot().unwrap();
                current = stage(&self.config());
                current.transform.restore(&snapshot).unwrap();
                assert_eq!(current.transform.snapshot().unwrap(), snapshot, "what is restored is written again");
            }
        }
        kept.extend(places(&finish(&mut *current.transform), Port::MAIN));
        (kept, late)
    }

    /// Whether a reading may be told by `said`, which is exact to `slack`.
    fn is_told(&self, said: Option<f64>, reading: Option<f64>, slack: f64) -> bool {
        match (said, reading) {
            (None, None) => true,
            (Some(said), Some(value)) => {
                let bound = self.absolute.max(self.percent / 100.0 * value.abs());
                (said - value).abs() <= bound * (1.0 + 1e-15) + slack
            }
            _ => false,
        }
    }

    fn check(&self, kept: &[usize], late: &[usize]) {
        for device in 0..4 {
            let is_of_series =
                |at: &usize| self.rows[*at].device == device && !late.contains(at) && !self.says_nothing(*at);
            let mut series: Vec<usize> = (0..self.rows.len()).filter(is_of_series).collect();
            series.sort_by_key(|at| (self.rows[*at].time_us, *at));
            let stays: Vec<usize> = kept.iter().copied().filter(|at| self.rows[*at].device == device).collect();
            let in_order: Vec<usize> = series.iter().copied().filter(|at| stays.contains(at)).collect();
            assert_eq!(stays, in_order, "rows of device {device} leave in order of time, each once");
            let (Some(first), Some(last)) = (series.first(), series.last()) else { continue };
            assert!(stays.contains(first) && stays.contains(last), "the ends of device {device} stay");
            let mut before = *first;
            for (place, at) in series.iter().enumerate() {
                if stays.contains(at) {
                    self.check_heartbeat(before, *at, &series);
                    before = *at;
                    continue;
                }
                let after = series[place..].iter().find(|at| stays.contains(at)).unwrap();
                let earlier: Vec<usize> = series[..place].iter().copied().filter(|at| stays.contains(at)).collect();
                self.check_left_out(&earlier, *at, *after);
            }
        }
    }

    /// Kept rows are no farther apart than the heartbeat where anything lies between them.
    fn check_heartbeat(&self, before: usize, after: usize, series: &[usize]) {
        let place = |at: usize| series.iter().position(|other| *other == at).unwrap();
        let apart_us = self.rows[after].time_us - self.rows[before].time_us;
        if let Some(seconds) = self.heartbeat_s {
            assert!(apart_us <= seconds * SECOND || place(after) - place(before) <= 1, "{before} and {after}");
        }
    }

    /// `earlier`: the rows before it that stay, of which there is one; `after`: the next that does.
    fn check_left_out(&self, earlier: &[usize], at: usize, after: usize) {
        let [before, row, after_row] = [earlier[earlier.len() - 1], at, after].map(|at| &self.rows[at]);
        for column in 0..self.columns() {
            let (value, right) = (self.number(at, column), self.number(after, column));
            let left = if self.ignores_nulls && !self.door {
                if value.is_none() {
                    continue;
                }
                earlier.iter().rev().find_map(|at| self.number(*at, column))
            } else {
                self.number(earlier[earlier.len() - 1], column)
            };
            let is_told = match (left, right) {
                (Some(left), Some(right)) if self.door && row.time_us > before.time_us => {
                    let part = (row.time_us - before.time_us) as f64 / (after_row.time_us - before.time_us) as f64;
                    let rounding = 4e-15 * left.abs().max(right.abs());
                    self.is_told(Some(left * (1.0 - part) + right * part), value, rounding)
                }
                _ => self.is_told(left, value, 0.0),
            };
            assert!(is_told, "{row:?}, column {column}: {value:?} between {left:?} and {right:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn what_is_left_out_lies_within_the_bound_also_after_a_restart(stream in stream()) {
        let whole = stream.outcome(stream.rows.len(), None);
        stream.check(&whole.0, &whole.1);
        let resumed = stream.outcome(stream.batch, Some(stream.restart));
        prop_assert_eq!(resumed, whole, "neither the cut into batches nor a restart changes what comes out");
    }
}
