// Creates elements safely: strings become text, never HTML.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

/** An HTML element; attributes named on... are listeners, strings among the children are text. */
export const el = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);

/** An SVG element. */
export const svg = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS(SVG, tag), attributes, children);

let made = 0;

/** A control with its label above it. */
export function field(label, control, attributes = {}) {
  control.id ||= `field-${++made}`;
  return el("div", { class: "field", ...attributes }, el("label", { for: control.id }, label), control);
}

/** A <select>; options are pairs of value and words. */
export function select(options, onchange) {
  const control = el("select", { onchange: () => onchange(control.value) });
  control.append(...options.map(([value, words]) => el("option", { value }, words)));
  return control;
}

/** A table; cells that are numbers' words go right where `numeric` says so, `wide` ones get room. */
export function table(caption, heads, rows, { numeric = [], wide = [], foot = null } = {}) {
  const cell = (tag, words, column, more = {}) =>
    el(tag, { class: numeric.includes(column) ? "number" : wide.includes(column) ? "roomy" : null, ...more }, words);
  return el(
    "table",
    {},
    el("caption", {}, caption),
    el(
      "thead",
      {},
      el(
        "tr",
        {},
        heads.map((head, i) => cell("th", head, i, { scope: "col" })),
      ),
    ),
    el(
      "tbody",
      {},
      rows.map((row) =>
        el(
          "tr",
          {},
          row.map((words, i) => cell("td", words, i)),
        ),
      ),
    ),
    foot &&
      el(
        "tfoot",
        {},
        el(
          "tr",
          {},
          foot.map((words, i) => cell(i ? "td" : "th", words, i, { scope: i ? null : "row" })),
        ),
      ),
  );
}

/** The beginning of a text that is longer than `most` characters, with what is left out. */
export const bounded = (text, most) => (text.length <= most ? text : `${text.slice(0, most)}… (${text.length})`);

/** Something hidden until it is opened. */
export const fold = (summary, ...content) => el("details", {}, el("summary", {}, summary), ...content);

/** A box that draws itself for its width, again when that changes. */
export function responsive(draw, attributes = {}) {
  const box = el("div", attributes);
  let drawn = 0;
  new ResizeObserver(() => {
    const width = Math.floor(box.clientWidth);
    if (!width || width === drawn) return;
    drawn = width;
    box.replaceChildren(draw(width));
  }).observe(box);
  return box;
}

/** A slider with its label, its value in the words of `words(value)`, and a note below; {input, output, box}. */
export function slider(label, note, limits, words, onchange) {
  const output = el("output", {});
  const oninput = () => {
    output.textContent = words(input.value);
    onchange(input.value);
  };
  const input = el("input", { type: "range", ...limits, oninput });
  const box = field(label, input);
  output.htmlFor = input.id;
  box.querySelector("label").after(output);
  return { input, output, box: el("div", { class: "slider" }, box, el("p", { class: "note" }, note)) };
}

/** Debounce: call `act` once there was no call for `wait` milliseconds. */
export function debounced(act, wait) {
  let timer = 0;
  const later = (...given) => {
    clearTimeout(timer);
    timer = setTimeout(act, wait, ...given);
  };
  later.cancel = () => clearTimeout(timer);
  return later;
}

/** Debounce changes of a state: those given within `wait` milliseconds of each other go to `act` as one. */
export function gathered(act, wait) {
  let patch = {};
  const later = debounced(() => {
    const all = patch;
    patch = {};
    act(all);
  }, wait);
  const gather = (more) => {
    Object.assign(patch, more);
    later();
  };
  gather.cancel = () => {
    patch = {};
    later.cancel();
  };
  return gather;
}
