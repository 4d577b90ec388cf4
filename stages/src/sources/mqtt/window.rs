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

    /// Notes a message that has arrived as the `ticket`th. False if the broker has sent it again
    /// although we still hold it (a 3.1.1 broker may): it is to be ignored.
    #[must_use]
    pub(super) fn note(&mut self, ticket: u64, receipt: Receipt) -> bool {
        let (word, bit) = place(receipt);
        let held = self.held[word] & bit != 0;
        if !held {
            self.held[word] |= bit;
            self.unacked.push_back((ticket, receipt));
        }
        !held
    }

    /// Hands out the receipts of all messages up to `delivered`, in the order of arrival, which is the
    /// order that MQTT demands (4.6.0-2) and no library keeps for us.
    pub(super) fn release(&mut self, delivered: u64, mut acknowledge: impl FnMut(Receipt)) {
        while let Some((_, receipt)) = self.unacked.pop_front_if(|(ticket, _)| *ticket <= delivered) {
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

    fn release(window: &mut AckWindow, delivered: u64) -> Vec<u16> {
        let mut ids = Vec::new();
        window.release(delivered, |receipt| ids.push(receipt.packet_id));
        ids
    }

    #[test]
    fn receipts_leave_in_the_order_of_arrival_whatever_their_numbers() {
        let mut window = AckWindow::new();
        for (ticket, id) in [(1, 65_535), (2, 7), (4, 1), (5, 64)] {
            assert!(window.note(ticket, receipt(id)));
        }
        assert!(release(&mut window, 0).is_empty());
        // Ticket 3 had QoS 0: it owes nothing.
        assert_eq!(release(&mut window, 3), [65_535, 7]);
        assert_eq!(window.unacked(), 2);
        assert_eq!(release(&mut window, 100), [1, 64]);
        assert_eq!(window.unacked(), 0);
    }

    #[test]
    fn a_message_that_is_held_and_comes_again_is_ignored() {
        let mut window = AckWindow::new();
        assert!(window.note(1, receipt(7)));
        assert!(!window.note(2, receipt(7)));
        assert_eq!(release(&mut window, 2), [7], "one message, one acknowledgement");
        assert!(window.note(3, receipt(7)), "acknowledged: the number is free for another message");
    }
}
