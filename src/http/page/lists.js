// Sinks, anomalies, refused rows, devices, and the graph as a table.

import { ago, bytes, compact, count, h, percent, rate, reading, s, say, seconds, set } from "./format.js";
import { spark } from "./charts.js";

/** Brings a list up to date that is made anew only where something in it has changed. */
function renew(parent, shape, make) {
  const text = JSON.stringify(shape);
  if (parent.shape === text) return false;
  parent.shape = text;
  parent.replaceChildren(...make());
  return true;
}

const fact = (what, value) => h("div", {}, h("dt", {}, what), h("dd", {}, value));
const IN_TROUBLE = ["retrying", "paused", "failed"];

export function showSinks(parent, snapshot) {
  const sinks = snapshot.stages.filter((stage) => stage.kind === "sink");
  renew(parent, sinks.map((sink) => sink.name), () =>
    sinks.map((sink) => h("article", { class: "sink" },
      h("div", { class: "head" }, h("b", {}, sink.name), h("span", { class: "pill" })), h("dl"), h("p", { class: "error", hidden: "" }))));
  sinks.forEach((sink, index) => {
    const [head, facts, error] = parent.children[index].children;
    set(parent.children[index], "data-trouble", IN_TROUBLE.includes(sink.state));
    set(parent.children[index], "data-sink", sink.name);
    set(head.lastChild, "data-state", sink.state);
    say(head.lastChild, sink.state);
    const edges = snapshot.edges.filter((edge) => edge.to === sink.name);
    const onDisk = edges.reduce((sum, edge) => sum + edge.on_disk, 0);
    const waiting = edges.reduce((sum, edge) => sum + edge.waiting, 0) + onDisk;
    const onDiskBytes = edges.reduce((sum, edge) => sum + edge.on_disk_bytes, 0);
    const latency = sink.latency;
    const shown = [
      ["Stores", rate(sink.stored_per_second)],
      ["Stored", `${compact(sink.stored)} rows`],
      ["Latency, half and 99%", latency ? `${seconds(latency.p50)} · ${seconds(latency.p99)}` : "–"],
      ["Oldest not stored", sink.lag_seconds > 0 ? seconds(sink.lag_seconds) : "none"],
      ["Wait for it", onDisk > 0 ? `${count(waiting)} (${bytes(onDiskBytes)} on disk)` : count(waiting)],
      ["To catch up", sink.backlog?.eta_seconds != null ? `about ${seconds(sink.backlog.eta_seconds)}` : onDisk > 0 || (waiting > 0 && IN_TROUBLE.includes(sink.state)) ? "grows" : "nothing"],
    ];
    renew(facts, shown, () => shown.map(([what, value]) => fact(what, value)));
    error.hidden = !sink.last_error;
    if (sink.last_error) {
      const hasPassed = !IN_TROUBLE.includes(sink.state);
      set(error, "data-passed", hasPassed);
      renew(error, [hasPassed, sink.last_error.text, ago(sink.last_error.at_us, snapshot.at_us)], () => [
        h("b", {}, `${hasPassed ? "Has passed" : "Can’t store"}, ${ago(sink.last_error.at_us, snapshot.at_us)}: `), sink.last_error.text,
      ].map((part) => (part instanceof Node ? part : h("span", {}, part))));
    }
  });
}

export function showStages(table, snapshot) {
  const body = table.tBodies[0];
  renew(body, snapshot.stages.map((stage) => stage.name), () =>
    snapshot.stages.map((stage) => {
      const reads = snapshot.edges.filter((edge) => edge.to === stage.name).map((edge) => (edge.port ? `${edge.from}.${edge.port}` : edge.from));
      return h("tr", {}, h("th", { scope: "row" }, stage.name), h("td", {}, h("span", { class: "pill" })),
        ...Array.from({ length: 6 }, () => h("td", { class: "number" })), h("td", {}, stage.type_name), h("td", {}, reads.join(", ") || "–"));
    }));
  snapshot.stages.forEach((stage, index) => {
    const cells = body.rows[index].cells;
    set(cells[1].firstChild, "data-state", stage.state);
    say(cells[1].firstChild, stage.state);
    const edges = snapshot.edges.filter((edge) => edge.to === stage.name);
    const waiting = edges.reduce((sum, edge) => sum + edge.waiting + edge.on_disk, 0) + (stage.spool?.records ?? 0);
    const oldest = Math.max(0, ...edges.map((edge) => edge.lag_seconds ?? 0));
    const figures = [rate(stage.rows_per_second), count(stage.rows), percent(stage.busy), percent(stage.blocked),
      oldest >= 1 ? `${count(waiting)}, ${seconds(oldest)}` : count(waiting), count(stage.rejected)];
    figures.forEach((text, place) => say(cells[place + 2], text));
  });
}

/** The times of a list that else has not changed. */
function showTimes(parent, nowUs) {
  for (const time of parent.querySelectorAll("[data-at]")) say(time, ago(Number(time.dataset.at), nowUs));
}

const when = (atUs) => h("span", { class: "meta", "data-at": atUs });

export function showAnomalies(parent, snapshot) {
  const shown = snapshot.anomalies;
  renew(parent, shown.map((anomaly) => [anomaly.at_us, anomaly.device, anomaly.metric, anomaly.series.length]), () =>
    shown.length === 0
      ? [h("li", { class: "empty" }, "None since this page was opened.")]
      : shown.map((anomaly) => h("li", {},
        h("div", { class: "line-head" }, h("span", {}, h("b", {}, h("bdi", {}, anomaly.device)), ` ${anomaly.metric}`), when(anomaly.at_us)),
        h("p", { class: "meta" }, `${reading(anomaly.value)} where ${reading(anomaly.expected)} was expected · score ${reading(anomaly.score)} · ${anomaly.severity} · ${anomaly.method}, by ${anomaly.stage}`),
        anomaly.series.length > 1 ? spark(anomaly, anomaly.metric) : null)));
  showTimes(parent, snapshot.at_us);
}

export function showRejects(parent, snapshot) {
  const shown = snapshot.rejects;
  renew(parent, shown, () =>
    shown.length === 0
      ? [h("li", { class: "empty" }, "None since this page was opened.")]
      : shown.map((reject) => h("li", {},
        h("div", { class: "line-head" }, h("span", {}, h("b", {}, reject.reason), ` by ${reject.stage}`), when(reject.at_us)),
        reject.detail ? h("p", {}, h("bdi", {}, reject.detail)) : null,
        reject.topic ? h("p", { class: "meta" }, "topic ", h("bdi", {}, reject.topic)) : null,
        h("code", {}, h("bdi", {}, reject.payload)))));
  showTimes(parent, snapshot.at_us);
}

const AGES = ["within 10 s", "within a minute", "within 5 minutes", "longer ago"];

export function showDevices(card, parent, meta, devices) {
  card.hidden = !devices;
  if (!devices) return;
  say(meta, `${count(devices.known)}${devices.is_bounded ? " and more" : ""} heard since this page was opened`);
  renew(parent, devices, () => {
    let from = 0;
    const bars = devices.by_age.map((number, age) => {
      const width = (number / devices.known) * 100;
      from += width;
      return s("rect", { class: `age-${age}`, x: from - width, y: 0, width, height: 14 });
    });
    const words = devices.by_age.map((number, age) =>
      h("li", {}, s("svg", { viewBox: "0 0 10 10", "aria-hidden": "true" }, s("rect", { class: `age-${age}`, width: 10, height: 10, rx: 3 })), `${count(number)} ${AGES[age]}`));
    const quiet = devices.quietest.filter(([, age]) => age >= 2);
    return [
      h("div", { class: "ages", "aria-hidden": "true" }, s("svg", { viewBox: "0 0 100 14", preserveAspectRatio: "none" }, ...bars)),
      h("ul", { class: "ages-words" }, ...words),
      quiet.length > 0
        ? h("ul", { class: "quiet-devices", "aria-label": "Not heard for the longest time" },
          ...quiet.map(([name, age]) => h("li", {}, h("bdi", {}, name), h("span", { class: "meta" }, `${seconds(age)} ago`))))
        : h("p", { class: "empty" }, "All are heard."),
    ];
  });
}
