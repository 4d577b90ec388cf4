//! The queries of the dashboards that are shipped, as Grafana would ask them for the last hour.

use serde_json::Value;

/// As `ops/grafana/build.py` has written them.
const DASHBOARDS: [&str; 4] = [
    include_str!("../../ops/grafana/dashboards/iot-overview.json"),
    include_str!("../../ops/grafana/dashboards/data-ingestion.json"),
    include_str!("../../ops/grafana/dashboards/device-health.json"),
    include_str!("../../ops/grafana/dashboards/slo.json"),
];

/// A dashboard and what it asks a database.
pub(super) struct Dashboard {
    pub(super) uid: String,
    /// The panel's title and its SQL.
    pub(super) queries: Vec<(String, String)>,
}

/// Those that ask a database at all.
pub(super) fn shipped() -> Vec<Dashboard> {
    let all = DASHBOARDS.iter().filter_map(|text| dashboard(&serde_json::from_str(text).ok()?));
    all.filter(|dashboard| !dashboard.queries.is_empty()).collect()
}

fn dashboard(json: &Value) -> Option<Dashboard> {
    let panels = json["panels"].as_array()?;
    let queries = panels.iter().flat_map(|panel| {
        let title = panel["title"].as_str().unwrap_or_default();
        let targets = panel["targets"].as_array().into_iter().flatten();
        targets.filter_map(|target| Some((title.to_owned(), expanded(target["rawSql"].as_str()?))))
    });
    Some(Dashboard { uid: json["uid"].as_str()?.to_owned(), queries: queries.collect() })
}

/// For the last hour on a chart of a thousand points, and for some device.
fn expanded(sql: &str) -> String {
    const FILTER: &str = "$__timeFilter(";
    let device = "(SELECT device_id FROM device_status LIMIT 1)";
    let sql = sql.replace("$__interval", "3600ms").replace("'$device'", device);
    let mut parts = sql.split(FILTER);
    let mut expanded = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (column, rest) = part.split_once(')').unwrap_or((part, ""));
        expanded.push_str(&format!("{column} BETWEEN now() - interval '1 hour' AND now(){rest}"));
    }
    expanded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_dashboard_that_asks_a_database_is_there_and_nothing_of_grafana_is_left_in_its_sql() {
        let shipped = shipped();
        let uids: Vec<&str> = shipped.iter().map(|dashboard| dashboard.uid.as_str()).collect();
        assert_eq!(uids, ["iot-overview", "data-ingestion", "device-health", "slo"]);
        let sql: Vec<&str> =
            shipped.iter().flat_map(|dashboard| &dashboard.queries).map(|(_, sql)| sql.as_str()).collect();
        assert!(sql.len() > 20 && sql.iter().all(|sql| sql.starts_with("SELECT") && !sql.contains('$')), "{sql:#?}");
    }

    #[test]
    fn a_time_filter_is_the_last_hour() {
        let sql = "SELECT 1 WHERE $__timeFilter(a) AND device_id = '$device' AND f('$__interval')";
        assert_eq!(
            expanded(sql),
            "SELECT 1 WHERE a BETWEEN now() - interval '1 hour' AND now() AND device_id = (SELECT device_id FROM \
             device_status LIMIT 1) AND f('3600ms')"
        );
    }
}
