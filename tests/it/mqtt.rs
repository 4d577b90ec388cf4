//! The MQTT source and sink against real brokers: Mosquitto with all its listeners, and the embedded one.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arrow::array::{ArrayRef, AsArray, StringArray};
use arrow::record_batch::RecordBatch;
use pipeline_engine::stage::{Batch, BuildContext, Fault, Group, Sink, SinkConfig, SourceConfig, StageError};
use pipeline_engine::testing::{self, Outlet, deliver};
use pipeline_stages::sinks::mqtt::MqttSinkConfig;
use pipeline_stages::sources::mqtt::MqttSourceConfig;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rumqttc_v5::{AsyncClient, BrokerSessionResumePolicy, Event, MqttOptions, Packet, PublishOptions, QoS};
use tempfile::TempDir;
use tokio::task::JoinHandle;

use crate::services::{mqtt_url, unique};

/// Nothing here takes long; a test that waits so long hangs.
const PATIENCE: Duration = Duration::from_secs(60);

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it comes in time")
}

fn context(stage: &str) -> BuildContext {
    BuildContext::detached(stage, BTreeMap::new())
}

/// A running source and what reads it.
struct Reading {
    outlet: Outlet,
    run: JoinHandle<Result<(), StageError>>,
    /// Where it keeps what must survive a restart.
    data: Arc<TempDir>,
}

impl Reading {
    fn start(url: &str, topic: &str, client_id: &str, more: &str) -> Self {
        Self::start_in(Arc::new(TempDir::new().unwrap()), url, topic, client_id, more)
    }

    fn start_in(data: Arc<TempDir>, url: &str, topic: &str, client_id: &str, more: &str) -> Self {
        let text = format!("url = \"{url}\"\ntopics = \"{topic}\"\nclient_id = \"{client_id}\"\n{more}");
        let config: MqttSourceConfig = toml::from_str(&text).unwrap();
        let built = config.build(&context("in").with_data_dir(data.path())).unwrap();
        let (cx, outlet) = testing::source(100_000);
        Self { outlet, run: tokio::spawn(built.source.run(cx)), data }
    }

    async fn next(&mut self) -> Batch {
        within(self.outlet.next()).await.expect("a batch")
    }

    /// Waits until the subscription is there: a retained message comes then.
    async fn until_subscribed(&mut self) {
        let batch = self.next().await;
        assert_eq!(payloads(&batch), ["retained"]);
        deliver(batch);
    }

    /// Reads so many messages, delivered at once.
    async fn read(&mut self, count: usize) -> Vec<String> {
        let mut all = Vec::with_capacity(count);
        while all.len() < count {
            let batch = self.next().await;
            all.extend(payloads(&batch));
            deliver(batch);
        }
        all
    }

    /// Stores what still comes, as sinks do, and sees the source end.
    async fn stop(mut self) {
        self.outlet.stop();
        while let Some(batch) = within(self.outlet.next()).await {
            deliver(batch);
        }
        within(self.run).await.unwrap().unwrap();
    }

    async fn failure(self) -> StageError {
        within(self.run).await.unwrap().expect_err("the source must end with an error")
    }
}

fn payloads(batch: &Batch) -> Vec<String> {
    let column = batch.rows.column_by_name("payload").unwrap().as_binary::<i32>();
    column.iter().map(|payload| String::from_utf8(payload.unwrap().to_vec()).unwrap()).collect()
}

fn numbered(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("message {number:06}")).collect()
}

fn sorted(mut all: Vec<String>) -> Vec<String> {
    all.sort();
    all
}

fn rows(topic: &str, payloads: &[String]) -> RecordBatch {
    let topics: ArrayRef = Arc::new(StringArray::from(vec![topic; payloads.len()]));
    let payloads: ArrayRef = Arc::new(StringArray::from_iter_values(payloads));
    RecordBatch::try_from_iter([("topic", topics), ("payload", payloads)]).unwrap()
}

/// Publishes through our own sink.
async fn publish(url: &str, topic: &str, payloads: &[String], more: impl FnOnce(&mut MqttSinkConfig)) {
    let mut config = MqttSinkConfig { client_id: Some(unique("pub")), ..MqttSinkConfig::new(url, None) };
    more(&mut config);
    let batch = rows(topic, payloads);
    let mut sink: Box<dyn Sink> = config.build(&batch.schema(), &context("out")).unwrap().sink;
    within(sink.open()).await.unwrap();
    within(sink.write(&Group::new(vec![Batch::detached(batch)]))).await.unwrap();
    within(sink.close()).await.unwrap();
}

/// A bare client, for what neither source nor sink does.
fn client(url: &str, client_id: &str, clean: bool) -> (AsyncClient, rumqttc_v5::EventLoop) {
    let (host, port) = url.trim_start_matches("mqtt://").split_once(':').unwrap();
    let mut options = MqttOptions::new(client_id, (host.to_owned(), port.parse::<u16>().unwrap()));
    options.set_clean_start(clean);
    options.set_broker_session_resume_policy(BrokerSessionResumePolicy::AllowBrokerOnly);
    AsyncClient::builder(options).capacity(10).build()
}

/// Leaves a message that every new subscriber gets.
async fn retain(url: &str, topic: &str) {
    let (client, mut events) = client(url, &unique("retain"), true);
    let notice =
        client.publish_tracked(topic, "retained", PublishOptions::new(QoS::AtLeastOnce).retained()).await.unwrap();
    let mut notice = Box::pin(notice.wait_completion_async());
    within(async {
        loop {
            tokio::select! {
                done = &mut notice => return done.unwrap(),
                event = events.poll() => drop(event.unwrap()),
            }
        }
    })
    .await;
}

/// What the broker sends first to a client that takes the session over, after a marker was published.
async fn first_of_session(url: &str, client_id: &str, topic: &str) -> String {
    let (_client, mut events) = client(url, client_id, false);
    within(async {
        loop {
            match events.poll().await.unwrap() {
                Event::Incoming(Packet::ConnAck(accepted)) => {
                    assert!(accepted.session_present, "the source leaves its session");
                    publish(url, topic, &["marker".to_owned()], |_| ()).await;
                }
                Event::Incoming(Packet::Publish(publish)) => {
                    return String::from_utf8(publish.payload.to_vec()).unwrap();
                }
                _ => {}
            }
        }
    })
    .await
}

async fn arrives_once_and_is_acknowledged(protocol: &str, qos: u8, count: usize) {
    let (url, topic, id) = (mqtt_url(), unique("t"), unique("c"));
    retain(&url, &topic).await;
    let mut reading =
        Reading::start(&url, &format!("{topic}/#"), &id, &format!("protocol = \"{protocol}\"\nqos = {qos}"));
    reading.until_subscribed().await;
    let sent = numbered(count);
    publish(&url, &format!("{topic}/x"), &sent, |config| {
        config.qos = qos;
        config.protocol =
            toml::from_str::<BTreeMap<String, _>>(&format!("p = \"{protocol}\"")).unwrap().remove("p").unwrap();
    })
    .await;
    assert_eq!(reading.read(count).await, sent, "each once, and in order");
    reading.stop().await;
    let first = first_of_session(&url, &id, &format!("{topic}/x")).await;
    assert_eq!(first, "marker", "nothing was left unacknowledged (QoS {qos} of {protocol})");
}

#[tokio::test(flavor = "multi_thread")]
async fn five_thousand_messages_arrive_once_and_are_acknowledged() {
    arrives_once_and_is_acknowledged("5", 1, 5_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_qos_and_protocol_arrives_once() {
    for (protocol, qos) in [("5", 0), ("5", 2), ("3.1.1", 0), ("3.1.1", 1), ("3.1.1", 2)] {
        arrives_once_and_is_acknowledged(protocol, qos, 500).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_stored_comes_again_in_the_next_run() {
    for protocol in ["5", "3.1.1"] {
        let (url, topic, id) = (mqtt_url(), unique("t"), unique("c"));
        retain(&url, &topic).await;
        let more = format!("protocol = \"{protocol}\"\nbatch_rows = 1");
        let mut first = Reading::start(&url, &format!("{topic}/#"), &id, &more);
        first.until_subscribed().await;
        let sent = numbered(50);
        // What is stored before the rest is published can share no batch with it.
        publish(&url, &format!("{topic}/x"), &sent[..10], |_| ()).await;
        let stored = first.read(10).await;
        assert_eq!(stored, sent[..10]);
        publish(&url, &format!("{topic}/x"), &sent[10..], |_| ()).await;
        // The next batch is lost, as in a crash.
        drop(first.next().await);
        let data = first.data.clone();
        let _consequence = first.failure().await;
        let mut second = Reading::start_in(data, &url, &format!("{topic}/#"), &id, &more);
        // 3.1.1 gets the retained message with each subscription.
        let mut again = Vec::new();
        while again.last() != sent.last() {
            again.extend(second.read(1).await.into_iter().filter(|payload| payload != "retained"));
        }
        // Without checkpoints, what was stored last may come again.
        let from = sent.len() - again.len();
        assert!(from <= stored.len(), "{again:?} after {stored:?}");
        assert_eq!(again, sent[from..], "all that was not stored, in order, each once");
        second.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelines_share_a_subscription() {
    let (url, topic) = (mqtt_url(), unique("t"));
    let filter = format!("$share/group/{topic}/#");
    let mut pair: Vec<Reading> = (0..2).map(|_| Reading::start(&url, &filter, &unique("c"), "")).collect();
    // A shared subscription gets no retained message, so knock until both have heard something.
    for reading in &mut pair {
        within(async {
            loop {
                publish(&url, &format!("{topic}/knock"), &["knock".to_owned()], |_| ()).await;
                if let Ok(batch) = tokio::time::timeout(Duration::from_millis(100), reading.outlet.next()).await {
                    deliver(batch.unwrap());
                    return;
                }
            }
        })
        .await;
    }
    let sent = numbered(1_000);
    publish(&url, &format!("{topic}/x"), &sent, |_| ()).await;
    let mut all = Vec::new();
    let mut each = [0, 0];
    while all.len() < sent.len() {
        let (left, right) = pair.split_at_mut(1);
        let (who, batch) = within(async {
            tokio::select! {
                batch = left[0].outlet.next() => (0, batch.unwrap()),
                batch = right[0].outlet.next() => (1, batch.unwrap()),
            }
        })
        .await;
        let new: Vec<_> = payloads(&batch).into_iter().filter(|payload| payload != "knock").collect();
        each[who] += new.len();
        all.extend(new);
        deliver(batch);
    }
    assert_eq!(sorted(all), sent, "each message to one of them");
    assert!(each[0] > 0 && each[1] > 0, "{each:?}");
    for reading in pair {
        reading.stop().await;
    }
}

// On one thread, so that all log lines are its own.
#[tokio::test]
async fn two_with_one_client_id_are_told_of_each_other() {
    for protocol in ["5", "3.1.1"] {
        let log = tempfile::NamedTempFile::new().unwrap();
        let subscriber = tracing_subscriber::fmt().with_writer(std::sync::Mutex::new(log.reopen().unwrap())).finish();
        let logging = tracing::subscriber::set_default(subscriber);
        let (url, topic, id) = (mqtt_url(), unique("t"), unique("c"));
        let pair = [(); 2].map(|()| Reading::start(&url, &topic, &id, &format!("protocol = \"{protocol}\"")));
        let told = || {
            let log = std::fs::read_to_string(log.path()).unwrap();
            log.contains("another client may use this client id") && log.contains(&id) && log.contains("$share/")
        };
        within(async {
            while !told() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        })
        .await;
        for reading in pair {
            reading.stop().await;
        }
        drop(logging);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_embedded_broker_carries_a_demo() {
    let url = format!("mqtt://127.0.0.1:{}", free_port());
    let sent = numbered(1_000);
    let batch = rows("demo/1", &sent);
    let config = MqttSinkConfig { embedded_broker: true, ..MqttSinkConfig::new(&url, None) };
    let mut sink = config.build(&batch.schema(), &context("out")).unwrap().sink;
    within(sink.open()).await.unwrap();
    retain(&url, "demo/0").await;
    let mut reading = Reading::start(&url, "demo/+", "demo", "");
    reading.until_subscribed().await;
    within(sink.write(&Group::new(vec![Batch::detached(batch)]))).await.unwrap();
    assert_eq!(reading.read(1_000).await, sent);
    reading.stop().await;
    within(sink.close()).await.unwrap();
    assert!(!Path::new("mqtt_storage").exists(), "it keeps nothing");
    let config: MqttSourceConfig = toml::from_str(&format!("url = \"{url}\"\ntopics = \"#\"")).unwrap();
    let mut source = config.build(&context("in")).unwrap().source;
    assert!(source.probe().await.is_err(), "it ends with the sink");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_named_and_a_right_one_let_in() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("passwords"), "device:secret\n").unwrap();
    let port = free_port();
    let conf = format!("listener {port} 127.0.0.1\nallow_anonymous false\npassword_file /data/passwords\n");
    let _broker = Mosquitto::start(dir.path(), &conf, &[port]).await;
    let url = format!("mqtt://127.0.0.1:{port}");
    for protocol in ["5", "3.1.1"] {
        for login in ["username = \"device\"\npassword = \"wrong\"", ""] {
            let reading = Reading::start(&url, "#", &unique("c"), &format!("{login}\nprotocol = \"{protocol}\""));
            let error = reading.failure().await;
            assert_eq!(error.fault(), Fault::Permanent);
            let text = error.chain();
            assert!(
                text.contains("does not accept the user name or the password") || text.contains("does not authorize"),
                "{text}"
            );
            assert!(!text.contains("wrong"), "{text}");
        }
        let login = "username = \"device\"\npassword = \"secret\"";
        let text = format!("url = \"{url}\"\ntopics = \"#\"\n{login}\nprotocol = \"{protocol}\"");
        let config: MqttSourceConfig = toml::from_str(&text).unwrap();
        let mut source = config.build(&context("in")).unwrap().source;
        within(source.probe()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_mistake_with_certificates_has_words_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    Certificates::make(dir.path());
    let ports = [free_port(), free_port(), free_port()];
    let listener = |port: u16, server: &str| {
        format!(
            "listener {port} 127.0.0.1\nallow_anonymous true\ncafile /data/ca.crt\ncertfile /data/{server}.crt\n\
             keyfile /data/{server}.key\nrequire_certificate true\nuse_identity_as_username true\n"
        )
    };
    let conf = format!(
        "per_listener_settings true\n{}{}{}",
        listener(ports[0], "good"),
        listener(ports[1], "expired"),
        listener(ports[2], "elsewhere")
    );
    let _broker = Mosquitto::start(dir.path(), &conf, &ports).await;
    let file = |name: &str| dir.path().join(name).display().to_string();
    let mine = format!("cert = \"{}\"\nkey = \"{}\"", file("client.crt"), file("client.key"));
    let strange = format!("cert = \"{}\"\nkey = \"{}\"", file("stranger.crt"), file("stranger.key"));
    let (ca, other_ca) = (format!("ca = \"{}\"", file("ca.crt")), format!("ca = \"{}\"", file("other-ca.crt")));
    let elsewhere = "server_name = \"elsewhere.test\"";

    for (port, tls, words) in [
        (ports[0], format!("{other_ca}\n{mine}"), "signed by an authority that is not trusted here"),
        (ports[0], mine.clone(), "signed by an authority that is not trusted here"),
        (ports[1], format!("{ca}\n{mine}"), "has expired"),
        (ports[2], format!("{ca}\n{mine}"), "is not for the name \"localhost\""),
        (ports[0], ca.clone(), "demands a client certificate"),
        (ports[0], format!("{ca}\n{strange}"), "does not trust the client certificate"),
    ] {
        for protocol in ["5", "3.1.1"] {
            let url = format!("mqtts://localhost:{port}");
            let more = format!("protocol = \"{protocol}\"\n[tls]\n{tls}");
            let error = Reading::start(&url, "#", &unique("c"), &more).failure().await;
            assert_eq!(error.fault(), Fault::Permanent);
            assert!(error.chain().contains(words), "{words}: {}", error.chain());
        }
    }

    for (port, tls) in [(ports[0], format!("{ca}\n{mine}")), (ports[2], format!("{ca}\n{mine}\n{elsewhere}"))] {
        let (url, topic) = (format!("mqtts://localhost:{port}"), unique("t"));
        let mut reading = Reading::start(&url, &format!("{topic}/#"), &unique("c"), &format!("[tls]\n{tls}"));
        let tls: pipeline_stages::sinks::mqtt::TlsConfig = toml::from_str(&tls).unwrap();
        let payload = ["over TLS".to_owned()];
        within(async {
            // Published until the subscription is there.
            loop {
                publish(&url, &format!("{topic}/x"), &payload, |config| config.tls = tls.clone()).await;
                if let Ok(batch) = tokio::time::timeout(Duration::from_millis(100), reading.outlet.next()).await {
                    let batch = batch.unwrap();
                    assert_eq!(payloads(&batch)[0], "over TLS");
                    return deliver(batch);
                }
            }
        })
        .await;
        reading.stop().await;
    }
}

/// Below the ports that outgoing connections get, and used by no other test.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(22_410);
    loop {
        let port = NEXT.fetch_add(1, Ordering::Relaxed);
        assert!(port < 22_500, "a port of ours is free");
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// A Mosquitto of one test's own; dropping it ends it.
pub struct Mosquitto {
    child: Child,
}

impl Mosquitto {
    /// `dir` is `/data` for it, and holds what `conf` names.
    pub async fn start(dir: &Path, conf: &str, ports: &[u16]) -> Self {
        std::fs::write(dir.join("mosquitto.conf"), format!("{conf}log_dest stderr\n")).unwrap();
        let log = std::fs::File::create(dir.join("log")).unwrap();
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/services/services");
        let child = Command::new(script)
            .arg("broker")
            .arg(dir)
            .stdin(Stdio::null())
            .stderr(log.try_clone().unwrap())
            .stdout(log)
            .spawn()
            .expect("bash runs the services script");
        let mut broker = Self { child };
        for port in ports {
            within(async {
                while tokio::net::TcpStream::connect(("127.0.0.1", *port)).await.is_err() {
                    let log = || std::fs::read_to_string(dir.join("log")).unwrap();
                    assert!(broker.child.try_wait().unwrap().is_none(), "mosquitto ended: {}", log());
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            })
            .await;
        }
        broker
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        // The script has become the daemon, so this is its own process.
        let ended = self.child.kill().and_then(|()| self.child.wait());
        assert!(ended.is_ok(), "mosquitto is a child of ours");
    }
}

/// Authorities and what they signed, as PEM files.
pub struct Certificates<'a> {
    dir: &'a Path,
}

impl Certificates<'_> {
    /// `ca` signs the servers `good`, `expired`, `elsewhere` and `soon` (which ends in ten days), and `client`; `other-ca`
    /// signs `stranger`.
    pub fn make(dir: &Path) {
        let files = Certificates { dir };
        let ca = files.authority("ca");
        let other_ca = files.authority("other-ca");
        let until_2021 = Some(Duration::from_secs(1_609_459_200));
        let in_ten_days = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + Duration::from_secs(10 * 86_400);
        files.signed("good", &["localhost"], &ca, None);
        files.signed("expired", &["localhost"], &ca, until_2021);
        files.signed("elsewhere", &["elsewhere.test"], &ca, None);
        files.signed("soon", &["localhost"], &ca, Some(in_ten_days));
        files.signed("client", &["device-1"], &ca, None);
        files.signed("stranger", &["device-1"], &other_ca, None);
    }

    fn authority(&self, name: &str) -> Issuer<'static, KeyPair> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        std::fs::write(self.dir.join(format!("{name}.crt")), certificate.pem()).unwrap();
        Issuer::new(params, key)
    }

    /// `until`: since 1970.
    fn signed(&self, name: &str, names: &[&str], by: &Issuer<'_, KeyPair>, until: Option<Duration>) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names.clone()).unwrap();
        params.distinguished_name.push(DnType::CommonName, &names[0]);
        if let Some(until) = until {
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(1970, 1, 1) + until;
        }
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, by).unwrap();
        std::fs::write(self.dir.join(format!("{name}.crt")), certificate.pem()).unwrap();
        let path = self.dir.join(format!("{name}.key"));
        std::fs::write(&path, key.serialize_pem()).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
}
