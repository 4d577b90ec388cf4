//! The flags, and what becomes of them.

use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;

use anyhow::bail;
use pipeline_engine::units::DurationText;
use pipeline_stages::sources::simulator::{Pace, SimulatorConfig};
use secrecy::SecretString;

use super::file::ConfigFile;
use super::values::{BrokerUrl, Positive, Probability, Qos, Seconds, Speed};

/// Holds the broker's password: a flag would show it to everybody on the machine.
const PASSWORD_VARIABLE: &str = "PIPELINE_MQTT_PASSWORD";
const BROKER_DEFAULT: &str = "mqtt://localhost:1883";
const QOS_DEFAULT: u8 = 1;

/// Publish messages of a simulated fleet, or a recorded data set, to a broker.
#[derive(Debug, Default, clap::Args)]
pub struct SimulateArgs {
    /// YAML file with the same settings; flags win over it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// How many devices there are [default: 10]
    #[arg(long, value_name = "N")]
    device_count: Option<NonZeroU32>,
    /// How often each device sends: seconds, or with a unit [default: 5]
    #[arg(long, value_name = "SECONDS")]
    interval: Option<Seconds>,
    /// Messages a second over the whole fleet, in place of an interval
    #[arg(long, value_name = "N", conflicts_with = "interval")]
    rate: Option<Positive>,
    /// Stop after so long: seconds, or with a unit
    #[arg(long, value_name = "SECONDS")]
    duration: Option<Seconds>,
    /// Stop after so many messages
    #[arg(long, value_name = "N")]
    count: Option<NonZeroU64>,
    /// Another seed is another fleet [default: 1]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// The broker: mqtt://, tcp://, mqtts:// or ssl://HOST:PORT, or HOST:PORT [default: localhost:1883]
    #[arg(long, value_name = "URL")]
    mqtt_broker: Option<BrokerUrl>,
    /// Where to publish; {device_id} in it is replaced [default: iot/telemetry]
    #[arg(long)]
    topic: Option<String>,
    /// How often a message may arrive: 0 at most once, 1 at least once, 2 exactly once [default: 1]
    #[arg(long, value_name = "0|1|2")]
    qos: Option<Qos>,
    /// By what name the broker knows us
    #[arg(long, value_name = "ID")]
    client_id: Option<String>,
    /// The user to connect as; the password is taken from PIPELINE_MQTT_PASSWORD
    #[arg(long, value_name = "NAME")]
    username: Option<String>,
    /// PEM file with the authorities that may sign the broker's certificate
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// PEM file with our certificate
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// PEM file with the key of our certificate
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,

    /// How likely a message is bad: broken JSON, a wrong type and the like
    #[arg(long, value_name = "PROBABILITY")]
    bad: Option<Probability>,
    /// How likely a message is sent twice
    #[arg(long, value_name = "PROBABILITY")]
    duplicate: Option<Probability>,
    /// How likely a message is a minute late
    #[arg(long, value_name = "PROBABILITY")]
    late: Option<Probability>,
    /// Write a JSON line here for each planted anomaly, bad, duplicate and late message
    #[arg(long, value_name = "FILE")]
    truth: Option<PathBuf>,

    /// Send the rows of this file instead: CSV with a header, or JSON lines, with a field "timestamp"
    #[arg(long, value_name = "FILE", conflicts_with_all = ["device_count", "interval", "rate", "seed", "bad", "duplicate", "late", "truth"])]
    replay: Option<PathBuf>,
    /// How fast to replay: a factor, or max for as fast as possible [default: 1]
    #[arg(long, value_name = "FACTOR", requires = "replay")]
    speed: Option<Speed>,
    /// The device id of replayed rows that have none [default: the file's name]
    #[arg(long, value_name = "ID", requires = "replay")]
    device_id: Option<String>,
}

/// What to run: [`SimulateArgs`], the file and the defaults, resolved.
#[derive(Debug)]
pub struct Settings {
    /// The source.
    pub simulator: SimulatorConfig,
    /// The sink.
    pub broker: Broker,
}

/// Where the messages go.
#[derive(Debug)]
pub struct Broker {
    /// `mqtt://HOST:PORT` or `mqtts://HOST:PORT`.
    pub url: String,
    /// 0, 1 or 2.
    pub qos: u8,
    /// By what name the broker knows us, if not by the default.
    pub client_id: Option<String>,
    /// The user to connect as.
    pub username: Option<String>,
    /// The user's password.
    pub password: Option<SecretString>,
    /// PEM file with the authorities that may sign the broker's certificate.
    pub ca: Option<PathBuf>,
    /// PEM file with our certificate; with `key` or not at all.
    pub cert: Option<PathBuf>,
    /// PEM file with its key.
    pub key: Option<PathBuf>,
}

impl SimulateArgs {
    /// A flag wins over the file, the file over the default.
    ///
    /// # Errors
    /// The file can't be read or is wrong, or settings contradict each other.
    pub fn resolve(self) -> anyhow::Result<Settings> {
        let password = std::env::var(PASSWORD_VARIABLE).ok().map(SecretString::from);
        let file = self.config.as_deref().map(ConfigFile::read).transpose()?.unwrap_or_default();
        let broker = self.broker(&file, password)?;
        Ok(Settings { simulator: self.simulator(file), broker })
    }

    fn broker(&self, file: &ConfigFile, password: Option<SecretString>) -> anyhow::Result<Broker> {
        let broker = self.mqtt_broker.as_ref().or(file.mqtt.broker.as_ref());
        let (url, tls) = broker.map_or((BROKER_DEFAULT, false), |broker| (&broker.url, broker.tls));
        if !tls && (self.ca.is_some() || self.cert.is_some()) {
            bail!("--ca, --cert and --key need an encrypted connection, and {url} is none: write mqtts:// or ssl://");
        }
        let username = self.username.clone();
        Ok(Broker {
            url: url.to_owned(),
            qos: self.qos.or(file.mqtt.qos).map_or(QOS_DEFAULT, |Qos(qos)| qos),
            client_id: self.client_id.clone(),
            // A password without a user is for something else that runs here.
            password: password.filter(|_| username.is_some()),
            username,
            ca: self.ca.clone(),
            cert: self.cert.clone(),
            key: self.key.clone(),
        })
    }

    fn simulator(self, file: ConfigFile) -> SimulatorConfig {
        let default = SimulatorConfig::default();
        let probability = |flag: Option<Probability>, default| flag.map_or(default, |Probability(given)| given);
        let interval = self.interval.or(file.telemetry.interval_seconds);
        let (speed, pace) = match self.speed {
            Some(Speed::Times(times)) => (times, Pace::Real),
            Some(Speed::Max) => (1.0, Pace::Unpaced),
            None => (default.speed, default.pace),
        };
        SimulatorConfig {
            devices: self.device_count.or(file.devices.count).map_or(default.devices, NonZeroU32::get),
            prefix: file.devices.prefix.unwrap_or(default.prefix),
            interval: interval.map_or(default.interval, |Seconds(interval)| DurationText(interval)),
            rate: self.rate.map(|Positive(rate)| rate),
            count: self.count.map(NonZeroU64::get),
            duration: self.duration.map(|Seconds(duration)| DurationText(duration)),
            seed: self.seed.unwrap_or(default.seed),
            topic: self.topic.or(file.mqtt.topic).unwrap_or(default.topic),
            temperature_range: file.telemetry.temperature_range.map_or(default.temperature_range, |range| range.0),
            humidity_range: file.telemetry.humidity_range.map_or(default.humidity_range, |range| range.0),
            anomaly_probability: probability(file.anomaly.probability, default.anomaly_probability),
            spike_factor: file.anomaly.spike_factor.map_or(default.spike_factor, |Positive(factor)| factor),
            bad_probability: probability(self.bad, default.bad_probability),
            late_probability: probability(self.late, default.late_probability),
            duplicate_probability: probability(self.duplicate, default.duplicate_probability),
            truth: self.truth,
            replay: self.replay,
            replay_device_id: self.device_id,
            speed,
            pace,
            ..default
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::Parser;
    use secrecy::ExposeSecret;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        args: SimulateArgs,
    }

    fn args(flags: &[&str]) -> Result<SimulateArgs, String> {
        let words = std::iter::once("simulate").chain(flags.iter().copied());
        Command::try_parse_from(words).map(|command| command.args).map_err(|error| error.to_string())
    }

    fn settings(flags: &[&str]) -> Settings {
        args(flags).unwrap().resolve().unwrap()
    }

    fn refused(flags: &[&str]) -> String {
        match args(flags) {
            Err(text) => text,
            Ok(args) => args.resolve().expect_err("must be refused").to_string(),
        }
    }

    #[test]
    fn without_flags_it_is_the_default_fleet_and_a_local_broker() {
        let Settings { simulator, broker } = settings(&[]);
        assert_eq!(simulator, SimulatorConfig::default());
        assert_eq!((broker.url.as_str(), broker.qos), ("mqtt://localhost:1883", 1));
    }

    #[test]
    fn the_runbooks_flags_work() {
        let broker = "ssl://iot.us-east-1.amazonaws.com:8883";
        let flags = ["--device-count", "50", "--interval", "2", "--mqtt-broker", broker, "--topic", "iot/telemetry"];
        let Settings { simulator, broker } = settings(&flags);
        assert_eq!((simulator.devices, simulator.interval), (50, DurationText::secs(2)));
        assert_eq!(simulator.topic, "iot/telemetry");
        assert_eq!(broker.url, "mqtts://iot.us-east-1.amazonaws.com:8883");
    }

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.yaml");
        let text = "devices: {count: 100, prefix: pump-}\ntelemetry: {interval_seconds: 5, humidity_range: [10, 20]}\n\
                    mqtt: {broker: 'localhost:21883', topic: a/b, qos: 2}\nanomaly: {probability: 0.5, spike_factor: 4}\n";
        std::fs::write(&path, text).unwrap();
        let path = path.to_str().unwrap();

        let Settings { simulator, broker } = settings(&["--config", path]);
        assert_eq!((simulator.devices, simulator.prefix.as_str(), simulator.topic.as_str()), (100, "pump-", "a/b"));
        assert_eq!(simulator.humidity_range, [10.0, 20.0]);
        assert_eq!(simulator.temperature_range, SimulatorConfig::default().temperature_range);
        assert_eq!((simulator.anomaly_probability, simulator.spike_factor), (0.5, 4.0));
        assert_eq!((broker.url.as_str(), broker.qos), ("mqtt://localhost:21883", 2));

        let flags = ["--config", path, "--device-count", "3", "--interval", "0.5", "--topic", "c", "--qos", "0"];
        let Settings { simulator, broker } = settings(&[&flags[..], &["--mqtt-broker", "tcp://other"]].concat());
        assert_eq!((simulator.devices, simulator.prefix.as_str(), simulator.topic.as_str()), (3, "pump-", "c"));
        assert_eq!(simulator.interval, DurationText(Duration::from_millis(500)));
        assert_eq!((broker.url.as_str(), broker.qos), ("mqtt://other:1883", 0));
    }

    #[test]
    fn a_rate_wins_over_the_files_interval() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.yaml");
        std::fs::write(&path, "telemetry: {interval_seconds: 5}\n").unwrap();
        let simulator = settings(&["--config", path.to_str().unwrap(), "--rate", "50000"]).simulator;
        assert_eq!(simulator.rate, Some(50_000.0));
    }

    #[test]
    fn load_and_faults_are_flags() {
        let flags = "--rate 1000 --duration 1m --count 9 --seed 7 --bad 0.1 --duplicate 0.2 --late 0.3 --truth t.jsonl";
        let simulator = settings(&flags.split(' ').collect::<Vec<_>>()).simulator;
        assert_eq!((simulator.rate, simulator.count, simulator.seed), (Some(1000.0), Some(9), 7));
        assert_eq!(simulator.duration, Some(DurationText::secs(60)));
        let planted = (simulator.bad_probability, simulator.duplicate_probability, simulator.late_probability);
        assert_eq!(planted, (0.1, 0.2, 0.3));
        assert_eq!(simulator.truth, Some(PathBuf::from("t.jsonl")));
    }

    #[test]
    fn a_replay_has_a_pace() {
        let pace = |flags: &[&str]| {
            let simulator = settings(&[&["--replay", "m.csv"], flags].concat()).simulator;
            assert_eq!(simulator.replay, Some(PathBuf::from("m.csv")));
            (simulator.pace, simulator.speed)
        };
        assert_eq!(pace(&[]), (Pace::Real, 1.0));
        assert_eq!(pace(&["--speed", "60"]), (Pace::Real, 60.0));
        assert_eq!(pace(&["--speed", "max"]), (Pace::Unpaced, 1.0));
        assert_eq!(
            settings(&["--replay", "m.csv", "--device-id", "pump"]).simulator.replay_device_id.as_deref(),
            Some("pump")
        );
    }

    #[test]
    fn what_contradicts_is_refused() {
        let refusals = [
            (&["--interval", "1", "--rate", "1"][..], "--rate"),
            (&["--speed", "2"], "--replay"),
            (&["--replay", "m.csv", "--bad", "0.1"], "--bad"),
            (&["--mqtt-broker", "ssl://h", "--cert", "c.pem"], "--key"),
            (&["--ca", "ca.pem"], "need an encrypted connection, and mqtt://localhost:1883 is none"),
            (&["--interval", "0"], "--interval"),
            (&["--device-count", "0"], "--device-count"),
            (&["--count", "0"], "--count"),
            (&["--qos", "3"], "a QoS is 0, 1 or 2, not 3"),
            (&["--mqtt-broker", "http://h"], "not reached by http://"),
        ];
        for (flags, expected) in refusals {
            let text = refused(flags);
            assert!(text.contains(expected), "{flags:?}: {text}");
        }
    }

    #[test]
    fn a_password_goes_only_with_a_user_and_is_not_printed() {
        let broker = |flags: &[&str]| {
            let args = args(flags).unwrap();
            args.broker(&ConfigFile::default(), Some(SecretString::from("hush"))).unwrap()
        };
        assert!(broker(&[]).password.is_none());
        let with_user = broker(&["--username", "me"]);
        assert_eq!(with_user.password.as_ref().map(ExposeSecret::expose_secret), Some("hush"));
        assert!(!format!("{with_user:?}").contains("hush"));
    }
}
