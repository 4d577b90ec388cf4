//! Sends what a fleet has to say, at its pace, and remembers what the broker has taken.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::FutureExt;
use pipeline_engine::dlq::{CHUNK, NotSent, Resent};
use pipeline_engine::now_us;
use pipeline_engine::time::parse_us;
use pipeline_engine::units::DurationText;
use pipeline_stages::sources::simulator::SimulatorConfig;
use serde::Deserialize;

use super::Options;
use crate::http::live::grouped;
use crate::verify::Door;

/// A broker that takes nothing for so long ends the soak.
const PATIENCE: Duration = Duration::from_secs(60);
/// Before a message is tried again.
const PAUSE: Duration = Duration::from_millis(500);
/// Few wake-ups, and nobody sees 5 ms.
const TICK: Duration = Duration::from_millis(5);
const TELL_EVERY: Duration = Duration::from_secs(10);
/// What was sent within the time may be acknowledged so long after it.
const GRACE: Duration = Duration::from_secs(1);
/// As rare as in life.
const ANOMALIES: f64 = 0.001;
/// So many anomalies are planted at least, so that a short run has some to measure; but not so many that they are the rule.
const ANOMALIES_MIN: f64 = 50.0;
const ANOMALIES_MAX: f64 = 0.05;

/// What was sent.
#[derive(Debug, Default)]
pub struct Load {
    /// The numbers of the messages that the broker has taken, by device, in order.
    pub taken: BTreeMap<String, Vec<i64>>,
    /// How many these are, and how many of them within the time.
    pub messages: u64,
    pub in_time: u64,
    /// Messages that were sent again since nobody knew whether they had been taken: their publisher's own duplicates.
    pub sent_again: u64,
    /// Messages that the broker refused, by its reason.
    pub refused: BTreeMap<String, u64>,
    /// How long it was sent; shorter than asked for where it was stopped.
    pub duration: Duration,
}

impl Load {
    pub fn devices(&self) -> impl Iterator<Item = &str> {
        self.taken.keys().map(String::as_str)
    }
}

/// What a payload of the simulator says.
#[derive(Deserialize)]
struct Said {
    device_id: String,
    timestamp: String,
    seq: i64,
}

/// A message on its way.
struct Sending {
    device: String,
    number: i64,
    message: Resent,
    /// It was sent before, and nobody knows what became of it.
    is_again: bool,
}

/// Sends until the time is over or somebody presses Ctrl-C.
///
/// # Errors
/// The source's schema wants what the fleet does not send, or the broker takes nothing.
pub async fn run(door: &mut Door, prefix: &str, options: &Options) -> Result<Load, String> {
    let topic = door.topic_of(prefix.trim_end_matches('-')).ok_or("the source reads no topic")?;
    let config = SimulatorConfig {
        devices: options.devices,
        prefix: prefix.to_owned(),
        rate: Some(options.rate),
        duration: Some(DurationText(options.duration)),
        topic,
        anomaly_probability: anomalies(options.rate * options.duration.as_secs_f64()),
        ..SimulatorConfig::default()
    };
    let (start_us, started) = (now_us(), Instant::now());
    let mut readings = config.readings(start_us).map_err(|error| format!("{}: {}", error.key, error.message))?;
    let mut load = Load::default();
    let mut stop = std::pin::pin!(tokio::signal::ctrl_c());
    let mut told = started;
    let mut sending = Vec::new();
    while let Some(due_us) = readings.due_us() {
        let elapsed_us = i64::try_from(started.elapsed().as_micros()).unwrap_or(i64::MAX);
        if due_us - start_us > elapsed_us {
            let wait = Duration::from_micros((due_us - start_us - elapsed_us).unsigned_abs()).max(TICK);
            tokio::select! {
                biased;
                _ = &mut stop => break,
                () = tokio::time::sleep(wait) => continue,
            }
        }
        if let Some(message) = readings.take() {
            sending.push(sent_as(door, message.payload, message.topic)?);
        }
        let more_is_due = readings.due_us().is_some_and(|due_us| due_us - start_us <= elapsed_us);
        if sending.len() < CHUNK && more_is_due {
            continue;
        }
        // To its end: what is under way would be neither sent nor not.
        send(door, std::mem::take(&mut sending), &mut load, started + options.duration + GRACE).await?;
        if stop.as_mut().now_or_never().is_some() {
            break;
        }
        if told.elapsed() >= TELL_EVERY {
            told = Instant::now();
            let rate = load.messages as f64 / started.elapsed().as_secs_f64();
            eprintln!("soak: {} messages taken, {rate:.1} a second", grouped(load.messages));
        }
    }
    // What was sent again came behind its successors.
    load.taken.values_mut().for_each(|numbers| numbers.sort_unstable());
    load.duration = started.elapsed().min(options.duration);
    if load.messages == 0 {
        let why = load.refused.keys().next().map_or("none was due", String::as_str);
        return Err(format!("no message was sent: {why}"));
    }
    Ok(load)
}

/// The share of so many messages that is an anomaly.
fn anomalies(messages: f64) -> f64 {
    (ANOMALIES_MIN / messages.max(1.0)).clamp(ANOMALIES, ANOMALIES_MAX)
}

fn sent_as(door: &Door, payload: &[u8], topic: &str) -> Result<Sending, String> {
    let said: Said = serde_json::from_slice(payload).map_err(|error| format!("the fleet sends no row: {error}"))?;
    let number = if door.numbers_are_times() { parse_us(&said.timestamp, 0)? } else { said.seq };
    let row = String::from_utf8_lossy(payload).into_owned();
    Ok(Sending { device: said.device_id, number, message: door.message(row, topic)?, is_again: false })
}

/// Sends messages until each is taken or refused.
async fn send(door: &mut Door, mut sending: Vec<Sending>, load: &mut Load, until: Instant) -> Result<(), String> {
    let began = Instant::now();
    while !sending.is_empty() {
        let messages: Vec<Resent> = sending.iter().map(|sending| sending.message.clone()).collect();
        let (outcomes, mut why) = match door.send(&messages).await {
            Ok(outcomes) => (outcomes, String::new()),
            Err(why) => (vec![Err(NotSent::Later(why.clone())); messages.len()], why),
        };
        let is_in_time = Instant::now() <= until;
        let mut again = Vec::new();
        for (mut sending, outcome) in sending.into_iter().zip(outcomes) {
            match outcome {
                Ok(()) => {
                    load.messages += 1;
                    load.in_time += u64::from(is_in_time);
                    load.taken.entry(sending.device).or_default().push(sending.number);
                }
                // A pipeline that has just started has not subscribed yet: what nobody took is sent when somebody does.
                Err(NotSent::Refused(reason)) if load.messages == 0 => {
                    why = reason;
                    again.push(sending);
                }
                Err(NotSent::Refused(why)) => *load.refused.entry(why).or_default() += 1,
                Err(NotSent::Later(reason)) => {
                    load.sent_again += u64::from(!sending.is_again);
                    sending.is_again = true;
                    why = reason;
                    again.push(sending);
                }
            }
        }
        if !again.is_empty() {
            if began.elapsed() > PATIENCE {
                return Err(format!("the broker has taken nothing for {} s: {why}", PATIENCE.as_secs()));
            }
            tokio::time::sleep(PAUSE).await;
        }
        sending = again;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_run_has_anomalies_to_measure_and_a_long_one_as_few_as_life() {
        let shares = [600_000.0, 5_000.0, 1_000.0, 10.0, 0.0].map(anomalies);
        assert_eq!(shares, [0.001, 0.01, 0.05, 0.05, 0.05]);
    }
}
