//! The open windows of one device, and which of them a row belongs to.

use std::collections::VecDeque;

use pipeline_engine::stage::StageError;

use super::column::{ColumnState, Needs, Values};
use crate::transforms::followed::Placed;
use crate::transforms::snapshot::{Reader, Writer};

/// How time is cut, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// Windows of `size`, one beginning each `every` since 1970: without overlap where the two are equal.
    Fixed { size: i64, every: i64 },
    /// Windows that end where a device was silent for `gap`.
    Session { gap: i64 },
}

impl Shape {
    /// How far apart windows end.
    pub(super) fn step(self) -> i64 {
        match self {
            Self::Fixed { every, .. } => every,
            Self::Session { gap } => gap,
        }
    }
}

/// A stretch of time and what was seen in it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Window {
    /// In microseconds since 1970.
    pub(super) start: i64,
    /// The first moment that is no longer in it.
    pub(super) end: i64,
    pub(super) rows: u64,
    /// One for each column that is aggregated.
    pub(super) columns: Box<[ColumnState]>,
}

/// The columns that are aggregated, in one batch.
pub(super) struct Columns<'a> {
    pub(super) values: Vec<Values<'a>>,
    pub(super) needs: &'a [Needs],
}

impl Window {
    fn new(start: i64, end: i64, columns: usize) -> Self {
        Self { start, end, rows: 0, columns: vec![ColumnState::default(); columns].into() }
    }

    fn add(&mut self, time_us: i64, row: usize, columns: &Columns<'_>) {
        self.rows += 1;
        for ((state, values), needs) in self.columns.iter_mut().zip(&columns.values).zip(columns.needs) {
            if let Some(value) = values.get(row) {
                state.add(*needs, time_us, &value);
            }
        }
    }

    fn merge(&mut self, later: Self) {
        self.end = self.end.max(later.end);
        self.rows += later.rows;
        for (state, later) in self.columns.iter_mut().zip(later.columns) {
            state.merge(later);
        }
    }

    fn write(&self, writer: &mut Writer) {
        writer.i64(self.start);
        writer.i64(self.end);
        writer.u64(self.rows);
        self.columns.iter().for_each(|column| column.write(writer));
    }

    fn read(reader: &mut Reader<'_>, columns: usize) -> Result<Self, StageError> {
        Ok(Self {
            start: reader.i64()?,
            end: reader.i64()?,
            rows: reader.u64()?,
            columns: (0..columns).map(|_| ColumnState::read(reader)).collect::<Result<_, _>>()?,
        })
    }
}

/// A device's open windows, in order of time.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Windows {
    open: VecDeque<Window>,
    /// Windows that end here or before are closed.
    closed_us: i64,
    /// The newest time of the device's rows.
    pub(super) newest_us: i64,
    /// Where its rows last came from.
    partition: usize,
}

impl Placed for Windows {
    fn partition(&self) -> usize {
        self.partition
    }

    fn set_partition(&mut self, partition: usize) {
        self.partition = partition;
    }

    fn newest_us(&self) -> i64 {
        self.newest_us
    }
}

impl Windows {
    /// Of a device that was not seen before, or was forgotten.
    pub(super) fn starting(partition: usize, newest_us: i64, closed_us: i64) -> Self {
        Self { open: VecDeque::new(), closed_us, newest_us, partition }
    }

    /// Takes a row in; false if all its windows are closed.
    pub(super) fn add(&mut self, shape: Shape, time_us: i64, row: usize, columns: &Columns<'_>) -> bool {
        match shape {
            Shape::Fixed { size, every } => self.add_fixed(size, every, time_us, row, columns),
            Shape::Session { gap } => self.add_to_session(gap, time_us, row, columns),
        }
    }

    fn add_fixed(&mut self, size: i64, every: i64, time_us: i64, row: usize, columns: &Columns<'_>) -> bool {
        let last = time_us.div_euclid(every) * every;
        let mut start = last - (size - 1).div_euclid(every) * every;
        // Where windows leave gaps there may be none, and with a size that is no multiple the first may have ended.
        if start + size <= time_us {
            start += every;
        }
        let mut is_in_one = false;
        while start <= last {
            if start + size > self.closed_us {
                self.window(start, start + size, columns.needs.len()).add(time_us, row, columns);
                is_in_one = true;
            }
            start += every;
        }
        is_in_one
    }

    /// The window from `start` on, opened if need be. Most rows are in the newest.
    fn window(&mut self, start: i64, end: i64, columns: usize) -> &mut Window {
        let mut at = self.open.len();
        while at > 0 && self.open[at - 1].start > start {
            at -= 1;
        }
        if at == 0 || self.open[at - 1].start != start {
            self.open.insert(at, Window::new(start, end, columns));
            at += 1;
        }
        &mut self.open[at - 1]
    }

    fn add_to_session(&mut self, gap: i64, time_us: i64, row: usize, columns: &Columns<'_>) -> bool {
        let end = time_us.saturating_add(gap);
        if end <= self.closed_us {
            return false;
        }
        // Sessions that begin within the gap after the row, or were not over when it came.
        let from = self.open.iter().position(|window| window.end > time_us).unwrap_or(self.open.len());
        let until = self.open.iter().position(|window| window.start >= end).unwrap_or(self.open.len());
        if from == until {
            self.open.insert(from, Window::new(time_us, end, columns.needs.len()));
        }
        let window = &mut self.open[from];
        window.start = window.start.min(time_us);
        window.end = window.end.max(end);
        window.add(time_us, row, columns);
        for _ in from + 1..until {
            if let Some(later) = self.open.remove(from + 1) {
                self.open[from].merge(later);
            }
        }
        true
    }

    /// Takes out the windows that end at the watermark or before. Rows for them come too late from now on.
    pub(super) fn close(&mut self, watermark_us: i64, mut take: impl FnMut(Window)) {
        if watermark_us <= self.closed_us {
            return;
        }
        self.closed_us = watermark_us;
        while self.open.front().is_some_and(|window| window.end <= watermark_us)
            && let Some(window) = self.open.pop_front()
        {
            take(window);
        }
    }

    pub(super) fn write(&self, writer: &mut Writer) {
        writer.i64(self.closed_us);
        writer.i64(self.newest_us);
        writer.u32(self.partition as u32);
        writer.u32(self.open.len() as u32);
        self.open.iter().for_each(|window| window.write(writer));
    }

    pub(super) fn read(reader: &mut Reader<'_>, columns: usize) -> Result<Self, StageError> {
        let (closed_us, newest_us) = (reader.i64()?, reader.i64()?);
        let mut windows = Self::starting(reader.u32()? as usize, newest_us, closed_us);
        for _ in 0..reader.u32()? {
            windows.open.push_back(Window::read(reader, columns)?);
        }
        Ok(windows)
    }
}
