// Puts each second of the run into the parts of the page.

import { Chart, LINES_MAX, smoothed } from "./charts.js";
import { ago, compact, plain, rate, say, seconds, set } from "./format.js";
import { Graph, detail } from "./graph.js";
import { showAnomalies, showDevices, showRejects, showSinks, showStages } from "./lists.js";
import { follow, useToken } from "./stream.js";

const at = (id) => document.getElementById(id);
/** Seconds that a rate is the mean of: a lake that rolls its files stores in bursts. */
const SMOOTHING = 10;

const graph = new Graph(at("graph"), () => last && showDetail(last));
const rowsChart = new Chart(at("rows-chart"), "rows", (value, isAxis) => (isAxis ? compact(value) : rate(value)));
const latencyChart = new Chart(at("latency-chart"), "latency", seconds);

let last = null;
let lines = null;
let told = null;

function show(snapshot) {
  last = snapshot;
  at("main").hidden = false;
  at("token").hidden = true;
  document.title = plain(`${snapshot.status === "ok" ? "" : `${snapshot.status}: `}${snapshot.pipeline} · pipeline`);
  say(at("name"), snapshot.pipeline);
  set(at("status"), "data-state", snapshot.status);
  say(at("status"), snapshot.status);
  say(at("running"), `for ${seconds(Math.floor(snapshot.running_seconds))}`);
  say(at("version"), `pipeline ${snapshot.version}`);
  say(at("bottleneck"), snapshot.bottleneck.words);
  set(at("bottleneck"), "data-held", snapshot.bottleneck.stage !== null);
  announce(snapshot);
  graph.show(snapshot);
  showDetail(snapshot);
  showSinks(at("sinks"), snapshot);
  showAnomalies(at("anomalies"), snapshot);
  showRejects(at("rejects"), snapshot);
  showDevices(at("devices-card"), at("devices"), at("devices-meta"), snapshot.devices);
  showStages(at("stages"), snapshot);
  remember(snapshot);
}

/** Reads out what has changed in kind, not each figure. */
function announce(snapshot) {
  const troubled = snapshot.stages.filter((stage) => ["retrying", "paused", "failed"].includes(stage.state));
  const news = JSON.stringify([snapshot.status, troubled.map((stage) => [stage.name, stage.state])]);
  if (news === told) return;
  told = news;
  const states = troubled.map((stage) => `${stage.kind} ${stage.name} is ${stage.state}`);
  say(at("news"), [`${snapshot.pipeline} is ${snapshot.status}`, ...states].join(". "));
}

function showDetail(snapshot) {
  const stage = snapshot.stages.find((stage) => stage.name === graph.selected);
  at("detail").hidden = !stage;
  if (stage) at("detail").replaceChildren(...detail(stage, snapshot, (us) => ago(us, snapshot.at_us)));
}

/** Adds a second to the lines and draws them. */
function remember(snapshot) {
  if (!lines) return;
  const of = (kind) => snapshot.stages.filter((stage) => stage.kind === kind);
  if (snapshot.at_us > (lines.at_us.at(-1) ?? 0)) {
    lines.at_us.push(snapshot.at_us);
    lines.read.push(of("source").reduce((sum, source) => sum + source.rows_per_second, 0));
    for (const sink of lines.sinks) {
      const now = of("sink").find((stage) => stage.name === sink.name);
      sink.stored.push(now?.stored_per_second ?? 0);
      sink.p99.push(now?.latency?.p99 ?? null);
    }
    const all = [lines.at_us, lines.read, ...lines.sinks.flatMap((sink) => [sink.stored, sink.p99])];
    for (const line of all) line.splice(0, Math.max(0, line.length - lines.points_max));
  }
  const sum = (values) => values.reduce((total, value) => total + value, 0);
  // Those that store most; the others are in the list of sinks.
  const shown = [...lines.sinks].sort((one, other) => sum(other.stored) - sum(one.stored)).slice(0, LINES_MAX - 1);
  const named = lines.sinks.filter((sink) => shown.includes(sink)).map((sink, index) => ({ ...sink, style: index + 1 }));
  rowsChart.show(lines.at_us, [
    { name: "read", style: 0, values: smoothed(lines.read, SMOOTHING) },
    ...named.map((sink) => ({ name: sink.name, style: sink.style, values: smoothed(sink.stored, SMOOTHING) })),
  ]);
  latencyChart.show(lines.at_us, named.map((sink) => ({ name: sink.name, style: sink.style, values: sink.p99 })));
}

/** Asks for the token, until one is given. */
function askForToken(wasTried) {
  at("main").hidden = true;
  at("token").hidden = false;
  say(at("token-wrong"), wasTried ? "That was not it." : "");
  say(at("connection"), "waits for a token");
  at("token-text").focus();
  return new Promise((resolve) => {
    at("token").addEventListener("submit", (event) => {
      event.preventDefault();
      useToken(at("token-text").value);
      at("token-text").value = "";
      resolve();
    }, { once: true });
  });
}

follow({
  event(name, data) {
    if (name === "history") lines = data;
    if (name === "snapshot") show(data);
  },
  state(state, again) {
    set(at("connection"), "data-state", state);
    set(document.body, "data-connection", state);
    if (state === "lost" && told !== null) {
      told = null;
      say(at("news"), "No answer from the pipeline. What is shown is what was seen last.");
    }
    say(at("connection"), state === "live" ? "live" : `no answer; asking again in ${again} s`);
  },
  refused: askForToken,
});
