// Lines over the last minutes, and the readings around an anomaly, as SVG.

import { h, plain, s, say, seconds, set } from "./format.js";

const WIDTH = 600;
const HEIGHT = 190;
const LEFT = 52;
const RIGHT = 8;
const TOP = 10;
const BOTTOM = 22;
/** More lines than this nobody can tell apart. */
export const LINES_MAX = 6;

/** A chart of lines over time; `kind` is `"rows"` (from 0, linear) or `"latency"` (seconds, logarithmic). */
export class Chart {
  constructor(parent, kind, words) {
    this.kind = kind;
    this.words = words;
    this.svg = s("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" });
    this.names = h("ul", { class: "names" });
    parent.replaceChildren(this.svg, this.names);
    new ResizeObserver(() => this.last && this.show(...this.last)).observe(parent);
  }

  /** @param at times in microseconds @param lines `[{name, style, values}]`, null where there is none */
  show(at, lines) {
    this.last = [at, lines];
    // One unit is one pixel, so that text keeps its shape.
    const width = this.svg.clientWidth || WIDTH;
    const height = this.svg.clientHeight || HEIGHT;
    set(this.svg, "viewBox", `0 0 ${width} ${height}`);
    const known = lines.flatMap((line) => line.values).filter((value) => value !== null);
    const scale = this.kind === "latency" ? logarithmic(known) : linear(known);
    const end = at.at(-1) ?? 0;
    const x = (time) => width - RIGHT - ((end - time) / 300e6) * (width - LEFT - RIGHT);
    const y = (value) => height - BOTTOM - scale.place(value) * (height - TOP - BOTTOM);
    const parts = [];
    for (const tick of scale.ticks) {
      parts.push(s("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(tick), y2: y(tick) }));
      parts.push(s("text", { x: LEFT - 8, y: y(tick) + 4, "text-anchor": "end" }, this.kind === "latency" ? axis(tick) : this.words(tick, true)));
    }
    for (const minutes of [4, 3, 2, 1]) {
      parts.push(s("text", { x: x(end - minutes * 60e6), y: height - 6, "text-anchor": "middle" }, `-${minutes} min`));
    }
    lines.forEach((line) => {
      parts.push(s("path", { class: `line line-${line.style}`, d: path(at, line.values, x, y) }));
    });
    this.svg.replaceChildren(...parts);
    this.name(lines);
  }

  name(lines) {
    const shape = JSON.stringify(lines.map((line) => line.name));
    if (shape !== this.shape) {
      this.shape = shape;
      this.figures = lines.map(() => h("b"));
      this.names.replaceChildren(
        ...lines.map((line, index) =>
          h("li", {}, s("svg", { viewBox: "0 0 26 8", "aria-hidden": "true" },
            s("line", { class: `line-${line.style}`, "stroke-width": 2.4, x1: 0, y1: 4, x2: 26, y2: 4 })), h("span", {}, line.name), this.figures[index])),
      );
    }
    const said = lines.map((line, index) => {
      const last = line.values.at(-1) ?? null;
      const words = last === null ? "none now" : this.words(last);
      say(this.figures[index], words);
      return `${line.name} ${words}`;
    });
    set(this.svg, "aria-label", plain(`Lines over the last five minutes. Now: ${said.join(", ")}`));
  }
}

/** Five of a kind and their multiples, from 0. */
function linear(values) {
  const most = Math.max(1, ...values) * 1.08;
  const rough = most / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((times) => times * power).find((candidate) => candidate >= rough) ?? rough;
  const top = Math.ceil(most / step) * step;
  const ticks = [];
  for (let tick = 0; tick <= top + step / 2; tick += step) ticks.push(tick);
  return { place: (value) => value / top, ticks };
}

/** Whole powers of ten of seconds around what there is. */
function logarithmic(values) {
  const above = values.filter((value) => value > 0);
  const least = Math.floor(Math.log10(Math.min(0.01, ...above)));
  const most = Math.max(least + 2, Math.ceil(Math.log10(Math.max(1, ...above))));
  const ticks = [];
  for (let power = least; power <= most; power += 1) ticks.push(10 ** power);
  const place = (value) => (Math.log10(Math.max(value, 10 ** least)) - least) / (most - least);
  return { place, ticks };
}

const axis = (value) => (value < 0.9995 ? `${Number((value * 1000).toPrecision(2))} ms` : `${Math.round(value)} s`);

/** A line with gaps where nothing is known, and where seconds were missed. */
function path(at, values, x, y) {
  let text = "";
  let last = null;
  values.forEach((value, index) => {
    if (value === null) {
      last = null;
      return;
    }
    const joined = last !== null && at[index] - last < 5e6;
    text += `${joined ? "L" : "M"}${x(at[index]).toFixed(1)} ${y(value).toFixed(1)}`;
    last = at[index];
  });
  return text;
}

/** Means over the last so many values. */
export function smoothed(values, span) {
  return values.map((_, index) => {
    const part = values.slice(Math.max(0, index - span + 1), index + 1);
    return part.reduce((sum, value) => sum + value, 0) / part.length;
  });
}

/** The readings around an anomaly, with what was expected and the reading itself marked. */
export function spark(anomaly, word) {
  const series = anomaly.series;
  const [width, height, pad] = [420, 64, 7];
  const times = series.map(([at]) => at);
  const values = [...series.map(([, value]) => value), anomaly.value, anomaly.expected];
  const [first, last] = [Math.min(...times, anomaly.at_us), Math.max(...times, anomaly.at_us)];
  const [least, most] = [Math.min(...values), Math.max(...values)];
  const x = (at) => pad + ((at - first) / Math.max(1, last - first)) * (width - 2 * pad);
  const y = (value) => height - pad - ((value - least) / (most - least || 1)) * (height - 2 * pad);
  const line = [...series].sort((one, other) => one[0] - other[0]).map(([at, value]) => `${x(at).toFixed(1)},${y(value).toFixed(1)}`);
  const span = seconds((last - first) / 1e6);
  return h("div", { class: "spark" },
    s("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img", "aria-label": plain(`${series.length} readings of ${word} over ${span}; expected ${anomaly.expected}, read ${anomaly.value}`) },
      s("line", { class: "expected", x1: pad, x2: width - pad, y1: y(anomaly.expected), y2: y(anomaly.expected), "vector-effect": "non-scaling-stroke" }),
      s("polyline", { class: "line", points: line.join(" "), "vector-effect": "non-scaling-stroke" }),
      // A point, as a line without length: it stays round however wide the picture is.
      s("path", { class: "mark", d: `M${x(anomaly.at_us).toFixed(1)} ${y(anomaly.value).toFixed(1)}h0`, "vector-effect": "non-scaling-stroke" })));
}
