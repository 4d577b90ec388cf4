//! Values that flags and the configuration file have in common, checked where they are read: so a
//! mistake has its flag, or its line and column.

use std::str::FromStr;
use std::time::Duration;

use pipeline_engine::units::DurationText;
use serde::Deserialize;
use serde::de::IntoDeserializer;
use serde::de::value::{Error, StrDeserializer};

/// A duration: seconds as a number, `2` or `0.5`, or a number with its unit, `250ms`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "f64")]
pub struct Seconds(pub Duration);

impl TryFrom<f64> for Seconds {
    type Error = String;

    fn try_from(seconds: f64) -> Result<Self, String> {
        let duration = Duration::try_from_secs_f64(seconds).ok().filter(|duration| !duration.is_zero());
        duration.map(Self).ok_or_else(|| format!("a duration is above 0 seconds, not {seconds}"))
    }
}

impl FromStr for Seconds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(seconds) = text.parse::<f64>() {
            return Self::try_from(seconds);
        }
        let deserializer: StrDeserializer<'_, Error> = text.into_deserializer();
        match DurationText::deserialize(deserializer) {
            Ok(DurationText(duration)) if !duration.is_zero() => Ok(Self(duration)),
            Ok(_) => Err(format!("a duration is above 0 seconds, not {text}")),
            Err(_) => Err("write seconds, such as 2 or 0.5, or a duration with its unit, such as 250ms".to_owned()),
        }
    }
}

/// A probability between 0 and 1.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(try_from = "f64")]
pub struct Probability(pub f64);

impl TryFrom<f64> for Probability {
    type Error = String;

    fn try_from(probability: f64) -> Result<Self, String> {
        let possible = (0.0..=1.0).contains(&probability);
        possible
            .then_some(Self(probability))
            .ok_or_else(|| format!("a probability is between 0 and 1, not {probability}"))
    }
}

impl FromStr for Probability {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        number(text).and_then(Self::try_from)
    }
}

/// A number above 0, such as a rate or a factor.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(try_from = "f64")]
pub struct Positive(pub f64);

impl TryFrom<f64> for Positive {
    type Error = String;

    fn try_from(value: f64) -> Result<Self, String> {
        let possible = value.is_finite() && value > 0.0;
        possible.then_some(Self(value)).ok_or_else(|| format!("it must be a number above 0, not {value}"))
    }
}

impl FromStr for Positive {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        number(text).and_then(Self::try_from)
    }
}

/// How fast to replay: so many times the recorded pace, or `max` for as fast as possible.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Speed {
    Times(f64),
    Max,
}

impl FromStr for Speed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "max" => Ok(Self::Max),
            _ => {
                let wrong = |_| "write a number above 0, such as 60, or max".to_owned();
                text.parse::<Positive>().map(|Positive(times)| Self::Times(times)).map_err(wrong)
            }
        }
    }
}

/// The lowest and the highest value of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(try_from = "[f64; 2]")]
pub struct Range(pub [f64; 2]);

impl TryFrom<[f64; 2]> for Range {
    type Error = String;

    fn try_from([low, high]: [f64; 2]) -> Result<Self, String> {
        let ordered = low.is_finite() && high.is_finite() && low < high; // false for NaN as well
        let wrong = || format!("a range is its lowest and then its highest value, not [{low}, {high}]");
        ordered.then_some(Self([low, high])).ok_or_else(wrong)
    }
}

/// An MQTT quality of service: 0, 1 or 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "u8")]
pub struct Qos(pub u8);

impl TryFrom<u8> for Qos {
    type Error = String;

    fn try_from(qos: u8) -> Result<Self, String> {
        (qos <= 2).then_some(Self(qos)).ok_or_else(|| format!("a QoS is 0, 1 or 2, not {qos}"))
    }
}

impl FromStr for Qos {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| format!("a QoS is 0, 1 or 2, not {text}")).and_then(|qos: u8| Self::try_from(qos))
    }
}

/// Where the broker is, as a URL whose scheme is `mqtt` or `mqtts` and that has a port.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct BrokerUrl {
    /// `mqtt://HOST:PORT` or `mqtts://HOST:PORT`.
    pub url: String,
    /// The connection is encrypted.
    pub tls: bool,
}

impl TryFrom<String> for BrokerUrl {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl FromStr for BrokerUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (scheme, place) = text.split_once("://").unwrap_or(("mqtt", text));
        let tls = match scheme.to_ascii_lowercase().as_str() {
            "mqtt" | "tcp" => false,
            "mqtts" | "ssl" => true,
            _ => {
                return Err(format!(
                    "a broker is not reached by {scheme}://, but by mqtt://, tcp://, mqtts:// or ssl://"
                ));
            }
        };
        let place = place.strip_suffix('/').unwrap_or(place);
        if place.contains('@') {
            // Not shown again: there may be a password in it.
            return Err("a broker's address holds no user and no password: use --username".to_owned());
        }
        let wrong = || format!("\"{text}\" is not HOST:PORT, with or without mqtt:// or ssl:// before it");
        let (host, port) = split_port(place).ok_or_else(wrong)?;
        let port: u16 = match port {
            Some(digits) => digits.parse().ok().filter(|port| *port > 0).ok_or_else(wrong)?,
            None => {
                if tls {
                    8883
                } else {
                    1883
                }
            }
        };
        let scheme = if tls { "mqtts" } else { "mqtt" };
        Ok(Self { url: format!("{scheme}://{host}:{port}"), tls })
    }
}

/// Host (an IPv6 address with its brackets) and port, if there is one.
fn split_port(place: &str) -> Option<(&str, Option<&str>)> {
    let host_end = if place.starts_with('[') { place.find(']')? + 1 } else { place.find(':').unwrap_or(place.len()) };
    let (host, rest) = place.split_at(host_end);
    let is_host = !host.is_empty() && !host.contains(|byte: char| byte == '/' || byte.is_whitespace());
    let port = match rest {
        "" => None,
        _ => Some(rest.strip_prefix(':')?),
    };
    is_host.then_some((host, port))
}

fn number(text: &str) -> Result<f64, String> {
    text.parse().map_err(|_| format!("\"{text}\" is not a number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_seconds_or_has_a_unit() {
        let read = |text: &str| text.parse::<Seconds>().map(|Seconds(duration)| duration);
        assert_eq!(read("2"), Ok(Duration::from_secs(2)));
        assert_eq!(read("0.25"), Ok(Duration::from_millis(250)));
        assert_eq!(read("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(read("1m 30s"), Ok(Duration::from_secs(90)));
        for text in ["0", "-1", "0s", "nan", "inf", "soon", ""] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_broker_is_found_by_each_scheme_and_by_none() {
        let url = |text: &str| text.parse::<BrokerUrl>().map(|broker| broker.url);
        let host = "iot.us-east-1.amazonaws.com";
        assert_eq!(url(&format!("ssl://{host}:8883")), Ok(format!("mqtts://{host}:8883")));
        assert_eq!(url(&format!("mqtts://{host}")), Ok(format!("mqtts://{host}:8883")));
        assert_eq!(url("tcp://localhost"), Ok("mqtt://localhost:1883".to_owned()));
        assert_eq!(url("MQTT://localhost:21883/"), Ok("mqtt://localhost:21883".to_owned()));
        assert_eq!(url("localhost:21883"), Ok("mqtt://localhost:21883".to_owned()));
        assert_eq!(url("[::1]:1884"), Ok("mqtt://[::1]:1884".to_owned()));
        for text in
            ["", "http://localhost", "ssl://", "localhost:", "localhost:0", "localhost:70000", "a b", "[::1", "::1"]
        {
            assert!(url(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_password_in_an_address_is_refused_and_not_repeated() {
        let text = "ssl://me:secret@host".parse::<BrokerUrl>().expect_err("must be refused");
        assert!(!text.contains("secret") && text.contains("--username"), "{text}");
    }

    #[test]
    fn a_speed_is_a_factor_or_max() {
        assert_eq!("60".parse(), Ok(Speed::Times(60.0)));
        assert_eq!("max".parse(), Ok(Speed::Max));
        for text in ["0", "-1", "fast", "nan"] {
            assert!(text.parse::<Speed>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_no_probability_and_no_qos_is_refused() {
        assert_eq!("0.05".parse(), Ok(Probability(0.05)));
        assert_eq!("2".parse(), Ok(Qos(2)));
        for text in ["-0.1", "1.1", "nan", "x"] {
            assert!(text.parse::<Probability>().is_err(), "{text}");
        }
        for text in ["3", "-1", "one"] {
            assert!(text.parse::<Qos>().is_err(), "{text}");
        }
    }
}
