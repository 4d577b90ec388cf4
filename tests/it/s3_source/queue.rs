//! Objects by the notifications of a queue: repeated, out of order, and deleted only when their objects are stored.
//!
//! The queue is moto's, spoken to by the SDK: no queue of AWS has been seen.

use aws_sdk_sqs::Client;
use aws_sdk_sqs::types::QueueAttributeName;
use rand::seq::SliceRandom;
use serde_json::json;

use super::*;

/// A queue of a test's own, with what messages look like in it.
struct Queue {
    client: Client,
    url: String,
    endpoint: String,
}

impl Queue {
    fn new(house: &House) -> Self {
        let endpoint = services::variable("aws", "TEST_AWS_ENDPOINT");
        let credentials = aws_sdk_sqs::config::Credentials::new("test", "test", None, None, "test");
        let config = aws_sdk_sqs::Config::builder()
            .behavior_version(aws_sdk_sqs::config::BehaviorVersion::latest())
            .region(aws_sdk_sqs::config::Region::new("us-east-1"))
            .credentials_provider(credentials)
            .endpoint_url(&endpoint)
            .build();
        let client = Client::from_conf(config);
        let name = services::unique("objects");
        let made = house.runtime.block_on(client.create_queue().queue_name(name).send()).expect("a queue");
        Self { client, url: made.queue_url.expect("a URL"), endpoint }
    }

    fn send(&self, house: &House, body: &str) {
        let sent = self.client.send_message().queue_url(&self.url).message_body(body).send();
        house.runtime.block_on(sent).expect("it is sent");
    }

    /// Sends messages again and again, every three seconds, until it is done.
    fn send_until(&self, house: &House, messages: &[String], what: &str, done: impl Fn() -> bool) {
        let mut sent_at = None::<std::time::Instant>;
        wait_until(what, || {
            if sent_at.is_none_or(|at| at.elapsed() > Duration::from_secs(3)) {
                messages.iter().for_each(|message| self.send(house, message));
                sent_at = Some(std::time::Instant::now());
            }
            done().then_some(())
        });
    }

    /// Messages that wait, and those that are handed out and not deleted.
    fn messages(&self, house: &House) -> (u64, u64) {
        let names = [
            QueueAttributeName::ApproximateNumberOfMessages,
            QueueAttributeName::ApproximateNumberOfMessagesNotVisible,
        ];
        let asked = self.client.get_queue_attributes().queue_url(&self.url).set_attribute_names(Some(names.to_vec()));
        let attributes = house.runtime.block_on(asked.send()).expect("an answer").attributes.expect("attributes");
        let [waiting, hidden] = names.map(|name| attributes[&name].parse().expect("a number"));
        (waiting, hidden)
    }

    fn source(&self) -> String {
        format!("format = \"jsonl\"\nqueue = {:?}\nqueue_endpoint = {:?}\n", self.url, self.endpoint)
    }
}

/// A notification by S3 itself, through SNS, or by EventBridge.
fn notification(house: &House, key: &str, shape: u32) -> String {
    let event = json!({ "Records": [{
        "eventSource": "aws:s3", "eventName": "ObjectCreated:Put",
        "s3": { "bucket": { "name": house.bucket }, "object": { "key": key.replace(' ', "+"), "sequencer": "0A" } },
    }] });
    match shape % 3 {
        0 => event.to_string(),
        1 => json!({ "Type": "Notification", "Message": event.to_string() }).to_string(),
        _ => json!({
            "source": "aws.s3", "detail-type": "Object Created",
            "detail": { "bucket": { "name": house.bucket }, "object": { "key": key } },
        })
        .to_string(),
    }
}

#[test]
fn notifications_that_come_twice_and_out_of_order_bring_each_object_once() {
    let house = House::new();
    let queue = Queue::new(&house);
    let seed = rand::random();
    println!("seed {seed}");
    let mut chance = Pcg64Mcg::seed_from_u64(seed);
    let mut messages = Vec::new();
    let objects = 40;
    for n in 0..objects {
        let key = format!("in/part {n}.jsonl");
        house.put(&key, lines(n * 100..n * 100 + 100));
        for _ in 0..chance.random_range(1..4) {
            messages.push(notification(&house, &key, chance.random_range(0..3)));
        }
    }
    // What is none of ours, what tells of nothing, and what is no notification.
    messages.push(notification(&house, "other/a", 0));
    messages.push(notification(&house, "in/gone", 0));
    messages.push(json!({ "Service": "Amazon S3", "Event": "s3:TestEvent" }).to_string());
    messages.push("hello".to_owned());
    messages.shuffle(&mut chance);
    let file = house.file(&queue.source());
    let arguments = ["run", file.to_str().expect("text")];
    let total = objects * 100;
    let stored = || {
        let exists = house.query("SELECT to_regclass('readings') IS NOT NULL", |row| row.get::<_, bool>(0));
        if exists == [true] { house.query("SELECT count(*) FROM readings", |row| row.get::<_, i64>(0))[0] } else { 0 }
    };
    let half = messages.len() / 2;
    messages[..half].iter().for_each(|message| queue.send(&house, message));
    let mut pipeline = house.start(&arguments, "first");
    wait_until("some objects to be stored", || (stored() > 0).then_some(()));
    pipeline.kill();
    let pipeline = house.start(&arguments, "second");
    // What the first run has taken with it is handed out again after two minutes, and so is what comes while its last question
    // is still open, which the queue answers to nobody. Sent again until all are stored, nothing needs that waiting.
    queue.send_until(&house, &messages, "all objects to be stored", || stored() >= total);
    wait_until("their messages to be deleted", || (queue.messages(&house).0 == 0).then_some(()));
    let (status, log) = pipeline.stop();
    assert!(status.success(), "{log}");
    assert!(log.contains("is no notification of an object"), "{log}");
    assert_eq!(house.stored(), once(0..total));
    assert_eq!(house.in_lake(), (0..total).collect::<Vec<_>>());
}

#[test]
fn a_message_is_deleted_only_when_its_object_is_stored() {
    let house = House::new();
    let queue = Queue::new(&house);
    house.put("in/a.jsonl", lines(0..10));
    queue.send(&house, &notification(&house, "in/a.jsonl", 0));
    let authority =
        house.database.rsplit('@').next().and_then(|rest| rest.split('/').next()).expect("a host and a port");
    // A database that is away: nothing can be stored.
    let file = house.file(&queue.source());
    let there = std::fs::read_to_string(&file).expect("readable");
    std::fs::write(&file, there.replace(authority, "127.0.0.1:1")).expect("writable");
    let arguments = ["run", file.to_str().expect("text")];
    let mut pipeline = house.start(&arguments, "away");
    wait_until("the message to be taken", || (queue.messages(&house) == (0, 1)).then_some(()));
    wait_until("the object to have its number", || {
        let ledger = house.folder.path().join("data/s3_source/objects/objects");
        std::fs::read_to_string(ledger).is_ok_and(|text| text.contains("in/a.jsonl")).then_some(())
    });
    assert_eq!(queue.messages(&house), (0, 1), "it is not deleted");
    pipeline.kill();
    std::fs::write(&file, there).expect("writable");
    let pipeline = house.start(&arguments, "there");
    // It comes again by itself later; here by others for the same object.
    let again = [notification(&house, "in/a.jsonl", 2)];
    queue.send_until(&house, &again, "the rows", || {
        let exists = house.query("SELECT to_regclass('readings') IS NOT NULL", |row| row.get::<_, bool>(0));
        exists == [true] && house.stored().len() == 10
    });
    // That of the run before is hidden until it comes again, and so is one that its last question was answered with.
    wait_until("the messages to be deleted", || matches!(queue.messages(&house), (0, 0..=2)).then_some(()));
    let (status, log) = pipeline.stop();
    assert!(status.success(), "{log}");
    assert_eq!(house.stored(), once(0..10));
}
