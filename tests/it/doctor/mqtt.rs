//! Brokers that are away, not trusted, or don't grant what a source needs.

use std::net::TcpListener;

use super::fake_broker::{self, Faults};
use super::{DISCARD, Patient};
use crate::mqtt::{Certificates, Mosquitto, free_port};
use crate::services::mqtt_url;

const FINE: Faults = Faults { granted: 1, keeps_sessions: true, session_expiry: None };

fn source(url: &str, more: &str) -> Patient {
    let source = format!(
        "[sources.in]\ntype = \"mqtt\"\nurl = \"{url}\"\ntopics = [\"doctor/+/x\", \"$share/group/doctor/y\"]\n{more}\n\
         [sources.in.spool]\nmax = \"1MiB\"\nsegment = \"64KiB\"\nmin_free = \"1MiB\"\n"
    );
    Patient::new(&format!("{source}{DISCARD}"))
}

#[test]
fn a_broker_that_is_well_passes_in_both_versions() {
    for (protocol, kept) in [("5", "keeps it for 1day"), ("3.1.1", "no word for it")] {
        let found = source(&mqtt_url(), &format!("protocol = \"{protocol}\"")).examine();
        found
            .says("in", "network", "pass", &["accepts connections"])
            .says("in", "login", "pass", &["lets us in", protocol])
            .says("in", "subscription", "pass", &["\"doctor/+/x\" is granted with QoS 1"])
            .says("in", "subscription", "pass", &["asked for without its group"])
            .says("in", "session", "pass", &["survives a reconnect", kept])
            .blames_only("nobody");
    }
}

#[test]
fn a_dead_broker_is_a_port_where_nothing_listens() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let found = source(&format!("mqtt://127.0.0.1:{port}"), "").examine();
    found.says("in", "network", "fail", &["nothing listens at", "Start the service"]).blames_only("in");
}

#[test]
fn a_host_without_an_address_is_told() {
    let found = source("mqtt://broker.invalid", "").examine();
    found.says("in", "network", "fail", &["\"broker.invalid:1883\" can't be resolved"]);
}

#[test]
fn a_broker_that_never_answers_is_given_up_and_hides_no_other_stage() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("mqtt://{}", silent.local_addr().unwrap());
    let found = source(&url, "").argument("--timeout=2").examine();
    found.says("in", "login", "fail", &["no answer within 2s"]).says("out", "reach", "pass", &[]).blames_only("in");
}

#[test]
fn tls_to_a_plain_port_is_told() {
    let found = source(&mqtt_url().replace("mqtt://", "mqtts://"), "").examine();
    found.says("in", "tls", "fail", &["Is this the port for encrypted connections?"]).blames_only("in");
}

#[test]
fn a_topic_that_is_not_allowed_is_named() {
    let found = source(&fake_broker::start(Faults { granted: 0x87, ..FINE }), "").examine();
    found.says(
        "in",
        "subscription",
        "fail",
        &["refuses the topic filter \"doctor/+/x\"", "Check what the broker allows"],
    );
}

#[test]
fn a_topic_that_is_granted_with_less_is_named() {
    let found = source(&fake_broker::start(Faults { granted: 0, ..FINE }), "").examine();
    found.says("in", "subscription", "fail", &["grants QoS 0 instead of 1", "\"doctor/+/x\""]);
}

#[test]
fn a_session_that_does_not_survive_is_told() {
    let found = source(&fake_broker::start(Faults { keeps_sessions: false, ..FINE }), "").examine();
    found.says("in", "session", "fail", &["does not survive a reconnect", "Let the broker keep sessions"]);
}

#[test]
fn a_session_that_is_kept_for_less_is_told() {
    let found = source(&fake_broker::start(Faults { session_expiry: Some(60), ..FINE }), "").examine();
    found.says("in", "session", "warn", &["keeps it for 1m and not for 1day", "session_expiry"]);
}

#[test]
fn a_pipeline_that_asks_for_no_session_is_warned() {
    source(&mqtt_url(), "clean_session = true").examine().says(
        "in",
        "session",
        "warn",
        &["while the pipeline is away is lost"],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_told_and_never_shown() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("passwords"), "device:secret\n").unwrap();
    let port = free_port();
    let conf = format!("listener {port} 127.0.0.1\nallow_anonymous false\npassword_file /data/passwords\n");
    let _broker = Mosquitto::start(dir.path(), &conf, &[port]).await;
    let url = format!("mqtt://127.0.0.1:{port}");
    let found = source(&url, "username = \"device\"\npassword = \"canary-wrong\"").examine();
    found.says("in", "login", "fail", &["the broker at", "`username` and `password`"]).blames_only("in");
    assert!(!found.text.contains("canary"), "{}", found.text);
    source(&url, "username = \"device\"\npassword = \"secret\"").examine().says(
        "in",
        "login",
        "pass",
        &["as \"device\""],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn each_mistake_with_certificates_is_told() {
    let dir = tempfile::tempdir().unwrap();
    Certificates::make(dir.path());
    let servers = ["good", "expired", "elsewhere", "soon"];
    let ports = servers.map(|_| free_port());
    let listener = |(port, server): (&u16, &str)| {
        format!(
            "listener {port} 127.0.0.1\nallow_anonymous true\ncafile /data/ca.crt\ncertfile /data/{server}.crt\n\
             keyfile /data/{server}.key\nrequire_certificate true\nuse_identity_as_username true\n"
        )
    };
    let listeners: String = ports.iter().zip(servers).map(listener).collect();
    let _broker = Mosquitto::start(dir.path(), &format!("per_listener_settings true\n{listeners}"), &ports).await;
    let file = |name: &str| dir.path().join(name).display().to_string();
    let own =
        |name: &str| format!("cert = \"{}\"\nkey = \"{}\"", file(&format!("{name}.crt")), file(&format!("{name}.key")));
    let ca = |name: &str| format!("ca = \"{}\"", file(&format!("{name}.crt")));
    for (port, tls, check, verdict, words) in [
        (ports[0], [ca("ca"), own("client")], "tls", "pass", "the certificate is trusted"),
        (ports[0], [ca("other-ca"), own("client")], "tls", "fail", "authority that is not trusted here"),
        (ports[1], [ca("ca"), own("client")], "tls", "fail", "has expired"),
        (ports[2], [ca("ca"), own("client")], "tls", "fail", "is not for the name \"localhost\""),
        (ports[3], [ca("ca"), own("client")], "tls", "warn", "expires in 9 days"),
        (ports[0], [ca("ca"), String::new()], "tls", "fail", "demands a client certificate"),
        (ports[0], [ca("ca"), own("stranger")], "tls", "fail", "does not trust the client certificate"),
        (ports[0], [ca("ca"), own("expired")], "client certificate", "fail", "has expired on 2021-01-01"),
    ] {
        let more = format!("[sources.in.tls]\n{}", tls.join("\n"));
        source(&format!("mqtts://localhost:{port}"), &more).examine().says("in", check, verdict, &[words]);
    }
}
