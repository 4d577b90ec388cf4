//! The mean of a value over time, however unevenly it was sampled.

use pipeline_engine::stage::StageError;

use super::sum::Sum;
use crate::transforms::snapshot::{Reader, Writer};

/// So many samples of a window are kept. Beyond it the older half is added up, and a sample that comes for a time
/// before that is left out.
const SAMPLES_MAX: usize = 4096;

/// What the value is between two samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Between {
    /// That of the sample before.
    Step,
    /// On the line from one to the other.
    Line,
}

/// The samples of a window, and the area below those that were added up.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Curve {
    /// In order of time, each time once.
    samples: Vec<(i64, f64)>,
    step_area: Sum,
    line_area: Sum,
    /// The first sample, if anything was added up.
    began: Option<(i64, f64)>,
    /// Samples that came too late to be placed.
    pub(super) left_out: u64,
}

impl Curve {
    /// Takes a sample in. Of two at one time the later counts.
    pub(super) fn add(&mut self, time_us: i64, value: f64) {
        match self.samples.last() {
            Some((last, _)) if *last >= time_us => match self.samples.binary_search_by_key(&time_us, |sample| sample.0)
            {
                Ok(at) => self.samples[at].1 = value,
                Err(0) if self.began.is_some() => self.left_out += 1,
                Err(at) => self.samples.insert(at, (time_us, value)),
            },
            _ => self.samples.push((time_us, value)),
        }
        if self.samples.len() > SAMPLES_MAX {
            self.fold(SAMPLES_MAX / 2);
        }
    }

    /// Adds up to the sample `end`, which stays.
    fn fold(&mut self, end: usize) {
        self.began.get_or_insert(self.samples[0]);
        let area = areas(&self.samples[..=end]);
        self.add_area(area);
        self.samples.drain(..end);
    }

    fn add_area(&mut self, (step, line): (f64, f64)) {
        self.step_area.add(step);
        self.line_area.add(line);
    }

    /// A curve that lies behind this one comes into it.
    pub(super) fn merge(&mut self, later: Self) {
        self.left_out += later.left_out;
        if let Some(began) = later.began {
            // What it has added up has no samples any more, so all of this one is added up to there.
            if let Some(last) = self.samples.last().copied() {
                self.began.get_or_insert(self.samples[0]);
                let area = areas(&self.samples);
                self.add_area(area);
                self.add_area(areas(&[last, began]));
                self.samples.clear();
            }
            self.began.get_or_insert(began);
            self.step_area.merge(later.step_area);
            self.line_area.merge(later.line_area);
        }
        for (time_us, value) in later.samples {
            self.add(time_us, value);
        }
    }

    /// From the first sample to the last; the value of the only one; `None` without any.
    pub(super) fn mean(&self, between: Between) -> Option<f64> {
        let (last_us, last) = *self.samples.last()?;
        let (first_us, _) = self.began.unwrap_or(self.samples[0]);
        if last_us == first_us {
            return Some(last);
        }
        let (step, line) = areas(&self.samples);
        let (mut sum, rest) = match between {
            Between::Step => (self.step_area, step),
            Between::Line => (self.line_area, line),
        };
        sum.add(rest);
        Some(sum.total() / (last_us - first_us) as f64)
    }

    pub(super) fn write(&self, writer: &mut Writer) {
        writer.optional_i64(self.began.map(|began| began.0));
        writer.f64(self.began.map_or(0.0, |began| began.1));
        self.step_area.write(writer);
        self.line_area.write(writer);
        writer.u64(self.left_out);
        writer.u32(self.samples.len() as u32);
        for (time_us, value) in &self.samples {
            writer.i64(*time_us);
            writer.f64(*value);
        }
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, StageError> {
        let began_us = reader.optional_i64()?;
        let began_with = reader.f64()?;
        let mut curve = Self {
            began: began_us.map(|began_us| (began_us, began_with)),
            step_area: Sum::read(reader)?,
            line_area: Sum::read(reader)?,
            left_out: reader.u64()?,
            samples: Vec::new(),
        };
        for _ in 0..reader.u32()? {
            curve.samples.push((reader.i64()?, reader.f64()?));
        }
        Ok(curve)
    }
}

/// Below steps and below lines, in units of the value times microseconds.
fn areas(samples: &[(i64, f64)]) -> (f64, f64) {
    let (mut step, mut line) = (Sum::default(), Sum::default());
    for pair in samples.windows(2) {
        let [(from, left), (to, right)] = [pair[0], pair[1]];
        let time = (to - from) as f64;
        step.add(left * time);
        line.add(f64::midpoint(left, right) * time);
    }
    (step.total(), line.total())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_counts_for_as_long_as_it_held() {
        let mut curve = Curve::default();
        assert_eq!(curve.mean(Between::Step), None);
        curve.add(30, 4.0);
        assert_eq!((curve.mean(Between::Step), curve.mean(Between::Line)), (Some(4.0), Some(4.0)));
        // Out of order, and one time twice.
        curve.add(0, 9.0);
        curve.add(0, 1.0);
        curve.add(10, 2.0);
        assert_eq!(curve.mean(Between::Step), Some((1.0 * 10.0 + 2.0 * 20.0) / 30.0));
        assert_eq!(curve.mean(Between::Line), Some((1.5 * 10.0 + 3.0 * 20.0) / 30.0));
    }

    #[test]
    fn many_samples_are_added_up_and_the_mean_stays() {
        let (mut curve, mut exact) = (Curve::default(), Vec::new());
        for number in 0..20_000 {
            let sample = (number * 7 + number % 3, f64::from(number as i32 % 97));
            curve.add(sample.0, sample.1);
            exact.push(sample);
        }
        assert!(curve.samples.len() <= SAMPLES_MAX);
        let (step, line) = areas(&exact);
        let span = (exact[19_999].0 - exact[0].0) as f64;
        for (between, area) in [(Between::Step, step), (Between::Line, line)] {
            let found = curve.mean(between).unwrap();
            assert!((found / (area / span) - 1.0).abs() < 1e-12, "{found}");
        }
        curve.add(3, 1.0);
        assert_eq!(curve.left_out, 1, "its place was added up");

        // Two halves make the same.
        let half = |samples: &[(i64, f64)]| {
            let mut curve = Curve::default();
            samples.iter().for_each(|(time_us, value)| curve.add(*time_us, *value));
            curve
        };
        let mut merged = half(&exact[..9_000]);
        merged.merge(half(&exact[9_000..]));
        for between in [Between::Step, Between::Line] {
            let (found, whole) = (merged.mean(between).unwrap(), curve.mean(between).unwrap());
            assert!((found / whole - 1.0).abs() < 1e-12, "{found} {whole}");
        }
    }
}
