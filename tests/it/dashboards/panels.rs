//! The dashboards that are shipped, and what each panel asks.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::process::root;

/// A dashboard as it is shipped.
pub struct Dashboard {
    pub uid: String,
    pub panels: Vec<Panel>,
}

/// A panel that shows something.
pub struct Panel {
    pub title: String,
    pub is_stat: bool,
    pub promql: Vec<String>,
    pub sql: Vec<String>,
}

/// All of them, by name.
pub fn dashboards() -> Vec<Dashboard> {
    let folder = root().join("ops/grafana/dashboards");
    let mut files: Vec<_> =
        std::fs::read_dir(folder).expect("the dashboards").flatten().map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    files.sort();
    files
        .iter()
        .map(|path| {
            let text = std::fs::read_to_string(path).expect("a dashboard");
            let json: Value = serde_json::from_str(&text).expect("JSON");
            let uid = json["uid"].as_str().expect("a uid");
            assert_eq!(path.file_stem().and_then(|name| name.to_str()), Some(uid), "named as its uid");
            checked(&json);
            let panels = json["panels"].as_array().expect("panels");
            let panels = panels.iter().filter(|panel| panel["type"] != "row").map(Panel::of).collect();
            Dashboard { uid: uid.to_owned(), panels }
        })
        .collect()
}

/// What Grafana would not say: panels with one id, on top of each other or without a text, unknown data sources.
fn checked(dashboard: &Value) {
    let title = &dashboard["title"];
    assert!(dashboard["id"].is_null(), "{title}: an id is of one Grafana");
    let variables = dashboard["templating"]["list"].as_array().expect("variables");
    let sources: BTreeSet<String> = variables
        .iter()
        .filter(|variable| variable["type"] == "datasource")
        .map(|variable| format!("${{{}}}", variable["name"].as_str().expect("a name")))
        .collect();
    let (mut ids, mut cells) = (BTreeSet::new(), BTreeSet::new());
    for panel in dashboard["panels"].as_array().expect("panels") {
        assert!(ids.insert(panel["id"].as_u64().expect("a number")), "{title}: {panel}");
        let of = |name: &str| panel["gridPos"][name].as_u64().expect("a number");
        for (x, y) in (of("x")..of("x") + of("w")).flat_map(|x| (of("y")..of("y") + of("h")).map(move |y| (x, y))) {
            assert!(x < 24 && cells.insert((x, y)), "{title}: {} lies over another", panel["title"]);
        }
        if panel["type"] == "row" {
            continue;
        }
        assert!(panel["description"].as_str().is_some_and(|text| !text.is_empty()), "{title}: {}", panel["title"]);
        for target in panel["targets"].as_array().expect("targets") {
            let source = target["datasource"]["uid"].as_str().expect("a data source");
            assert!(sources.contains(source), "{title}: {source}");
        }
    }
}

impl Panel {
    fn of(panel: &Value) -> Self {
        let targets = panel["targets"].as_array().expect("targets");
        let all = |key: &str| targets.iter().filter_map(|target| target[key].as_str().map(str::to_owned)).collect();
        Self {
            title: panel["title"].as_str().expect("a title").to_owned(),
            is_stat: panel["type"] == "stat",
            promql: all("expr"),
            sql: all("rawSql"),
        }
    }
}

/// As Grafana sends it for all pipelines, where Prometheus scrapes once a second.
pub fn expanded_promql(expression: &str) -> String {
    let expanded = expression.replace("$__rate_interval", "10s").replace("$pipeline", ".+");
    assert!(!expanded.contains('$'), "{expanded}");
    expanded
}

/// As Grafana sends it for a stretch of time, in milliseconds since 1970, on a chart of a thousand points.
pub fn expanded_sql(sql: &str, from_ms: u64, to_ms: u64, device: &str) -> String {
    let interval = format!("{}ms", ((to_ms - from_ms) / 1_000).max(1_000));
    let mut expanded = sql.replace("$__interval", &interval).replace("$device", device);
    while let Some(start) = expanded.find("$__timeFilter(") {
        let open = start + "$__timeFilter(".len();
        let close = open + expanded[open..].find(')').expect("an end");
        let column = expanded[open..close].to_owned();
        let time = |ms: u64| format!("to_timestamp({}.{:03})", ms / 1_000, ms % 1_000);
        let filter = format!("{column} BETWEEN {} AND {}", time(from_ms), time(to_ms));
        expanded.replace_range(start..=close, &filter);
    }
    assert!(!expanded.contains('$'), "{expanded}");
    expanded
}
