//! What one connection still owes the broker: receipts in the order in which messages arrived.

use std::collections::VecDeque;

use crate::mqtt_client::Receipt;

/// The unacknowledged messages of one connection. Made anew for each connection and dropped with it,
/// so that no receipt can be handed in on another one.
pub(super) struct AckWindow {
    unacked: VecDeque<(u64, Receipt)>,
    /// A bit for each packet id that is in `unacked`.
    held: Box<[u64; 1024]>,
}

impl AckWindow {
    pub(super) fn new() -> Self {
        Self { unacked: VecDeque::new(), held: Box::new([0; 1024]) }
    }

    /// Whether a message of that number is not acknowledged yet. The broker has sent it again then (a
    /// 3.1.1 broker may): it is to be ignored.
    pub(super) fn holds(&self, receipt: Receipt) -> bool {
        let (word, bit) = place(receipt);
        self.held[word] & bit != 0
    }

    /// Notes a message that has arrived and is not held yet, and its number in the spool.
    pub(super) fn note(&mut self, lsn: u64, receipt: Receipt) {
        let (word, bit) = place(receipt);
        self.held[word] |= bit;
        self.unacked.push_back((lsn, receipt));
    }

    /// Hands out the receipts of all messages up to the last durable one, in the order of arrival, which
    /// is the order that MQTT demands (4.6.0-2) and no library keeps for us.
    pub(super) fn release(&mut self, durable_lsn: u64, mut acknowledge: impl FnMut(Receipt)) {
        while let Some((_, receipt)) = self.unacked.pop_front_if(|(lsn, _)| *lsn <= durable_lsn) {
            let (word, bit) = place(receipt);
            self.held[word] &= !bit;
            acknowledge(receipt);
        }
    }

    /// How many messages are not acknowledged yet.
    pub(super) fn unacked(&self) -> usize {
        self.unacked.len()
    }
}

fn place(receipt: Receipt) -> (usize, u64) {
    (usize::from(receipt.packet_id / 64), 1 << (receipt.packet_id % 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receipt(packet_id: u16) -> Receipt {
        Receipt { packet_id, exactly_once: false }
    }

    fn release(window: &mut AckWindow, durable_lsn: u64) -> Vec<u16> {
        let mut ids = Vec::new();
        window.release(durable_lsn, |receipt| ids.push(receipt.packet_id));
        ids
    }

    #[test]
    fn receipts_leave_in_the_order_of_arrival_whatever_their_numbers() {
        let mut window = AckWindow::new();
        for (lsn, id) in [(1, 65_535), (2, 7), (4, 1), (5, 64)] {
            window.note(lsn, receipt(id));
        }
        assert!(release(&mut window, 0).is_empty());
        // Number 3 had QoS 0: it owes nothing.
        assert_eq!(release(&mut window, 3), [65_535, 7]);
        assert_eq!(window.unacked(), 2);
        assert_eq!(release(&mut window, 100), [1, 64]);
        assert_eq!(window.unacked(), 0);
    }

    #[test]
    fn a_repetition_waits_for_those_that_arrived_before_it() {
        let mut window = AckWindow::new();
        window.note(9, receipt(3));
        // Sent again: it is in the spool as number 5.
        window.note(5, receipt(4));
        assert!(release(&mut window, 5).is_empty());
        assert_eq!(release(&mut window, 9), [3, 4]);
    }

    #[test]
    fn a_message_is_held_until_it_is_acknowledged() {
        let mut window = AckWindow::new();
        assert!(!window.holds(receipt(7)));
        window.note(1, receipt(7));
        assert!(window.holds(receipt(7)));
        assert_eq!(release(&mut window, 1), [7]);
        assert!(!window.holds(receipt(7)), "the number is free for another message");
    }
}
