//! Checks the configuration of `anomaly` against the input, and builds the stage with the method that
//! it names.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use pipeline_engine::columns;
use pipeline_engine::schema::timestamp_type;
use pipeline_engine::stage::{BuildContext, BuildError, BuiltTransform, Port};
use pipeline_engine::suggest::suggest;

use super::fleet::Fleet;
use super::methods::auto::Auto;
use super::methods::ewma::Ewma;
use super::methods::flatline::Flatline;
use super::methods::rate::Rate;
use super::methods::robust::Robust;
use super::methods::seasonal::{Season, Seasonal};
use super::methods::zscore::Zscore;
use super::methods::{Limits, Method};
use super::run::Anomaly;
use super::series::{Episodes, Rules};
use super::{ANOMALIES, AnomalyConfig, MethodName};

/// Five minutes of readings every five seconds.
const WINDOW: u32 = 60;
/// The largest window. The window is summed anew as often as it turns over; its bound on rounding
/// (see `methods::window`) holds up to here.
const WINDOW_MAX: u32 = 10_000;
/// Below it, a standard deviation is itself off by more than a sixth.
const WARMUP: u32 = 20;
/// A third of the readings at most, for long: see `series`.
const RELEARN_AFTER: u32 = 10;
/// A tenth of a degree at room temperature.
const MIN_STDDEV_RELATIVE: f64 = 0.005;
/// Two weeks of days: what changes with the year is followed.
const SEASONS: u32 = 14;
const SEASONS_MAX: u32 = 1_000;

impl AnomalyConfig {
    pub(super) fn build_stage(self, input: &SchemaRef, cx: &BuildContext) -> Result<BuiltTransform, BuildError> {
        let method = self.method();
        self.refuse_strangers(method)?;
        match method {
            MethodName::Auto => self.with(Auto, input, cx),
            MethodName::Zscore => {
                let (window, warmup) = self.window_and_warmup()?;
                self.with(Zscore { window, warmup }, input, cx)
            }
            MethodName::Ewma => {
                let (window, warmup) = self.window_and_warmup()?;
                self.with(Ewma { window, warmup }, input, cx)
            }
            MethodName::Robust => {
                let (window, warmup) = self.window_and_warmup()?;
                self.with(Robust { window, warmup }, input, cx)
            }
            MethodName::Seasonal => {
                let seasonal = self.seasonal()?;
                self.with(seasonal, input, cx)
            }
            MethodName::Rate => {
                let (window, warmup) = self.window_and_warmup()?;
                let threshold = self.threshold();
                self.with(Rate { window, warmup, threshold }, input, cx)
            }
            MethodName::Flatline => {
                let (window, _) = self.window_and_warmup()?;
                let flat_for_us = self.flat_for.map_or(Ok(0), |text| micros("flat_for", text.0))?;
                let threshold = self.threshold();
                self.with(Flatline { window, flat_for_us, threshold }, input, cx)
            }
        }
    }

    /// The stage with this method.
    fn with<M: Method + 'static>(
        self,
        method: M,
        input: &SchemaRef,
        cx: &BuildContext,
    ) -> Result<BuiltTransform, BuildError> {
        let key = columns::find_typed(input, "key", &self.key, "text", |kind| *kind == DataType::Utf8)?;
        let is_time = |kind: &DataType| *kind == timestamp_type();
        let time = columns::find_typed(input, "time_column", &self.time_column, "a timestamp", is_time)?;
        let metrics = self.metrics(input)?;
        let rules = self.rules()?;
        let limits = self.limits()?;
        if self.devices_max == 0 {
            return Err(BuildError::invalid("devices_max", "no device could be remembered"));
        }
        let schema = self.main_schema(input)?;
        let anomalies = self.anomalies_schema(input.field(time))?;
        let transform = Anomaly {
            pipeline: cx.pipeline.clone(),
            key,
            time,
            metrics: metrics.into_iter().zip(self.metrics).collect(),
            method,
            rules,
            fleet: Fleet::new(limits.len(), self.devices_max),
            limits,
            schema: schema.clone(),
            anomalies: anomalies.clone(),
            evicted: cx.counter("evicted_devices"),
            found: Vec::new(),
        };
        let outputs = vec![(Port::MAIN, schema), (ANOMALIES, anomalies)];
        Ok(BuiltTransform { transform: Box::new(transform), outputs })
    }

    fn method(&self) -> MethodName {
        // `zscore` was once the only method: a file that sets what it can set was written for it.
        let is_tuned = self.window.is_some()
            || self.warmup.is_some()
            || self.threshold.is_some()
            || self.critical.is_some()
            || self.min_stddev.is_some()
            || self.min_stddev_relative.is_some()
            || self.learn_from_anomalies.is_some()
            || self.relearn_after.is_some();
        self.method.unwrap_or(if is_tuned { MethodName::Zscore } else { MethodName::Auto })
    }

    /// Keys that the method would ignore are mistakes.
    fn refuse_strangers(&self, method: MethodName) -> Result<(), BuildError> {
        use MethodName::{Ewma, Flatline, Rate, Robust, Seasonal, Zscore};
        let keeping_out: &[MethodName] = &[Zscore, Ewma, Robust, Rate, Seasonal];
        let keys: [(&str, bool, &[MethodName], &str); 9] = [
            (
                "window",
                self.window.is_some(),
                &[Zscore, Ewma, Robust, Rate, Flatline],
                "zscore, ewma, robust, rate and flatline",
            ),
            (
                "warmup",
                self.warmup.is_some(),
                &[Zscore, Ewma, Robust, Rate, Seasonal],
                "zscore, ewma, robust, rate and seasonal",
            ),
            ("learn_from_anomalies", self.learn_from_anomalies.is_some(), keeping_out, "those that keep anomalies out"),
            ("relearn_after", self.relearn_after.is_some(), keeping_out, "those that keep anomalies out"),
            ("season", self.season.is_some(), &[Seasonal], "seasonal"),
            ("seasons", self.seasons.is_some(), &[Seasonal], "seasonal"),
            ("rate_max", self.rate_max.is_some(), &[Rate], "rate"),
            ("flat_for", self.flat_for.is_some(), &[Flatline], "flatline"),
            ("flat_tolerance", self.flat_tolerance.is_some(), &[Flatline], "flatline"),
        ];
        match keys.into_iter().find(|(_, is_given, methods, _)| *is_given && !methods.contains(&method)) {
            None => Ok(()),
            Some((key, _, _, of)) => {
                let text = format!("the method \"{}\" has no such setting", word(method));
                Err(BuildError::invalid(key, text).hint(format!("It is a setting of {of}.")))
            }
        }
    }

    fn window_and_warmup(&self) -> Result<(u32, u32), BuildError> {
        let window = self.window.unwrap_or(WINDOW);
        if !(2..=WINDOW_MAX).contains(&window) {
            let text = format!("a window of {window} is not between 2 and {WINDOW_MAX}");
            return Err(BuildError::invalid("window", text));
        }
        let warmup = self.warmup.unwrap_or(WARMUP.min(window));
        if !(2..=window).contains(&warmup) {
            let text = format!("a warm-up of {warmup} is not between 2 and the window, {window}");
            return Err(BuildError::invalid("warmup", text));
        }
        Ok((window, warmup))
    }

    fn seasonal(&self) -> Result<Seasonal, BuildError> {
        let seasons = self.seasons.unwrap_or(SEASONS);
        if !(2..=SEASONS_MAX).contains(&seasons) {
            let text = format!("{seasons} is not between 2 and {SEASONS_MAX}");
            return Err(BuildError::invalid("seasons", text));
        }
        let warmup = self.warmup.unwrap_or(WARMUP);
        if warmup < 2 {
            return Err(BuildError::invalid("warmup", "a standard deviation takes two readings at least"));
        }
        Ok(Seasonal { season: self.season.unwrap_or(Season::HourOfDay), seasons, warmup })
    }

    /// The metrics' columns, in the order of the configuration.
    fn metrics(&self, input: &Schema) -> Result<Vec<usize>, BuildError> {
        if self.metrics.is_empty() {
            return Err(BuildError::invalid("metrics", "there is nothing to score").hint("Name at least one column."));
        }
        let mut found = Vec::new();
        for name in &self.metrics {
            let column = columns::find_typed(input, "metrics", name, "a number", |kind| {
                matches!(
                    kind,
                    DataType::Int16 | DataType::Int32 | DataType::Int64 | DataType::Float32 | DataType::Float64
                )
            })?;
            if found.contains(&column) {
                return Err(BuildError::invalid("metrics", format!("\"{name}\" is named twice")));
            }
            found.push(column);
        }
        Ok(found)
    }

    fn threshold(&self) -> f64 {
        self.threshold.unwrap_or(if self.method() == MethodName::Auto { 3.0 } else { 4.0 })
    }

    fn rules(&self) -> Result<Rules, BuildError> {
        let threshold = self.threshold();
        if !(threshold.is_finite() && threshold > 0.0) {
            return Err(BuildError::invalid("threshold", "a threshold is a number above zero"));
        }
        let critical = self.critical.unwrap_or(if self.method() == MethodName::Auto { 4.5 } else { 6.0 });
        let is_ordered = critical >= threshold; // false for NaN as well
        if !is_ordered {
            let text = format!("{critical} is not at or above the threshold, {threshold}");
            return Err(BuildError::invalid("critical", text));
        }
        let relearn_after = self.relearn_after.unwrap_or(RELEARN_AFTER);
        if relearn_after == 0 {
            return Err(BuildError::invalid("relearn_after", "no reading could be flagged"));
        }
        Ok(Rules {
            threshold,
            critical,
            episodes: self.episodes()?,
            relearn_after: (!self.learn_from_anomalies.unwrap_or(false)).then_some(relearn_after),
            late_max: self.warmup.unwrap_or(WARMUP).min(self.window.unwrap_or(WINDOW)),
        })
    }

    fn episodes(&self) -> Result<Option<Episodes>, BuildError> {
        if self.method() == MethodName::Zscore && self.leave.is_none() && self.cooldown.is_none() {
            return Ok(None);
        }
        let leave = self.leave.unwrap_or(self.threshold() / 2.0);
        let is_below = leave > 0.0 && leave <= self.threshold(); // false for NaN as well
        if !is_below {
            let text = format!("{leave} is not above zero and at most the threshold, {}", self.threshold());
            return Err(BuildError::invalid("leave", text));
        }
        let cooldown_us = self.cooldown.map_or(Ok(0), |text| micros("cooldown", text.0))?;
        Ok(Some(Episodes { leave, cooldown_us }))
    }

    /// What the file says of each metric.
    fn limits(&self) -> Result<Vec<Limits>, BuildError> {
        let none = BTreeMap::new();
        let rate_max = self.rate_max.as_ref().unwrap_or(&none);
        let flat_tolerance = self.flat_tolerance.as_ref().unwrap_or(&none);
        let min_stddev = self.min_stddev.as_ref().unwrap_or(&none);
        let spread_min_relative = self.min_stddev_relative.unwrap_or(MIN_STDDEV_RELATIVE);
        self.check_metrics("min_stddev", min_stddev, "a least standard deviation", f64::MIN_POSITIVE)?;
        self.check_metrics("rate_max", rate_max, "a fastest change", f64::MIN_POSITIVE)?;
        self.check_metrics("flat_tolerance", flat_tolerance, "a tolerance", 0.0)?;
        if !(0.0..=1.0).contains(&spread_min_relative) {
            return Err(BuildError::invalid("min_stddev_relative", "a part of the mean is between 0 and 1"));
        }
        let limits = |name| {
            let spread_min = min_stddev.get(name).copied();
            Limits {
                spread_min: spread_min.unwrap_or(0.0),
                spread_min_relative: if spread_min.is_some() { 0.0 } else { spread_min_relative },
                rate_max: rate_max.get(name).copied(),
                flat_tolerance: flat_tolerance.get(name).copied().unwrap_or(0.0),
            }
        };
        Ok(self.metrics.iter().map(limits).collect())
    }

    /// Each number belongs to a metric, and is finite and not below `least`.
    fn check_metrics(
        &self,
        key: &str,
        numbers: &BTreeMap<String, f64>,
        what: &str,
        least: f64,
    ) -> Result<(), BuildError> {
        for (name, number) in numbers {
            let key = format!("{key}.{name}");
            if !self.metrics.contains(name) {
                let known = self.metrics.iter().map(String::as_str);
                return Err(BuildError::invalid(key, format!("\"{name}\" is not one of the metrics"))
                    .hint(suggest(name, known, "Metrics", "")));
            }
            if !(number.is_finite() && *number >= least) {
                let bound = if least > 0.0 { "above zero" } else { "and not below zero" };
                return Err(BuildError::invalid(key, format!("{what} is a number {bound}")));
            }
        }
        Ok(())
    }

    /// The input's columns, then a score for each metric, then the flag.
    fn main_schema(&self, input: &Schema) -> Result<SchemaRef, BuildError> {
        let mut fields = input.fields().to_vec();
        let scores = self.metrics.iter().map(|name| {
            let name = format!("{name}_{}", self.suffix);
            ("metrics", Field::new(name, DataType::Float64, true))
        });
        let flag = ("column", Field::new(&self.column, DataType::Boolean, false));
        for (key, field) in scores.chain([flag]) {
            if fields.iter().any(|other| other.name() == field.name()) {
                let hint =
                    format!("The stage adds a column NAME_{} for each metric, and one named by `column`.", self.suffix);
                return Err(
                    BuildError::invalid(key, format!("there is a column \"{}\" already", field.name())).hint(hint)
                );
            }
            fields.push(Arc::new(field));
        }
        Ok(Arc::new(Schema::new(fields)))
    }

    fn anomalies_schema(&self, time: &Field) -> Result<SchemaRef, BuildError> {
        let fields = vec![
            Field::new("detected_at", timestamp_type(), false),
            Field::new(&self.key, DataType::Utf8, false),
            Field::new("event_time", timestamp_type(), time.is_nullable()),
            Field::new("metric", DataType::Utf8, false),
            Field::new("value", DataType::Float64, false),
            Field::new("mean", DataType::Float64, false),
            Field::new("stddev", DataType::Float64, false),
            Field::new("zscore", DataType::Float64, false),
            Field::new("severity", DataType::Utf8, false),
            Field::new("window_size", DataType::Int32, false),
            Field::new("method", DataType::Utf8, false),
            Field::new("pipeline", DataType::Utf8, false),
        ];
        if fields.iter().filter(|field| *field.name() == self.key).count() > 1 {
            return Err(BuildError::invalid("key", format!("anomalies have a column \"{}\" of their own", self.key)));
        }
        Ok(Arc::new(Schema::new(fields)))
    }
}

fn word(method: MethodName) -> &'static str {
    match method {
        MethodName::Auto => Auto::WORD,
        MethodName::Zscore => Zscore::WORD,
        MethodName::Ewma => Ewma::WORD,
        MethodName::Robust => Robust::WORD,
        MethodName::Seasonal => Seasonal::WORD,
        MethodName::Rate => Rate::WORD,
        MethodName::Flatline => Flatline::WORD,
    }
}

fn micros(key: &'static str, duration: std::time::Duration) -> Result<i64, BuildError> {
    i64::try_from(duration.as_micros())
        .map_err(|_| BuildError::invalid(key, "the duration is longer than any two times are apart"))
}
