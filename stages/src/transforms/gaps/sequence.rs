//! The numbers of one device: the newest, and the gaps behind it that may still be filled.

/// A run of numbers that did not come, and the times of the rows around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gap {
    pub first: i64,
    pub last: i64,
    pub before_us: Option<i64>,
    pub after_us: Option<i64>,
}

/// When a number is missing, and when a device has restarted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    pub window: u32,
    pub reset_after: u32,
}

/// What is known of one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sequence {
    /// The lowest: of those below nothing is known.
    pub first: i64,
    pub newest: i64,
    pub newest_us: Option<i64>,
    /// How many rows in a row were too far behind to say anything.
    pub overdue: u32,
    /// In order. The last number of each is within the window, so there are few.
    pub awaited: Vec<Gap>,
}

/// What a number is to its device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arrival {
    /// Above all others.
    Newest,
    /// In its place, behind the newest.
    Late,
    /// There before.
    Repeated,
    /// Behind the window, or below the first.
    Overdue,
    /// The first after a restart.
    Reset,
}

impl Gap {
    /// How many numbers, at most as many as a column can say.
    pub(super) fn count(&self) -> i64 {
        self.last.abs_diff(self.first).checked_add(1).and_then(|count| i64::try_from(count).ok()).unwrap_or(i64::MAX)
    }
}

impl Sequence {
    /// A device whose first number this is.
    pub(super) fn starting(number: i64, time_us: Option<i64>) -> Self {
        Self { first: number, newest: number, newest_us: time_us, overdue: 0, awaited: Vec::new() }
    }

    /// Takes in a number; gaps that are settled by it are given to `settled`, in order.
    pub(super) fn observe(
        &mut self,
        number: i64,
        time_us: Option<i64>,
        rules: Rules,
        mut settled: impl FnMut(Gap),
    ) -> Arrival {
        let arrival = if number > self.newest {
            if number.abs_diff(self.newest) > 1 {
                let (first, last) = (self.newest + 1, number - 1);
                self.awaited.push(Gap { first, last, before_us: self.newest_us, after_us: time_us });
            }
            (self.newest, self.newest_us) = (number, time_us);
            Arrival::Newest
        } else if number >= self.first && self.newest.abs_diff(number) <= rules.window.into() {
            if self.fill(number, time_us) { Arrival::Late } else { Arrival::Repeated }
        } else {
            self.overdue += 1;
            let is_newer = matches!((time_us, self.newest_us), (Some(time), Some(newest)) if time > newest);
            if !is_newer && self.overdue < rules.reset_after {
                return Arrival::Overdue;
            }
            self.awaited.drain(..).for_each(settled);
            *self = Self::starting(number, time_us);
            return Arrival::Reset;
        };
        self.overdue = 0;
        let is_settled = |gap: &Gap| self.newest.abs_diff(gap.last) > rules.window.into();
        let count = self.awaited.iter().take_while(|gap| is_settled(gap)).count();
        self.awaited.drain(..count).for_each(&mut settled);
        arrival
    }

    /// Takes a number out of the gap that it is in, if it is in one.
    fn fill(&mut self, number: i64, time_us: Option<i64>) -> bool {
        let index = self.awaited.partition_point(|gap| gap.last < number);
        let Some(gap) = self.awaited.get(index).copied().filter(|gap| gap.first <= number) else { return false };
        let below = (gap.first < number).then(|| Gap { last: number - 1, after_us: time_us, ..gap });
        let above = (number < gap.last).then(|| Gap { first: number + 1, before_us: time_us, ..gap });
        self.awaited.splice(index..=index, below.into_iter().chain(above));
        true
    }
}
