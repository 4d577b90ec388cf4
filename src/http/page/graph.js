// The graph of stages, drawn once and then brought up to date. Stages are buttons: Tab and the arrow keys go from one to
// the next along the edges, Enter shows all figures of one.

import { compact, h, percent, plain, rate, s, say, seconds, set } from "./format.js";
import { layout } from "./layout.js";

const WIDE = { width: 176, height: 66, gapAlong: 94, gapAcross: 26, perLayer: Infinity };
const NARROW = { width: 158, height: 68, gapAlong: 54, gapAcross: 10, perLayer: 2 };
const NARROW_BELOW = 720;
const SCALE = { least: 0.72, most: 1.1 };
const LETTER = 8;
const MARKS = { starting: "… ", retrying: "↻ ", paused: "❙❙ ", failed: "✕ ", ended: "■ ", running: "" };

/** A queue this full is told of. */
const FILL_SHOWN = 0.02;
const FILL_HIGH = 0.5;
/** What waits for less is a moment's load. */
const LAG_SHOWN = 1;

export class Graph {
  /** @param onSelect called with the name of a stage, or null */
  constructor(parent, onSelect) {
    this.parent = parent;
    this.onSelect = onSelect;
    this.selected = null;
    this.shape = "";
    new ResizeObserver(() => this.last && this.show(this.last)).observe(parent);
  }

  show(snapshot) {
    this.last = snapshot;
    const isNarrow = this.parent.clientWidth < NARROW_BELOW;
    const names = snapshot.stages.map((stage) => stage.name);
    const shape = JSON.stringify([isNarrow, this.parent.clientWidth, names, snapshot.edges.map((edge) => [edge.from, edge.port, edge.to])]);
    if (shape !== this.shape) {
      this.shape = shape;
      this.draw(snapshot, isNarrow);
    }
    for (const stage of snapshot.stages) this.showStage(stage, snapshot);
    for (const edge of snapshot.edges) this.showEdge(edge);
  }

  /** Draws everything anew: the graph or the room for it has changed. */
  draw(snapshot, isNarrow) {
    const focused = document.activeElement?.closest?.(".stage")?.dataset.name;
    const box = isNarrow ? NARROW : WIDE;
    const [along, across] = isNarrow ? [box.height, box.width] : [box.width, box.height];
    const size = { along, across, gapAlong: box.gapAlong, gapAcross: box.gapAcross, perLayer: box.perLayer };
    const found = layout(snapshot.stages.map((stage) => stage.name), snapshot.edges, size);
    const point = ({ along, across }) => (isNarrow ? { x: across, y: along } : { x: along, y: across });
    const [width, height] = isNarrow ? [found.across, found.along] : [found.along, found.across];
    this.parts = new Map();
    this.box = box;
    const margin = 6;
    const scale = Math.min(SCALE.most, Math.max(SCALE.least, this.parent.clientWidth / (width + 2 * margin)));
    const svg = s("svg", {
      viewBox: `${-margin} ${-margin} ${width + 2 * margin} ${height + 2 * margin}`,
      width: Math.round((width + 2 * margin) * scale),
      height: Math.round((height + 2 * margin) * scale),
      class: isNarrow ? "narrow" : "wide",
      role: "group",
      "aria-label": "Stages and the edges between them; the table of stages below says the same",
    });
    svg.append(
      s("defs", {}, s("pattern", { id: "hatch", width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
        s("line", { class: "hatch-line", x1: 0, y1: 0, x2: 0, y2: 6 }))),
    );
    for (const { edge, points } of found.routes) svg.append(this.drawEdge(edge, points.map(point), isNarrow));
    for (const stage of snapshot.stages) svg.append(this.drawStage(stage, point(found.places.get(stage.name))));
    this.parent.replaceChildren(svg);
    if (focused) this.parts.get(`stage ${focused}`)?.group.focus();
  }

  drawStage(stage, centre) {
    const { width, height } = this.box;
    const inner = width - 24;
    const part = {
      state: s("text", { class: "stage-state", x: width - 12, y: 40 }),
      load: s("text", { class: "stage-load", x: 12, y: height - 11 }),
      heat: s("rect", { class: "heat", width, height, rx: 11, opacity: 0 }),
      wait: s("rect", { class: "wait", width, height, rx: 11, opacity: 0 }),
      busy: s("rect", { class: "bar-busy", x: 12, y: height - 7, height: 3, width: 0 }),
      blocked: s("rect", { class: "bar-blocked", x: 12, y: height - 7, height: 3, width: 0 }),
    };
    const fits = Math.floor((width - 24) / LETTER);
    const name = plain(stage.name);
    part.group = s("g", {
      class: "stage", tabindex: 0, role: "button", "aria-expanded": "false",
      transform: `translate(${centre.x - width / 2} ${centre.y - height / 2})`,
    },
    s("title", {}, name),
    s("rect", { class: "box", width, height, rx: 11 }),
    part.heat, part.wait,
    s("text", { class: "stage-name", x: 12, y: 22 }, name.length > fits ? `${name.slice(0, fits - 1)}…` : name),
    s("text", { class: "stage-type", x: 12, y: 40 }, stage.type_name),
    part.state, part.load,
    s("rect", { class: "track", x: 12, y: height - 7, height: 3, width: inner, rx: 1.5 }),
    part.busy, part.blocked,
    s("rect", { class: "focus", x: -3, y: -3, width: width + 6, height: height + 6, rx: 13 }));
    part.group.dataset.name = stage.name;
    part.group.addEventListener("click", () => this.select(stage.name));
    part.group.addEventListener("keydown", (event) => this.key(event, stage.name));
    this.parts.set(`stage ${stage.name}`, part);
    return part.group;
  }

  showStage(stage, snapshot) {
    const part = this.parts.get(`stage ${stage.name}`);
    const inner = this.box.width - 24;
    const busy = inner * stage.busy;
    set(part.group, "data-state", stage.state);
    set(part.group, "data-kind", stage.kind);
    set(part.group, "aria-expanded", this.selected === stage.name);
    set(part.heat, "opacity", (stage.busy * 0.3).toFixed(3));
    set(part.wait, "opacity", (stage.blocked * 0.3).toFixed(3));
    set(part.busy, "width", busy.toFixed(1));
    set(part.blocked, "x", (12 + busy).toFixed(1));
    set(part.blocked, "width", Math.min(inner - busy, inner * stage.blocked).toFixed(1));
    const isQuiet = stage.state === "running";
    // The rates of the others stand on their edges.
    const quiet = stage.kind === "source" ? rate(stage.rows_per_second) : "";
    say(part.state, isQuiet ? quiet : `${MARKS[stage.state] ?? ""}${stage.state}`);
    const load = [`busy ${percent(stage.busy)}`];
    if (stage.blocked >= 0.01) load.push(`waits ${percent(stage.blocked)}`);
    say(part.load, load.join(" · "));
    const reads = snapshot.edges.filter((edge) => edge.to === stage.name).map((edge) => edge.from);
    const from = reads.length > 0 ? `, reads ${[...new Set(reads)].join(" and ")}` : "";
    set(part.group, "aria-label", plain(
      `${stage.kind} ${stage.name}, ${stage.type_name}, ${stage.state}, ${rate(stage.rows_per_second)}, ${load.join(", ")}${from}`,
    ));
  }

  drawEdge(edge, points, isNarrow) {
    const [first, last] = [points[0], points.at(-1)];
    const { width, height } = this.box;
    const way = points.map((point) => ({ ...point }));
    // From the border of one stage to that of the other.
    if (isNarrow) {
      way[0].y = first.y + height / 2;
      way.at(-1).y = last.y - height / 2;
    } else {
      way[0].x = first.x + width / 2;
      way.at(-1).x = last.x - width / 2;
    }
    const curve = way.slice(1).map((to, index) => {
      const from = way[index];
      return isNarrow
        ? `C ${from.x} ${(from.y + to.y) / 2} ${to.x} ${(from.y + to.y) / 2} ${to.x} ${to.y}`
        : `C ${(from.x + to.x) / 2} ${from.y} ${(from.x + to.x) / 2} ${to.y} ${to.x} ${to.y}`;
    });
    // The label stands at the last gap, where edges that leave one stage are apart.
    const [before, after] = [way.at(-2), way.at(-1)];
    const share = way.length > 2 ? 0.62 : 0.5;
    const middle = { x: before.x + (after.x - before.x) * share, y: before.y + (after.y - before.y) * share };
    const part = {
      rate: s("text", { x: middle.x, y: middle.y - 5 }),
      wait: s("text", { class: "edge-wait", x: middle.x, y: middle.y + 17 }),
      track: s("rect", { class: "fill-track", x: middle.x - 20, y: middle.y, width: 40, height: 4, rx: 2 }),
      bar: s("rect", { class: "fill-bar", x: middle.x - 20, y: middle.y, width: 0, height: 4, rx: 2 }),
    };
    part.group = s("g", { class: "edge", "aria-hidden": "true" },
      s("path", { d: `M ${way[0].x} ${way[0].y} ${curve.join(" ")}` }), part.rate, part.track, part.bar, part.wait);
    part.group.dataset.port = edge.port || "main";
    this.parts.set(`edge ${edge.from} ${edge.port} ${edge.to}`, part);
    return part.group;
  }

  showEdge(edge) {
    const part = this.parts.get(`edge ${edge.from} ${edge.port} ${edge.to}`);
    const fill = Math.min(1, edge.waiting / Math.max(1, edge.waiting_max));
    const isSideway = edge.port !== "";
    set(part.group, "data-flows", edge.rows_per_second > 0);
    set(part.group, "data-fill", edge.on_disk > 0 ? "disk" : fill >= FILL_HIGH ? "high" : "low");
    const showsFill = fill >= FILL_SHOWN || edge.on_disk > 0;
    say(part.rate, edge.rows_per_second === 0 && isSideway ? "" : rate(edge.rows_per_second));
    set(part.track, "visibility", showsFill ? "visible" : "hidden");
    set(part.bar, "visibility", showsFill ? "visible" : "hidden");
    set(part.bar, "width", (40 * (edge.on_disk > 0 ? 1 : fill)).toFixed(1));
    const words = [];
    if (edge.on_disk > 0) words.push(`${compact(edge.on_disk)} on disk`);
    else if (fill >= FILL_SHOWN) words.push(`queue ${percent(fill)}`);
    if (edge.lag_seconds >= LAG_SHOWN) words.push(seconds(edge.lag_seconds));
    say(part.wait, words.join(", "));
  }

  select(name) {
    this.selected = this.selected === name ? null : name;
    for (const [key, part] of this.parts) {
      if (key.startsWith("stage ")) set(part.group, "aria-expanded", key === `stage ${this.selected}`);
    }
    this.onSelect(this.selected);
  }

  key(event, name) {
    const toward = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === "Enter" || event.key === " ") {
      this.select(name);
    } else if (event.key === "Escape" && this.selected !== null) {
      this.select(this.selected);
    } else if (toward) {
      this.parts.get(`stage ${this.neighbour(name, toward, event.key)}`)?.group.focus();
    } else {
      return;
    }
    event.preventDefault();
  }

  /** Left and right follow the edges; up and down go through all stages in turn. */
  neighbour(name, toward, key) {
    const { stages, edges } = this.last;
    if (key === "ArrowRight" || key === "ArrowLeft") {
      const edge = edges.find((edge) => (toward > 0 ? edge.from : edge.to) === name);
      return edge && (toward > 0 ? edge.to : edge.from);
    }
    const index = stages.findIndex((stage) => stage.name === name) + toward;
    return stages[(index + stages.length) % stages.length].name;
  }
}

/** All figures of a stage. */
export function detail(stage, snapshot, ago) {
  const facts = [["State", `${stage.state}, since ${ago(stage.since_us)}`], ["Type", `${stage.kind}, ${stage.type_name}`]];
  facts.push([stage.kind === "source" ? "Sent" : "Given", `${compact(stage.rows)} rows, ${rate(stage.rows_per_second)}`]);
  if (stage.kind === "sink") {
    facts.push(["Stored", `${compact(stage.stored)} rows, ${rate(stage.stored_per_second)}`], ["Oldest not stored", seconds(stage.lag_seconds)]);
  }
  if (stage.latency) facts.push(["Receipt to commit", `half ${seconds(stage.latency.p50)}, 99% ${seconds(stage.latency.p99)}`]);
  if (stage.event_latency) facts.push(["Device's time to commit", `half ${seconds(stage.event_latency.p50)}, 99% ${seconds(stage.event_latency.p99)}`]);
  facts.push(["Busy", percent(stage.busy)], ["Waits for others", percent(stage.blocked)], ["Refused", `${compact(stage.rejected)} rows`]);
  if (stage.newest_event_at_us) facts.push(["Newest row happened", ago(stage.newest_event_at_us)]);
  if (stage.backlog) facts.push(["To catch up", `${compact(stage.backlog.rows)}${stage.backlog.eta_seconds === null ? "" : `, in about ${seconds(stage.backlog.eta_seconds)}`}`]);
  if (stage.retries) facts.push(["Failed attempts", compact(stage.retries)]);
  if (stage.last_error) facts.push(["Last error", `${ago(stage.last_error.at_us)}: ${stage.last_error.text}`]);
  return [h("h3", {}, stage.name), h("dl", {}, ...facts.map(([what, value]) => h("div", {}, h("dt", {}, what), h("dd", {}, value))))];
}
