//! The real services that tests talk to, started on first use by `tests/services/services`.
//!
//! They are shared by all tests of a run (and left up, for the next run): a test uses tables, topics
//! and buckets of its own, named by [`unique`].

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

static VARIABLES: OnceLock<Mutex<BTreeMap<String, BTreeMap<String, String>>>> = OnceLock::new();

/// Starts a service if it is not up, and gives a variable that `services env` prints for it, such as
/// `TEST_MQTT_URL`. A variable that is set already wins: the service is then somebody else's.
pub fn variable(service: &str, name: &str) -> String {
    if let Ok(value) = std::env::var(name) {
        return value;
    }
    // One at a time: the lock is held while the service starts.
    let mut all = VARIABLES.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    let variables = all.entry(service.to_owned()).or_insert_with(|| up(service));
    variables.get(name).unwrap_or_else(|| panic!("`services env` prints no {name}")).clone()
}

fn up(service: &str) -> BTreeMap<String, String> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/services/services");
    let up = Command::new(script).args(["up", service]).output().expect("bash runs the services script");
    assert!(up.status.success(), "{service} did not come up: {}", String::from_utf8_lossy(&up.stderr));
    let env = Command::new(script).arg("env").output().expect("bash runs the services script");
    let text = String::from_utf8(env.stdout).expect("variables are text");
    let words = text.lines().flat_map(|line| line.trim_start_matches("export ").split(' '));
    words
        .filter_map(|word| word.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.trim_matches('\'').to_owned()))
        .collect()
}

/// A name that no other test and no earlier run has used: lower-case letters, digits, underscores.
pub fn unique(prefix: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock after 1970");
    format!("{prefix}_{:x}_{}_{}", since.as_millis(), std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The URL of a real Mosquitto without authentication.
pub fn mqtt_url() -> String {
    variable("mosquitto", "TEST_MQTT_URL")
}

/// The URL of a real TimescaleDB, as a superuser.
pub fn database_url() -> String {
    variable("timescaledb", "TEST_DATABASE_URL")
}

/// A real S3 API: endpoint, access key, secret key, region.
pub struct S3 {
    pub endpoint: String,
    pub access_key: String,
    pub secret_key: String,
    pub region: String,
}

/// A real S3 API.
pub fn s3() -> S3 {
    let get = |name| variable("s3", name);
    S3 {
        endpoint: get("TEST_S3_ENDPOINT"),
        access_key: get("TEST_S3_ACCESS_KEY"),
        secret_key: get("TEST_S3_SECRET_KEY"),
        region: get("TEST_S3_REGION"),
    }
}
