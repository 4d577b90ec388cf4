//! As many rows as a database in use has, in the tables that pipelines/iot.toml has made.

use tokio_postgres::Client;

/// Whose readings these are.
pub const DEVICES: u64 = 1_000;

/// So many readings in all, one a second and device until now; and what goes with them.
pub async fn generate(client: &Client, readings: u64) {
    let seconds = readings.div_ceil(DEVICES);
    let every_device = format!("generate_series(1, {DEVICES}) AS device");
    let statements = [
        format!(
            "INSERT INTO telemetry (device_id, timestamp, temperature, humidity, seq, temperature_score, humidity_score, anomaly) \
             SELECT 'generated-' || device, now() - second * interval '1 second', 20 + 5 * sin(second / 600.0) + random(), \
             50 + 10 * random(), {seconds} - second, random(), random(), false \
             FROM generate_series(0, {seconds} - 1) AS second, {every_device}"
        ),
        format!(
            "INSERT INTO telemetry_minutes (device_id, window_start, window_end, humidity_max, humidity_mean, humidity_min, \
             readings, temperature_max, temperature_mean, temperature_min, temperature_p95) \
             SELECT 'generated-' || device, minute, minute + interval '1 minute', 60, 55, 50, 60, 26, 21, 19, 25 \
             FROM generate_series(date_trunc('minute', now() - {seconds} * interval '1 second'), now(), '1 minute') AS minute, \
             {every_device}"
        ),
        format!(
            "INSERT INTO device_status (device_id, timestamp, temperature, humidity, anomaly) \
             SELECT 'generated-' || device, now() - (device % 90) * interval '1 minute', 21, 55, false FROM {every_device}"
        ),
        format!(
            "INSERT INTO device_alerts (device_id, status, last_seen, noticed_at, silent_seconds, allowed_seconds) \
             SELECT 'generated-' || device, status, now() - (device % {seconds}) * interval '1 second', now(), 90, 60 \
             FROM {every_device}, unnest(ARRAY['silent', 'returned']) AS status"
        ),
        // One reading in a thousand is an anomaly, one is refused.
        format!(
            "INSERT INTO anomalies (detected_at, device_id, event_time, metric, value, mean, stddev, zscore, severity, window_size, \
             method, pipeline) \
             SELECT now(), 'generated-' || (number % {DEVICES}), now() - (number % {seconds}) * interval '1 second' \
             - number * interval '1 microsecond', 'temperature', 40, 21, 1, 19, \
             CASE WHEN number % 10 = 0 THEN 'critical' ELSE 'warning' END, 60, 'zscore', 'iot' \
             FROM generate_series(1, {readings} / 1000) AS number"
        ),
        format!(
            "INSERT INTO dead_letters (received_at, stage, reason, detail, topic, payload) \
             SELECT now() - (number % {seconds}) * interval '1 second', 'valid', \
             (ARRAY['range', 'bad_json', 'missing'])[1 + number % 3], 'as generated', 'iot/telemetry', '\\x7b7d' \
             FROM generate_series(1, {readings} / 1000) AS number"
        ),
        "ANALYZE".to_owned(),
    ];
    for statement in statements {
        client.batch_execute(&statement).await.unwrap_or_else(|error| panic!("{statement}: {error:?}"));
    }
}
