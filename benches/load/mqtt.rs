//! MQTT with nothing around it: a publisher and a subscriber at QoS 1 over a blocking socket. What a broker can do at
//! best is measured with these, not with a client that does more.
//!
//! The subscriber speaks version 5, for its Receive Maximum; the publisher 3.1.1, which has none that a broker could hold
//! it to.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

const CONNECT: u8 = 0x10;
const PUBLISH_QOS_1: u8 = 0x32;
const SUBSCRIBE: u8 = 0x82;
const DISCONNECT: u8 = 0xe0;
/// Messages that a publisher has out before it waits for acknowledgements.
const WINDOW: usize = 1_000;

/// A connection, and what has been read of it and not been looked at.
pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
    start: usize,
}

impl Connection {
    /// `keeps` sessions outlive their connection.
    pub fn open(broker: &str, client_id: &str, keeps: bool) -> Self {
        let stream = TcpStream::connect(broker).expect("the broker");
        stream.set_nodelay(true).expect("a socket");
        let mut body = string("MQTT");
        // Version 5; clean start unless the session is to go on.
        body.extend([5, if keeps { 0 } else { 2 }, 0, 0]);
        let mut properties = vec![0x21];
        properties.extend(u16::MAX.to_be_bytes());
        if keeps {
            properties.push(0x11);
            properties.extend(3_600_u32.to_be_bytes());
        }
        body.push(properties.len() as u8);
        body.extend(properties);
        body.extend(string(client_id));
        Self::begin(stream, &body)
    }

    /// A connection that only publishes.
    fn publisher(broker: &str, client_id: &str) -> Self {
        let stream = TcpStream::connect(broker).expect("the broker");
        stream.set_nodelay(true).expect("a socket");
        let mut body = string("MQTT");
        body.extend([4, 2, 0, 0]);
        body.extend(string(client_id));
        Self::begin(stream, &body)
    }

    fn begin(stream: TcpStream, connect: &[u8]) -> Self {
        let mut connection = Self { stream, buffer: Vec::new(), start: 0 };
        connection.send(CONNECT, connect);
        let (kind, answer) = connection.next().expect("an answer");
        assert!(kind == 0x20 && answer[1] == 0, "the broker refuses: {answer:?}");
        connection
    }

    pub fn subscribe(&mut self, topic: &str) {
        let mut body = vec![0, 1, 0];
        body.extend(string(topic));
        body.push(1);
        self.send(SUBSCRIBE, &body);
        let (kind, answer) = self.next().expect("an answer");
        assert!(kind == 0x90 && *answer.last().expect("a code") <= 2, "no subscription: {answer:?}");
    }

    pub fn close(mut self) {
        self.send(DISCONNECT, &[]);
    }

    /// How long a read waits at most.
    pub fn set_patience(&self, time: Option<Duration>) {
        self.stream.set_read_timeout(time).expect("a socket");
    }

    fn send(&mut self, kind: u8, body: &[u8]) {
        let mut packet = vec![kind];
        push_length(&mut packet, body.len());
        packet.extend(body);
        self.stream.write_all(&packet).expect("the broker reads");
    }

    /// The next packet; `None` where nothing came in time.
    pub fn next(&mut self) -> Option<(u8, Vec<u8>)> {
        loop {
            if let Some((kind, from, to)) = self.peek() {
                let body = self.buffer[from..to].to_vec();
                self.start = to;
                return Some((kind, body));
            }
            if !self.fill() {
                return None;
            }
        }
    }

    fn next_acknowledgement(&mut self) {
        let (kind, _) = self.next().expect("an acknowledgement");
        assert!(kind == 0x40, "the broker answers a message with {kind:#x}");
    }

    /// Whether a whole packet is there already: its type and where its body lies.
    fn peek(&self) -> Option<(u8, usize, usize)> {
        let rest = &self.buffer[self.start..];
        let kind = *rest.first()?;
        let (mut length, mut shift, mut at) = (0_usize, 0, 1);
        loop {
            let byte = *rest.get(at)?;
            length |= usize::from(byte & 0x7f) << shift;
            at += 1;
            if byte & 0x80 == 0 {
                break;
            }
            shift += 7;
        }
        (rest.len() >= at + length).then_some((kind, self.start + at, self.start + at + length))
    }

    /// Reads what is there; false where nothing came in time.
    fn fill(&mut self) -> bool {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        let mut chunk = [0; 64 * 1024];
        match self.stream.read(&mut chunk) {
            Ok(0) => panic!("the broker has closed the connection"),
            Ok(read) => {
                self.buffer.extend_from_slice(&chunk[..read]);
                true
            }
            Err(error) if [std::io::ErrorKind::WouldBlock, std::io::ErrorKind::TimedOut].contains(&error.kind()) => {
                false
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// Reads what is there, hands each payload out, and gives the packet ids to acknowledge. Nothing where nothing came
    /// in time.
    pub fn receive(&mut self, mut payload: impl FnMut(&[u8])) -> Vec<[u8; 2]> {
        let mut ids = Vec::new();
        if self.peek().is_none() && !self.fill() {
            return ids;
        }
        while let Some((kind, from, to)) = self.peek() {
            if kind & 0xf0 == 0x30 {
                let body = &self.buffer[from..to];
                let topic = usize::from(u16::from_be_bytes([body[0], body[1]]));
                let mut at = 2 + topic;
                if kind & 0x06 != 0 {
                    ids.push([body[at], body[at + 1]]);
                    at += 2;
                }
                // Properties, of which a broker sends none of a length beyond one byte here.
                at += 1 + usize::from(body[at]);
                payload(&body[at..]);
            }
            self.start = to;
        }
        ids
    }

    pub fn acknowledge(&mut self, ids: &[[u8; 2]]) {
        let packets: Vec<u8> = ids.iter().flat_map(|id| [0x40, 2, id[0], id[1]]).collect();
        self.stream.write_all(&packets).expect("the broker reads");
    }
}

/// Publishes messages as fast as the broker acknowledges them; returns when all are acknowledged.
pub fn publish(broker: &str, client_id: &str, topic: &str, messages: impl Iterator<Item = String>) {
    let mut connection = Connection::publisher(broker, client_id);
    let (mut out, mut packets) = (0, Vec::with_capacity(256 * 1024));
    for (id, message) in ids().zip(messages) {
        push_message(&mut packets, topic, id, &message);
        out += 1;
        if out == WINDOW {
            connection.stream.write_all(&packets).expect("the broker reads");
            packets.clear();
            // Half of it stays out, so that the broker never waits for us.
            while out > WINDOW / 2 {
                connection.next_acknowledgement();
                out -= 1;
            }
        }
    }
    connection.stream.write_all(&packets).expect("the broker reads");
    for _ in 0..out {
        connection.next_acknowledgement();
    }
    connection.close();
}

/// Publishes so many messages, each as soon as it is there; returns when all are acknowledged.
pub fn publish_each(broker: &str, client_id: &str, topic: &str, count: u64, messages: impl Iterator<Item = String>) {
    let connection = Connection::publisher(broker, client_id);
    let mut out = connection.stream.try_clone().expect("a socket");
    let reading = std::thread::spawn(move || {
        let mut connection = connection;
        (0..count).for_each(|_| connection.next_acknowledgement());
        connection.close();
    });
    let mut packet = Vec::new();
    for (id, message) in ids().zip(messages) {
        packet.clear();
        push_message(&mut packet, topic, id, &message);
        out.write_all(&packet).expect("the broker reads");
    }
    reading.join().expect("no panic");
}

/// Packet ids, of which 0 is none.
fn ids() -> impl Iterator<Item = u16> {
    (1..=u16::MAX).cycle()
}

fn push_message(packets: &mut Vec<u8>, topic: &str, id: u16, message: &str) {
    packets.push(PUBLISH_QOS_1);
    push_length(packets, 2 + topic.len() + 2 + message.len());
    packets.extend(string(topic));
    packets.extend(id.to_be_bytes());
    packets.extend(message.as_bytes());
}

fn string(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u16).to_be_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

fn push_length(packet: &mut Vec<u8>, mut length: usize) {
    loop {
        let byte = (length & 0x7f) as u8;
        length >>= 7;
        if length == 0 {
            packet.push(byte);
            return;
        }
        packet.push(byte | 0x80);
    }
}
