//! How many messages the broker lets be unacknowledged, where it does not tell: seen by where it stops.

/// So often in a row a broker has stopped at the same number before that is taken for its ceiling.
const STOPS: u32 = 4;
/// Brokers allow at least so many; and fewer messages come together by chance.
const UNACKED_MIN: usize = 8;

/// The ceiling of one connection, as far as it is known. A wrong guess costs a sync that could have waited for a few messages more, and
/// is given up as soon as the broker sends more.
#[derive(Debug, Default)]
pub(super) struct Ceiling {
    /// Where it was when messages were acknowledged last, and how often in a row.
    stopped_at: usize,
    times: u32,
}

impl Ceiling {
    /// Messages are acknowledged, and so many were unacknowledged until then: with a broker that waits for us, the same number again
    /// and again.
    pub(super) fn note(&mut self, unacked: usize) {
        if unacked == self.stopped_at {
            self.times = self.times.saturating_add(1);
        } else {
            *self = Self { stopped_at: unacked, times: 1 };
        }
    }

    /// Whether the broker sends nothing more until something is acknowledged: then nothing is gained by waiting for more.
    pub(super) fn is_reached(&self, unacked: usize) -> bool {
        self.times >= STOPS && self.stopped_at >= UNACKED_MIN && unacked >= self.stopped_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(stops: &[usize]) -> Ceiling {
        let mut ceiling = Ceiling::default();
        stops.iter().for_each(|unacked| ceiling.note(*unacked));
        ceiling
    }

    #[test]
    fn a_broker_that_stops_at_the_same_number_again_and_again_is_not_waited_for_there() {
        let ceiling = after(&[3, 20, 20, 20, 20]);
        assert!(!ceiling.is_reached(19) && ceiling.is_reached(20));
        assert!(!after(&[20, 20, 20]).is_reached(20), "not known yet");
        assert!(!after(&[20, 20, 20, 20, 21]).is_reached(20), "it has sent more");
        assert!(!after(&[20, 20, 13, 20, 20]).is_reached(20), "it had not stopped there");
    }

    #[test]
    fn a_few_messages_that_come_together_are_no_ceiling() {
        assert!(!after(&[2; 100]).is_reached(2));
        assert!(!Ceiling::default().is_reached(0));
    }
}
