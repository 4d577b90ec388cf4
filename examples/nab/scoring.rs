//! The scoring rules of the Numenta Anomaly Benchmark (Lavin and Ahmad, 2015), version 1.1.
//!
//! Every row of a series is a detection or none. Of the detections in a labelled window the first is worth most
//! and the only one that counts; those outside cost, the less the closer they follow a window. The first
//! rows of a series are for learning and are not counted. The sum over all series is put on a scale
//! where 0 is a detector that never detects and 100 one that detects the first row of every window.

/// A series as it is scored: how many rows, and the labelled windows as first and last row.
#[derive(Debug, Clone, PartialEq)]
pub struct Labels {
    pub rows: usize,
    pub windows: Vec<(usize, usize)>,
}

/// What detections are worth.
#[derive(Debug, Clone, Copy)]
pub struct Profile {
    pub name: &'static str,
    pub true_positive: f64,
    pub false_positive: f64,
    pub false_negative: f64,
}

/// The published profiles.
pub const PROFILES: [Profile; 3] = [
    Profile { name: "standard", true_positive: 1.0, false_positive: 0.11, false_negative: 1.0 },
    Profile { name: "few false positives", true_positive: 1.0, false_positive: 0.22, false_negative: 1.0 },
    Profile { name: "few misses", true_positive: 1.0, false_positive: 0.11, false_negative: 2.0 },
];

/// What came of detections.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Outcome {
    /// Windows with a detection.
    pub found: usize,
    /// Detections outside windows.
    pub false_alarms: usize,
    /// The sum of what all is worth.
    pub raw: f64,
}

/// The part of a series that is for learning: 15%, and 750 rows at most.
pub fn probation(rows: usize) -> usize {
    (rows * 15 / 100).min(750)
}

/// From 1 far before the end of a window to -1 far after it.
fn sigmoid(position: f64) -> f64 {
    if position > 3.0 { -1.0 } else { 2.0 / (1.0 + (5.0 * position).exp()) - 1.0 }
}

impl Labels {
    /// What a detection at a row is worth, and the window it lies in.
    fn worth(&self, row: usize, profile: &Profile) -> (Option<usize>, f64) {
        let inside = self.windows.iter().position(|(first, last)| (*first..=*last).contains(&row));
        if let Some(window) = inside {
            let (first, last) = self.windows[window];
            let position = -((last - row + 1) as f64) / (last - first + 1) as f64;
            return (inside, profile.true_positive * sigmoid(position) / sigmoid(-1.0));
        }
        let worth = match self.windows.iter().rfind(|(_, last)| *last < row) {
            None => -1.0,
            Some((first, last)) => sigmoid((row - last) as f64 / ((last - first).max(1)) as f64),
        };
        (None, profile.false_positive * worth)
    }

    /// What detections at these rows, in order, come to.
    pub fn outcome(&self, detections: impl IntoIterator<Item = usize>, profile: &Profile) -> Outcome {
        let mut outcome = Outcome { raw: -profile.false_negative * self.windows.len() as f64, ..Outcome::default() };
        let mut is_found = vec![false; self.windows.len()];
        for row in detections.into_iter().filter(|row| *row >= probation(self.rows)) {
            match self.worth(row, profile) {
                (None, worth) => {
                    outcome.false_alarms += 1;
                    outcome.raw += worth;
                }
                (Some(window), worth) if !is_found[window] => {
                    is_found[window] = true;
                    outcome.found += 1;
                    outcome.raw += profile.false_negative + worth;
                }
                (Some(_), _) => {}
            }
        }
        outcome
    }
}

/// A raw sum over series with so many windows, on the scale from 0 to 100; `None` without windows.
pub fn normalised(raw: f64, windows: usize, profile: &Profile) -> Option<f64> {
    let nothing = -profile.false_negative * windows as f64;
    let perfect = profile.true_positive * windows as f64;
    (windows > 0).then(|| 100.0 * (raw - nothing) / (perfect - nothing))
}

/// Series with a score for each row: a row is a detection where its score reaches a threshold.
pub type Scored<'a> = (&'a Labels, &'a [f64]);

/// All series at one threshold.
pub fn at_threshold(series: &[Scored<'_>], threshold: f64, profile: &Profile) -> Outcome {
    let mut total = Outcome::default();
    for (labels, scores) in series {
        let rows = (0..scores.len()).filter(|row| scores[*row] >= threshold);
        let outcome = labels.outcome(rows, profile);
        total.found += outcome.found;
        total.false_alarms += outcome.false_alarms;
        total.raw += outcome.raw;
    }
    total
}

/// The threshold that is best for all series together, as the benchmark picks it. Scores of zero and
/// below are no detections at any threshold.
pub fn best_threshold(series: &[Scored<'_>], profile: &Profile) -> f64 {
    // Rows by score, the highest first; what each adds to the sum, window by window.
    let mut rows = Vec::new();
    for (number, (labels, scores)) in series.iter().enumerate() {
        for row in probation(labels.rows)..scores.len() {
            if scores[row] > 0.0 {
                let (window, worth) = labels.worth(row, profile);
                rows.push((scores[row], window.map(|window| (number, window)), worth));
            }
        }
    }
    rows.sort_by(|left, right| right.0.total_cmp(&left.0));
    let mut best_in = std::collections::HashMap::new();
    let (mut sum, mut best) = (0.0, (0.0, f64::INFINITY));
    for (index, (score, window, worth)) in rows.iter().enumerate() {
        match window {
            None => sum += worth,
            Some(window) => {
                // The earliest row of a window is the worthiest.
                let known: f64 = best_in.get(window).copied().unwrap_or(-profile.false_negative);
                if *worth > known {
                    sum += worth - known;
                    best_in.insert(*window, *worth);
                }
            }
        }
        let is_last_of_score = rows.get(index + 1).is_none_or(|(next, ..)| next < score);
        if is_last_of_score && sum > best.0 {
            best = (sum, *score);
        }
    }
    best.1
}
