// The graph of stages, drawn once and then brought up to date. Stages are buttons: Tab and the arrow keys go from one to
// the next along the edges, Enter shows all figures of one.

import { compact, h, percent, plain, rate, s, say, seconds, set } from "./format.js";
import { layout } from "./layout.js";

const WIDE = { width: 166, height: 66, gapAlong: 92, gapAcross: 24, perLayer: Infinity };
const NARROW = { width: 158, height: 68, gapAlong: 54, gapAcross: 10, perLayer: 2 };
const NARROW_BELOW = 720;
const SCALE = { least: 0.64, most: 1.1 };
const LETTER = 8;
const MARKS = { starting: "… ", retrying: "↻ ", paused: "❙❙ ", failed: "✕ ", ended: "■ ", running: "" };

const FILL_WIDTH = 40;
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
    for (const stage of snapshot.stages) {
      this.showStage(stage, snapshot);
      this.showArrival(stage.name, snapshot.edges.filter((edge) => edge.to === stage.name));
    }
    for (const edge of snapshot.edges) this.showEdge(edge);
  }

  /** Draws everything anew: the graph or the room for it has changed. */
  draw(snapshot, isNarrow) {
    const focused = document.activeElement?.closest?.(".stage")?.dataset.name;
    const box = isNarrow ? NARROW : WIDE;
    const [along, across] = isNarrow ? [box.height, box.width] : [box.width, box.height];
    // On a narrow page what is refused passes behind the stages: room beside them is for what flows.
    const isDirect = (edge) => isNarrow && edge.port !== "";
    const size = { along, across, gapAlong: box.gapAlong, gapAcross: box.gapAcross, perLayer: box.perLayer, isDirect };
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
    for (const { edge, points, arrival } of withArrivals(found.routes, isNarrow ? box.width : box.height)) {
      svg.append(this.drawEdge(edge, points.map(point), arrival, isNarrow));
    }
    for (const name of new Set(snapshot.edges.map((edge) => edge.to))) {
      svg.append(this.drawArrival(name, point(found.places.get(name)), isNarrow));
    }
    for (const stage of snapshot.stages) svg.append(this.drawStage(stage, point(found.places.get(stage.name))));
    this.parent.replaceChildren(svg);
    if (focused) this.parts.get(`stage ${focused}`)?.group.focus();
  }

  drawStage(stage, centre) {
    const { width, height } = this.box;
    const inner = width - 24;
    const part = {
      state: s("text", { class: "stage-state", x: width - 12, y: 40 }),
      type: s("text", { class: "stage-type", x: 12, y: 40 }, stage.type_name),
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
    part.type, part.state, part.load,
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
    // There is room for one of the two on a narrow page.
    set(part.type, "visibility", this.box === NARROW && part.state.textContent !== "" ? "hidden" : "visible");
    const load = [`busy ${percent(stage.busy)}`];
    if (stage.blocked >= 0.01) load.push(`waits ${percent(stage.blocked)}`);
    say(part.load, load.join(" · "));
    const reads = snapshot.edges.filter((edge) => edge.to === stage.name).map((edge) => edge.from);
    const from = reads.length > 0 ? `, reads ${[...new Set(reads)].join(" and ")}` : "";
    set(part.group, "aria-label", plain(
      `${stage.kind} ${stage.name}, ${stage.type_name}, ${stage.state}, ${rate(stage.rows_per_second)}, ${load.join(", ")}${from}`,
    ));
  }

  drawEdge(edge, points, arrival, isNarrow) {
    const { width, height } = this.box;
    const way = points.map((point) => ({ ...point }));
    const [first, last] = [way[0], way.at(-1)];
    // From the border of one stage to that of the other.
    if (isNarrow) {
      first.y += height / 2;
      last.y -= height / 2;
      last.x += arrival;
    } else {
      first.x += width / 2;
      last.x -= width / 2;
      last.y += arrival;
    }
    const curve = way.slice(1).map((to, index) => {
      const from = way[index];
      return isNarrow
        ? `C ${from.x} ${(from.y + to.y) / 2} ${to.x} ${(from.y + to.y) / 2} ${to.x} ${to.y}`
        : `C ${(from.x + to.x) / 2} ${from.y} ${(from.x + to.x) / 2} ${to.y} ${to.x} ${to.y}`;
    });
    const part = { words: s("title"), path: s("path", { d: `M ${first.x} ${first.y} ${curve.join(" ")}` }) };
    part.group = s("g", { class: "edge", "aria-hidden": "true" }, part.words, part.path);
    part.group.dataset.port = edge.port || "main";
    this.parts.set(`edge ${edge.from} ${edge.port} ${edge.to}`, part);
    return part.group;
  }

  showEdge(edge) {
    const part = this.parts.get(`edge ${edge.from} ${edge.port} ${edge.to}`);
    set(part.group, "data-flows", edge.rows_per_second > 0);
    set(part.group, "data-fill", level(edge));
    say(part.words, inWords(edge));
  }

  /** What comes to a stage, said before it: there, edges that leave one stage are apart. */
  drawArrival(name, centre, isNarrow) {
    const { width, height } = this.box;
    const [end, top] = isNarrow ? [centre.x + 7, centre.y - height / 2 - 34] : [centre.x - width / 2 - 7, centre.y - 12];
    const left = isNarrow ? end : end - FILL_WIDTH;
    const level = isNarrow ? centre.y - height / 2 - 5 : centre.y + 3;
    const line = (kind, row) => s("text", { class: kind, x: end, y: top + row * 13 });
    const part = {
      rate: line("edge-rate", isNarrow ? 2 : 0.4),
      wait: line("edge-wait", isNarrow ? 1 : 2.2),
      lag: line("edge-wait", isNarrow ? 0 : 3.2),
      track: s("rect", { class: "fill-track", x: left, y: level, width: FILL_WIDTH, height: 4, rx: 2 }),
      bar: s("rect", { class: "fill-bar", x: left, y: level, width: 0, height: 4, rx: 2 }),
    };
    part.group = s("g", { class: "arrival", "aria-hidden": "true" }, part.rate, part.track, part.bar, part.wait, part.lag);
    this.parts.set(`arrival ${name}`, part);
    return part.group;
  }

  showArrival(name, edges) {
    const part = this.parts.get(`arrival ${name}`);
    if (!part) return;
    const sum = (of) => edges.reduce((total, edge) => total + of(edge), 0);
    const fill = Math.max(...edges.map(fillOf));
    const onDisk = sum((edge) => edge.on_disk);
    const lag = Math.max(...edges.map((edge) => edge.lag_seconds ?? 0));
    const showsFill = fill >= FILL_SHOWN || onDisk > 0;
    set(part.group, "data-fill", onDisk > 0 ? "disk" : fill >= FILL_HIGH ? "high" : "low");
    const isSideway = edges.every((edge) => edge.port !== "");
    const perSecond = sum((edge) => edge.rows_per_second);
    say(part.rate, perSecond === 0 && isSideway ? "" : rate(perSecond));
    set(part.track, "visibility", showsFill ? "visible" : "hidden");
    set(part.bar, "visibility", showsFill ? "visible" : "hidden");
    set(part.bar, "width", (FILL_WIDTH * (onDisk > 0 ? 1 : fill)).toFixed(1));
    const queue = fill >= FILL_SHOWN ? `queue ${percent(fill)}` : "";
    say(part.wait, onDisk > 0 ? `${compact(onDisk)} on disk` : queue);
    say(part.lag, lag >= LAG_SHOWN ? `${seconds(lag)} old` : "");
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

const fillOf = (edge) => Math.min(1, edge.waiting / Math.max(1, edge.waiting_max));
const level = (edge) => (edge.on_disk > 0 ? "disk" : fillOf(edge) >= FILL_HIGH ? "high" : "low");

/** An edge's figures. */
function inWords(edge) {
  const words = [rate(edge.rows_per_second), `queue ${percent(fillOf(edge))} full`];
  if (edge.on_disk > 0) words.push(`${compact(edge.on_disk)} rows on disk`);
  if (edge.lag_seconds >= LAG_SHOWN) words.push(`${seconds(edge.lag_seconds)} old`);
  if (edge.shed > 0) words.push(`${compact(edge.shed)} rows gone without`);
  return `${edge.port ? `${edge.from}.${edge.port}` : edge.from}: ${words.join(", ")}`;
}

/** Where each edge meets its reader: side by side along its border, in the order in which they come. */
function withArrivals(routes, border) {
  const byReader = Map.groupBy(routes, ({ edge }) => edge.to);
  for (const arriving of byReader.values()) {
    arriving.sort((one, other) => one.points.at(-2).across - other.points.at(-2).across);
    arriving.forEach((route, index) => {
      route.arrival = ((index + 1) / (arriving.length + 1) - 0.5) * border * 0.8;
    });
  }
  return routes;
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
  const inputs = snapshot.edges.filter((edge) => edge.to === stage.name);
  if (inputs.length > 0) facts.push(["Reads", inputs.map(inWords).join("; ")]);
  if (stage.newest_event_at_us) facts.push(["Newest row happened", ago(stage.newest_event_at_us)]);
  if (stage.backlog) facts.push(["To catch up", `${compact(stage.backlog.rows)}${stage.backlog.eta_seconds === null ? "" : `, in about ${seconds(stage.backlog.eta_seconds)}`}`]);
  if (stage.retries) facts.push(["Failed attempts", compact(stage.retries)]);
  if (stage.last_error) facts.push(["Last error", `${ago(stage.last_error.at_us)}: ${stage.last_error.text}`]);
  return [h("h3", {}, stage.name), h("dl", {}, ...facts.map(([what, value]) => h("div", {}, h("dt", {}, what), h("dd", {}, value))))];
}
