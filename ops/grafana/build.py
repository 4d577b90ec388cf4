#!/usr/bin/env python3
"""Writes dashboards/*.json, which Grafana reads: the panels are said here once, without their hundred lines of form.

    ops/grafana/build.py            write them
    ops/grafana/build.py --check    exit with 1 if they are not what this file says
"""

import json
import sys
from pathlib import Path

FOLDER = Path(__file__).parent / "dashboards"
PROMETHEUS = {"type": "prometheus", "uid": "${prometheus}"}
TIMESCALEDB = {"type": "grafana-postgresql-datasource", "uid": "${timescaledb}"}
# Devices that `pipeline verify` and `soak` make up begin with pipeline-verify-: whatever tells of devices leaves them out.
# Every query of Prometheus is about the pipelines that are chosen above the panels.
CHOSEN = 'pipeline=~"$pipeline"'


class Prom:
    """A query of Prometheus; `instant` for figures and tables, which show the last value."""

    def __init__(self, expr, legend="", instant=False):
        self.expr, self.legend, self.instant = expr.replace("CHOSEN", CHOSEN), legend, instant

    def target(self, ref):
        target = {"refId": ref, "datasource": PROMETHEUS, "expr": self.expr, "legendFormat": self.legend or "__auto"}
        if self.instant:
            target |= {"instant": True, "range": False, "format": "table"}
        return target


class Sql:
    """A query of TimescaleDB; `series` if its first column is the time."""

    def __init__(self, sql, series=False):
        self.sql, self.series = " ".join(sql.split()), series

    def target(self, ref):
        form = "time_series" if self.series else "table"
        return {"refId": ref, "datasource": TIMESCALEDB, "rawQuery": True, "editorMode": "code", "format": form, "rawSql": self.sql}


def panel(kind, title, queries, description, width, height, unit="", limits=(), **options):
    """`limits`: (value, colour), from small to large, in colours beside their meaning in the description."""
    queries = queries if isinstance(queries, list) else [queries]
    steps = [{"color": "green", "value": None}] + [{"color": colour, "value": value} for value, colour in limits]
    defaults = {"unit": unit, "thresholds": {"mode": "absolute", "steps": steps}} if unit else {}
    if kind == "timeseries":
        defaults |= {"custom": {"fillOpacity": 8, "showPoints": "never"}, "min": 0}
    source = {id(PROMETHEUS): PROMETHEUS, id(TIMESCALEDB): TIMESCALEDB}
    used = [query.target("A")["datasource"] for query in queries]
    return {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": source[id(used[0])],
        "gridPos": {"w": width, "h": height},
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": [query.target("ABCDEFGH"[index]) for index, query in enumerate(queries)],
    }


def stat(title, query, description, unit="short", limits=()):
    # An instant query in table form has a column for each label: the figure is the value alone.
    reduce = {"calcs": ["lastNotNull"], "fields": "/^(Value|value)$/", "values": False}
    return panel("stat", title, query, description, 4, 4, unit, limits, reduceOptions=reduce, colorMode="value")


def chart(title, queries, description, unit="short", width=12):
    legend = {"displayMode": "list", "placement": "bottom", "showLegend": True}
    return panel("timeseries", title, queries, description, width, 8, unit, legend=legend, tooltip={"mode": "multi"})


def table(title, query, description, width=12):
    return panel("table", title, query, description, width, 8)


def row(title):
    return {"type": "row", "title": title, "gridPos": {"w": 24, "h": 1}, "collapsed": False, "panels": []}


def place(panels):
    """Left to right, then on; in rows of 24 columns."""
    x = y = height = 0
    for number, entry in enumerate(panels, 1):
        size = entry["gridPos"]
        if x + size["w"] > 24:
            x, y, height = 0, y + height, 0
        entry["id"] = number
        entry["gridPos"] = {"x": x, "y": y, **size}
        x, height = x + size["w"], max(height, size["h"])
    return panels


def source(name, kind):
    return {"name": name, "label": name, "type": "datasource", "query": kind, "refresh": 1, "hide": 0}


def variables(*more):
    pipeline = {
        "name": "pipeline",
        "label": "pipeline",
        "type": "query",
        "datasource": PROMETHEUS,
        "query": {"query": "label_values(pipeline_build_info, pipeline)", "refId": "pipeline"},
        "refresh": 2,
        "includeAll": True,
        "allValue": ".+",
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
        "sort": 1,
    }
    return [source("prometheus", "prometheus"), source("timescaledb", TIMESCALEDB["type"]), pipeline, *more]


def dashboard(uid, title, description, panels, more=()):
    return {
        "uid": uid,
        "id": None,
        "title": title,
        "description": description,
        "tags": ["pipeline"],
        "links": [{"type": "dashboards", "title": "pipeline", "tags": ["pipeline"], "asDropdown": False, "includeVars": True, "keepTime": True}],
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "schemaVersion": 39,
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": variables(*more)},
        "annotations": {"list": []},
        "panels": place(panels),
        "version": 1,
    }


DEVICE = {
    "name": "device",
    "label": "device",
    "type": "query",
    "datasource": TIMESCALEDB,
    "query": "SELECT device_id FROM device_status WHERE device_id NOT LIKE 'pipeline-verify-%' ORDER BY device_id LIMIT 10000",
    "refresh": 1,
    "includeAll": False,
    "multi": False,
    "sort": 3,
}

OVERVIEW = dashboard(
    "iot-overview",
    "IoT overview",
    "Is all well, and if not, where? The other dashboards go into it.",
    [
        stat("Received a second", Prom("sum(rate(pipeline_source_received_records_total{CHOSEN}[$__rate_interval]))", instant=True), "Messages that came from the sources.", "cps"),
        stat("Stored a second", Prom('sum(rate(pipeline_sink_stored_rows_total{CHOSEN, component_type="timescaledb"}[$__rate_interval]))', instant=True), "Rows that were committed, in all tables.", "cps"),
        stat("Stages not at work", Prom("count(pipeline_component_up{CHOSEN} == 0) or vector(0)", instant=True), "Starting, trying again, waiting for a person, or failed. Red from 1.", "short", [(1, "red")]),
        stat("Oldest row not stored", Prom("max(pipeline_sink_lag_seconds{CHOSEN})", instant=True), "Of any sink. Orange from a minute, red from a quarter of an hour.", "s", [(60, "orange"), (900, "red")]),
        stat("Devices heard within 10 minutes", Sql("SELECT count(*) FILTER (WHERE timestamp > now() - interval '10 minutes') * 1.0 / NULLIF(count(*), 0) AS value FROM device_status WHERE device_id NOT LIKE 'pipeline-verify-%'"), "Of all that ever were. Green from 99.5 %.", "percentunit"),
        stat("Refused", Prom('sum(rate(pipeline_component_sent_rows_total{CHOSEN, port="rejected"}[$__rate_interval])) / sum(rate(pipeline_source_received_records_total{CHOSEN}[$__rate_interval]))', instant=True), "Share of what was received that became a dead letter. Red from 1 %.", "percentunit", [(0.01, "red")]),
        chart("Rows a second", [Prom("sum by (component) (rate(pipeline_source_received_records_total{CHOSEN}[$__rate_interval]))", "{{component}} received"), Prom("sum by (component) (rate(pipeline_sink_stored_rows_total{CHOSEN}[$__rate_interval]))", "{{component}} stored")], "What comes in, and what each sink has stored.", "cps"),
        chart("From receipt to commit, 99 %", Prom('histogram_quantile(0.99, sum by (component, le) (rate(pipeline_end_to_end_latency_seconds_bucket{CHOSEN, clock="received"}[$__rate_interval])))', "{{component}}"), "The slowest of a hundred rows, by sink. Lakes wait for their objects to fill.", "s"),
        chart("Busy", Prom('sum by (component) (rate(pipeline_component_time_seconds_total{CHOSEN, activity="busy"}[$__rate_interval]))', "{{component}}"), "Share of the time in a stage's own code. Near 1: it is the bottleneck.", "percentunit"),
        chart("Blocked", Prom('sum by (component) (rate(pipeline_component_time_seconds_total{CHOSEN, activity="blocked"}[$__rate_interval]))', "{{component}}"), "Share of the time that a stage waits for those behind it. The bottleneck is the first one behind that is not blocked.", "percentunit"),
        chart("Rows that wait on disk", Prom("sum by (to) (pipeline_edge_overflow_rows{CHOSEN})", "for {{to}}"), "For a sink that is slow or away."),
        chart("Spool", [Prom("sum by (component) (pipeline_spool_bytes{CHOSEN})", "{{component}}"), Prom("sum by (component) (pipeline_spool_max_bytes{CHOSEN})", "{{component}}, at most")], "Messages on disk until every sink has them. When full, no more is acknowledged to the broker.", "bytes"),
    ],
)

INGESTION = dashboard(
    "data-ingestion",
    "Data ingestion",
    "What comes, what becomes of it, and what is refused.",
    [
        chart("Received a second", Prom("sum by (pipeline, component) (rate(pipeline_source_received_records_total{CHOSEN}[$__rate_interval]))", "{{pipeline}} {{component}}"), "Messages from the broker, each counted once it is here.", "cps"),
        chart("Not decoded yet", Prom("sum by (component) (pipeline_source_waiting_records{CHOSEN})", "{{component}}"), "Taken in and on disk, not sent into the graph yet: the backlog after an outage."),
        chart("Connections", [Prom('sum by (component) (increase(pipeline_component_events_total{CHOSEN, event="connections_lost"}[$__rate_interval]))', "{{component}} lost"), Prom('sum by (component) (increase(pipeline_component_events_total{CHOSEN, event="session_lost"}[$__rate_interval]))', "{{component}} session lost"), Prom('sum by (component) (increase(pipeline_component_events_total{CHOSEN, event="redelivered"}[$__rate_interval]))', "{{component}} redelivered")], "To the broker. A session that was lost may have cost messages."),
        chart("Behind the time", Prom("time() - max by (component) (pipeline_watermark_timestamp_seconds{CHOSEN})", "{{component}}"), "How old the newest row is by the devices' clocks. Below 0 a clock is ahead.", "s"),
        chart("Queues", Prom("max by (to) (pipeline_edge_waiting_rows{CHOSEN} / pipeline_edge_capacity_rows{CHOSEN})", "before {{to}}"), "How full they are. A queue that is full all the time is before the bottleneck.", "percentunit"),
        chart("Retries", Prom("sum by (component) (increase(pipeline_sink_retries_total{CHOSEN}[$__rate_interval]))", "{{component}}"), "Writes that failed and were made again."),
        row("Refused"),
        chart("Refused a second, by stage", Prom('sum by (component) (rate(pipeline_component_sent_rows_total{CHOSEN, port="rejected"}[$__rate_interval]))', "{{component}}"), "Dead letters.", "cps"),
        chart("Dead letters by reason", Sql("SELECT time_bucket('$__interval', received_at) AS time, reason AS metric, count(*) AS value FROM dead_letters WHERE $__timeFilter(received_at) GROUP BY 1, 2 ORDER BY 1", series=True), "Of the table dead_letters."),
        table("Last dead letters", Sql("SELECT received_at, stage, reason, detail, topic FROM dead_letters WHERE $__timeFilter(received_at) ORDER BY received_at DESC LIMIT 50"), "With payloads: pipeline dlq show.", 24),
        row("Stored"),
        chart("Readings stored", Sql("SELECT time_bucket(greatest('$__interval'::interval, interval '1 minute'), window_start) AS time, sum(readings) AS value FROM telemetry_minutes WHERE $__timeFilter(window_start) GROUP BY 1 ORDER BY 1", series=True), "By the time of the devices; whole minutes."),
        table("Tables", Sql("SELECT hypertable_name AS name, hypertable_size(format('%I.%I', hypertable_schema, hypertable_name)::regclass) / 1048576.0 AS mebibytes, num_chunks AS chunks, approximate_row_count(format('%I.%I', hypertable_schema, hypertable_name)::regclass) AS rows_about FROM timescaledb_information.hypertables ORDER BY 1"), "Size with indexes. The number of rows is the planner's estimate."),
    ],
)

DEVICES = dashboard(
    "device-health",
    "Device health",
    "Which devices are silent, strange or chatty; and one of them closely.",
    [
        stat("Known", Sql("SELECT count(*) AS value FROM device_status WHERE device_id NOT LIKE 'pipeline-verify-%'"), "Devices that ever sent."),
        stat("Heard within 10 minutes", Sql("SELECT count(*) AS value FROM device_status WHERE device_id NOT LIKE 'pipeline-verify-%' AND timestamp > now() - interval '10 minutes'"), "By the time of the devices."),
        stat("Silent for over an hour", Sql("SELECT count(*) AS value FROM device_status WHERE device_id NOT LIKE 'pipeline-verify-%' AND timestamp <= now() - interval '1 hour'"), "The runbook's P3. Red from 1.", "short", [(1, "red")]),
        stat("Connectivity", Sql("SELECT count(*) FILTER (WHERE timestamp > now() - interval '10 minutes') * 1.0 / NULLIF(count(*), 0) AS value FROM device_status WHERE device_id NOT LIKE 'pipeline-verify-%'"), "Heard within 10 minutes, of all. The objective is 99.5 %.", "percentunit"),
        stat("Anomalies", Sql("SELECT count(*) AS value FROM anomalies WHERE device_id NOT LIKE 'pipeline-verify-%' AND $__timeFilter(event_time)"), "In the time that is shown."),
        stat("Readings", Sql("SELECT coalesce(sum(readings), 0) AS value FROM telemetry_minutes WHERE $__timeFilter(window_start)"), "In the time that is shown; whole minutes."),
        table("Silent the longest", Sql("SELECT device_id, timestamp AS last_heard, round(extract(epoch FROM now() - timestamp)) AS seconds, temperature, humidity FROM device_status WHERE device_id NOT LIKE 'pipeline-verify-%' ORDER BY timestamp LIMIT 50"), "With their last reading."),
        table("Fell silent, came back", Sql("SELECT noticed_at, device_id, status, last_seen, round(silent_seconds::numeric) AS silent_seconds FROM device_alerts WHERE $__timeFilter(last_seen) ORDER BY last_seen DESC LIMIT 50"), "As the transform `silence` told it."),
        chart("Fell silent, came back", Prom('sum by (event) (increase(pipeline_component_events_total{CHOSEN, event=~"silent_devices|returned_devices"}[$__rate_interval]))', "{{event}}"), "Many at once share a cause."),
        chart("Anomalies by severity", Sql("SELECT time_bucket('$__interval', event_time) AS time, severity AS metric, count(*) AS value FROM anomalies WHERE device_id NOT LIKE 'pipeline-verify-%' AND $__timeFilter(event_time) GROUP BY 1, 2 ORDER BY 1", series=True), "By the time of the devices."),
        table("Most anomalies", Sql("SELECT device_id, metric, count(*) AS anomalies, max(abs(zscore)) AS strongest, max(event_time) AS last FROM anomalies WHERE device_id NOT LIKE 'pipeline-verify-%' AND $__timeFilter(event_time) GROUP BY 1, 2 ORDER BY 3 DESC LIMIT 20"), "Devices and what they measure."),
        table("Last anomalies", Sql("SELECT event_time, device_id, metric, value, mean, zscore, severity FROM anomalies WHERE device_id NOT LIKE 'pipeline-verify-%' AND $__timeFilter(event_time) ORDER BY event_time DESC LIMIT 50"), "With what was usual then."),
        table("Most readings", Sql("SELECT device_id, sum(readings) AS readings, round((sum(temperature_mean * readings) / NULLIF(sum(readings) FILTER (WHERE temperature_mean IS NOT NULL), 0))::numeric, 2) AS temperature, round((sum(humidity_mean * readings) / NULLIF(sum(readings) FILTER (WHERE humidity_mean IS NOT NULL), 0))::numeric, 2) AS humidity FROM telemetry_minutes WHERE device_id NOT LIKE 'pipeline-verify-%' AND $__timeFilter(window_start) GROUP BY 1 ORDER BY 2 DESC LIMIT 20"), "In the time that is shown, with their means."),
        chart("Temperature of all", Sql("SELECT time_bucket(greatest('$__interval'::interval, interval '1 minute'), window_start) AS time, min(temperature_min) AS lowest, sum(temperature_mean * readings) / NULLIF(sum(readings) FILTER (WHERE temperature_mean IS NOT NULL), 0) AS mean, max(temperature_max) AS highest FROM telemetry_minutes WHERE $__timeFilter(window_start) GROUP BY 1 ORDER BY 1", series=True), "Lowest, mean and highest."),
        row("One device: $device"),
        chart("Temperature and humidity of $device", Sql("SELECT time_bucket('$__interval', timestamp) AS time, avg(temperature) AS temperature, avg(humidity) AS humidity FROM telemetry WHERE device_id = '$device' AND $__timeFilter(timestamp) GROUP BY 1 ORDER BY 1", series=True), "Of the readings themselves, averaged to the width of the chart.", width=24),
        table("Last readings of $device", Sql("SELECT timestamp, temperature, humidity, seq, temperature_score, humidity_score, anomaly FROM telemetry WHERE device_id = '$device' AND $__timeFilter(timestamp) ORDER BY timestamp DESC LIMIT 50"), "As they came.", 24),
    ],
    [DEVICE],
)

def burn(slo, window):
    """How many times faster than it may the budget of an objective is used up: as pipeline:slo_burn of the alerts."""
    missed = f'1 - sum by (slo) (rate(pipeline_slo_good_events_total{{CHOSEN, slo=~"{slo}"}}[{window}])) / sum by (slo) (rate(pipeline_slo_events_total{{CHOSEN, slo=~"{slo}"}}[{window}]))'
    return f'({missed}) / on (slo) (1 - max by (slo) (pipeline_slo_objective_ratio{{CHOSEN, slo=~"{slo}"}}))'


def kept(slo):
    """Share of the last hour's events that were as [slo] wants them."""
    return f'sum(increase(pipeline_slo_good_events_total{{CHOSEN, slo="{slo}"}}[1h])) / sum(increase(pipeline_slo_events_total{{CHOSEN, slo="{slo}"}}[1h]))'


LATENCY = 'pipeline_end_to_end_latency_seconds_bucket{CHOSEN, component="telemetry_table", clock="event"}[$__rate_interval]'

SLO = dashboard(
    "slo",
    "Service levels",
    "What the pipeline's file asks for ([slo]), target against actual, and how fast the budgets burn. `pipeline slo` has the same in exact numbers.",
    [
        stat("Ingestion", Prom("sum(rate(pipeline_source_received_records_total{CHOSEN}[5m]))", instant=True), "Messages a second over 5 minutes. The target is ingestion_min.", "cps"),
        stat("Stored in time", Prom(kept("latency"), instant=True), "Share of the last hour's rows, from the device's own time to the commit. The target is 99 % within latency_p99.", "percentunit"),
        stat("Not lost", Prom(kept("loss"), instant=True), "Share of the last hour's messages, with the numbers that never came where a transform `gaps` looks for them. The target is all but loss_max.", "percentunit"),
        stat("Connectivity", Prom("sum(pipeline_devices_connected{CHOSEN}) / sum(pipeline_devices_known{CHOSEN})", instant=True), "Devices that are not silent, of all that are known. The target is devices_min.", "percentunit"),
        stat("Anomalies in time", Prom("(" + kept("anomaly") + ") or vector(1)", instant=True), "Share of the last hour's. The target is 99 % within anomaly_p99. Without anomalies none is late.", "percentunit"),
        stat("Not accounted for", Prom("max(abs(pipeline_conservation_imbalance_rows{CHOSEN}))", instant=True), "Rows. Moves while rows move; what stays while nothing does is a bug.", "short"),
        chart("How fast each budget burns, over an hour", [Prom(burn(".+", "1h"), "{{slo}}")], "1: the month's budget lasts a month. 14.4 over an hour pages. Only objectives that the file has are there."),
        chart("How fast the latency budget burns", [Prom(burn("latency", window), window) for window in ("5m", "1h", "6h", "3d")], "14.4 over an hour and five minutes pages, and so does 6 over six hours; 1 over three days is a ticket."),
        chart("Latency, by the devices' time", [Prom(f"histogram_quantile({share}, sum by (le) (rate({LATENCY})))", legend) for share, legend in ((0.5, "half"), (0.95, "95 %"), (0.99, "99 %"))], "To the commit of telemetry_table.", "s"),
        chart("Latency of anomalies, 99 %", Prom('histogram_quantile(0.99, sum by (le) (rate(pipeline_end_to_end_latency_seconds_bucket{CHOSEN, component="anomalies_table", clock="event"}[5m])))', "99 %"), "From the reading to the row in anomalies_table.", "s"),
        chart("Devices", [Prom("sum by (pipeline) (pipeline_devices_known{CHOSEN})", "{{pipeline}} known"), Prom("sum by (pipeline) (pipeline_devices_connected{CHOSEN})", "{{pipeline}} connected")], "As a transform `silence` follows them."),
        chart("Queries and dashboards, 95 of 100", Prom("max by (slo) (pipeline_slo_measured_seconds{CHOSEN})", "{{slo}}"), "What the pipeline measures in its database, where [slo] has measure_every: each query of these dashboards, and all of one after the other.", "s"),
        chart("Age of the newest commit", Prom("time() - max by (component) (pipeline_sink_last_commit_timestamp_seconds{CHOSEN})", "{{component}}"), "A sink to which nothing comes has nothing to commit.", "s"),
        chart("Devices heard", Sql("SELECT time_bucket(greatest('$__interval'::interval, interval '1 minute'), window_start) AS time, count(DISTINCT device_id) AS value FROM telemetry_minutes WHERE $__timeFilter(window_start) AND device_id NOT LIKE 'pipeline-verify-%' GROUP BY 1 ORDER BY 1", series=True), "That sent at least one reading in a minute, by what is stored."),
    ],
)


def main():
    is_check = sys.argv[1:] == ["--check"]
    differ = []
    for board in (OVERVIEW, INGESTION, DEVICES, SLO):
        path, text = FOLDER / f"{board['uid']}.json", json.dumps(board, indent=2, ensure_ascii=False) + "\n"
        if not is_check:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            differ.append(path.name)
    if differ:
        sys.exit(f"not what build.py says: {', '.join(differ)}; run build.py")


if __name__ == "__main__":
    main()
