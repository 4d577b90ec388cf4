// Numbers and times as people read them, and elements made without HTML.
//
// Whatever devices, databases and pipeline files say comes in here as text and leaves as text: nothing on this page is
// ever parsed as HTML (the server's Trusted Types policy would refuse it), and what can't be seen is written out.

/** Control characters and marks of direction written out, such as `\u{202e}`: a name can't hide or turn around. */
export function plain(text) {
  return String(text).replace(
    /[\u0000-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]/gu,
    (char) => `\\u{${char.codePointAt(0).toString(16)}}`,
  );
}

/** An HTML element. Attributes are set as attributes; children are elements or text. */
export function h(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
export function s(tag, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  for (const child of children) {
    if (child !== null && child !== undefined) element.append(child instanceof Node ? child : plain(child));
  }
  return element;
}

/** Sets the text of an element, if it is another one: so that nothing is read out that has not changed. */
export function say(element, text) {
  const safe = plain(text);
  if (element.textContent !== safe) element.textContent = safe;
}

export function set(element, name, value) {
  if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
}

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });

/** `12,345`. */
export const count = (number) => whole.format(number);

/** `950`, `12.3K`: for where there is little room. */
export const compact = (number) => (Math.abs(number) < 999.5 ? whole.format(number) : short.format(number));

/** `0.4/s`, `998/s`, `12.3K/s`. */
export function rate(perSecond) {
  if (perSecond === 0) return "0/s";
  return perSecond < 9.95 ? `${perSecond.toFixed(1)}/s` : `${compact(perSecond)}/s`;
}

/** `<1%`, `42%`. */
export function percent(share) {
  if (share > 0 && share < 0.01) return "<1%";
  return `${Math.round(share * 100)}%`;
}

/** A duration: `4 ms`, `1.2 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`. */
export function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value < 0.0095) return `${(value * 1000).toFixed(value < 0.001 ? 1 : 0)} ms`;
  if (value < 0.9995) return `${Math.round(value * 1000)} ms`;
  if (value < 59.95) return `${value.toFixed(value < 9.95 ? 1 : 0)} s`;
  const all = Math.round(value);
  if (all < 3600) return `${Math.floor(all / 60)} min ${all % 60} s`;
  if (all < 86400) return `${Math.floor(all / 3600)} h ${Math.floor((all % 3600) / 60)} min`;
  return `${Math.floor(all / 86400)} d ${Math.floor((all % 86400) / 3600)} h`;
}

/** How long ago, by the server's clock. */
export function ago(atUs, nowUs) {
  const past = Math.max(0, Math.round((nowUs - atUs) / 1e6));
  if (past < 2) return "now";
  return past < 60 ? `${past} s ago` : `${seconds(past)} ago`;
}

/** `1.5 GiB`. */
export function bytes(number) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (number >= 1024 && unit < units.length - 1) {
    number /= 1024;
    unit += 1;
  }
  return `${unit === 0 || number >= 100 ? Math.round(number) : number.toFixed(1)} ${units[unit]}`;
}

/** A reading, with as many digits as say something. */
export function reading(value) {
  return Number.isFinite(value) ? String(Number(value.toPrecision(5))) : "–";
}
