//! The series of the benchmark and their labels, as they lie in a folder.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use arrow::array::{AsArray, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, TimeUnit, TimestampMicrosecondType};

use super::scoring::Labels;

/// One file.
#[derive(Debug)]
pub struct Series {
    /// Folder and file, as in the labels.
    pub name: String,
    pub times_us: Vec<i64>,
    pub values: Vec<f64>,
    pub labels: Labels,
}

impl Series {
    /// From the first reading to the last.
    pub fn days(&self) -> f64 {
        let (first, last) = (self.times_us.iter().min(), self.times_us.iter().max());
        first.zip(last).map_or(0.0, |(first, last)| (last - first) as f64 / 86_400e6)
    }

    /// `realKnownCause`
    pub fn folder(&self) -> &str {
        self.name.split('/').next().unwrap_or_default()
    }
}

/// Reads `windows.json` and the files that it names, or a checkout of the benchmark itself
/// (`labels/combined_windows.json` and `data/`). Files that are not there are left out, and counted.
pub fn read(folder: &Path) -> Result<(Vec<Series>, usize)> {
    let checkout = folder.join("labels/combined_windows.json");
    let (labels, data) = if checkout.exists() {
        (checkout, folder.join("data"))
    } else {
        (folder.join("windows.json"), folder.to_owned())
    };
    let text = std::fs::read_to_string(&labels).with_context(|| format!("can't read {}", labels.display()))?;
    let windows: BTreeMap<String, Vec<[String; 2]>> =
        serde_json::from_str(&text).with_context(|| format!("{} holds no windows", labels.display()))?;
    let (there, missing): (Vec<_>, Vec<_>) = windows.into_iter().partition(|(name, _)| data.join(name).exists());
    let series = there.into_iter().map(|(name, windows)| {
        let text = std::fs::read_to_string(data.join(&name))?;
        of_text(name.clone(), &text, &windows).with_context(|| format!("{name} can't be used"))
    });
    Ok((series.collect::<Result<_>>()?, missing.len()))
}

/// A series from `timestamp,value` lines with a header, and its windows as times.
pub fn of_text(name: String, text: &str, windows: &[[String; 2]]) -> Result<Series> {
    let mut times = Vec::new();
    let mut values = Vec::new();
    for line in text.lines().skip(1).filter(|line| !line.is_empty()) {
        let (time, value) = line.split_once(',').with_context(|| format!("\"{line}\" is not time and value"))?;
        times.push(time);
        values.push(value.trim().parse().with_context(|| format!("\"{value}\" is no number"))?);
    }
    let times_us = micros(&times)?;
    let windows: Result<Vec<(usize, usize)>> = windows.iter().map(|window| rows_of(window, &times_us)).collect();
    let labels = Labels { rows: values.len(), windows: windows? };
    Ok(Series { name, times_us, values, labels })
}

/// The first and the last row that lie within the times.
fn rows_of(window: &[String; 2], times_us: &[i64]) -> Result<(usize, usize)> {
    let bounds = micros(&[&window[0], &window[1]])?;
    let is_inside = |time: &i64| (bounds[0]..=bounds[1]).contains(time);
    let rows = times_us.iter().position(is_inside).zip(times_us.iter().rposition(is_inside));
    rows.with_context(|| format!("no row lies from {} to {}", window[0], window[1]))
}

/// Times without a zone, taken for UTC.
fn micros(times: &[&str]) -> Result<Vec<i64>> {
    let texts = StringArray::from_iter_values(times.iter().map(|time| time.trim()));
    let cast = cast(&texts, &DataType::Timestamp(TimeUnit::Microsecond, None))?;
    let found = cast.as_primitive::<TimestampMicrosecondType>();
    ensure!(found.iter().all(|time| time.is_some()), "a time is not of the form 2014-04-01 00:05:00");
    Ok(found.values().to_vec())
}
