//! Acknowledgements of QoS 1 that leave without the library.
//!
//! To the library each one is a request: a place in its queue, a turn of its loop, an event. That cost more than
//! to decode the message (benches/README.md). What goes out is four bytes, the same in both versions of the protocol, and nothing waits
//! for an answer. So they are written straight into what the socket writes next, whole packets between whole packets. Where
//! TLS lies between the library and the socket there is no such place, and the library writes them.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::{BufMut, BytesMut};

/// PUBACK: its type, and how long the rest is. MQTT 5 takes a missing reason for success.
const PUBACK: [u8; 2] = [0x40, 2];

/// What is to be acknowledged on the connection that there is now. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(super) struct DirectAcks(Arc<Mutex<BytesMut>>);

impl DirectAcks {
    /// Acknowledges a message of this connection, with what the socket writes next.
    pub(super) fn push(&self, packet_id: u16) {
        let mut packets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        packets.put_slice(&PUBACK);
        packets.put_u16(packet_id);
    }

    /// Another connection: what was owed on the one before is owed no more, and its numbers mean other messages.
    pub(super) fn forget(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Moves all packets behind others, whole ones.
    pub(super) fn append_to(&self, packets: &mut BytesMut) {
        let mut acks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        packets.extend_from_slice(&acks);
        acks.clear();
    }
}
