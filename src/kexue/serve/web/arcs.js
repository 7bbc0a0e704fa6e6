// Draws a sentence with an arc for each triple, from its subject to its object, with the predicate on it.

import { responsive, svg } from "./dom.js";

const STEP = 26; // pixels from arc to arc above a line
const LINE = 34; // pixels of a line of text
const BEND = 8; // radius of a corner
const GRAPHEMES = new Intl.Segmenter(undefined, { granularity: "grapheme" }); // what is drawn as one letter

/** A picture of `text` and its triples; spans count characters, as the server does. */
export const arcs = (text, triples, label) =>
  responsive((width) => picture(text, triples, width, label), { class: "picture arcs" });

function picture(text, triples, width, label) {
  const pen = document.createElement("canvas").getContext("2d");
  const { fontSize, fontFamily } = getComputedStyle(document.body);
  pen.font = `${fontSize} ${fontFamily}`;
  const small = `${0.8 * parseFloat(fontSize)}px ${fontFamily}`;
  const letters = setLetters(text, width, pen);
  pen.font = small;
  const pieces = triples.flatMap((triple, i) => bars(triple, i, ends(triples, i, letters), width, pen));
  const rooms = stack(pieces);
  const lines = Math.max(0, ...letters.map(({ line }) => line)) + 1;
  const tops = []; // of the letters of each line
  for (let i = 0, y = 0; i < lines; i++, y += LINE) tops.push((y += 8 + STEP * (rooms.get(i) ?? 0)));
  const height = tops.at(-1) + LINE;
  const drawn = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  const kinds = [
    ["subject_span", "subject"],
    ["object_span", "object"],
  ];
  for (const [name, kind] of kinds)
    for (const span of new Map(triples.map((one) => [one[name].join(), one[name]])).values())
      for (const { x, line, end } of boxes(span, letters))
        drawn.append(svg("rect", { class: kind, x, y: tops[line] + 2, width: end - x, height: LINE - 8, rx: 4 }));
  for (const { line, x, words } of runs(letters)) drawn.append(svg("text", { x, y: tops[line] + LINE - 13 }, words));
  const follow = (i) => (event) => {
    for (const one of drawn.querySelectorAll(".arc"))
      one.classList.toggle("dim", event.type === "pointerenter" && one.getAttribute("data-triple") !== String(i));
  };
  for (const piece of pieces) drawn.append(arc(piece, tops[piece.line], triples[piece.triple], follow(piece.triple)));
  return drawn;
}

/**
 * Place of every character: {letter, line, x, end}; lines break at spaces and between Chinese characters. Characters that
 * are drawn as one letter, such as e and its accent, or a family of emoji, stand with the first of them.
 */
function setLetters(text, width, pen) {
  const letters = [];
  let x = 0;
  let line = 0;
  let word = 0; // where the last word began
  let before = " ";
  for (const { segment: letter } of GRAPHEMES.segment(text)) {
    const i = letters.length;
    if (/\s/.test(before) || isWide(letter) || isWide(before)) word = i;
    const broken = /\n/.test(before);
    const room = /\n/.test(letter) ? 0 : pen.measureText(letter === "\t" ? " " : letter).width;
    if ((x + room > width && x > 0 && !/\s/.test(letter)) || broken) {
      const start = letters[word]?.x > 0 && !broken ? word : i;
      const shift = letters[start]?.x ?? x;
      line += 1;
      for (const moved of letters.slice(start)) {
        moved.line = line;
        moved.x -= shift;
        moved.end -= shift;
      }
      x -= shift;
    }
    letters.push({ letter, line, x, end: x + room });
    x += room;
    for (const _ of [...letter].slice(1)) letters.push({ letter: "", line, x, end: x });
    before = letter;
  }
  return letters;
}

const isWide = (letter) => /[\u2e80-\u{10ffff}]/u.test(letter);

/** Neighbouring letters of a line as one string each, so that the browser joins and shapes them. */
function runs(letters) {
  const all = [];
  for (const { letter, line, x } of letters) {
    const last = all.at(-1);
    if (last?.line === line && !isWide(letter)) last.words += letter;
    else all.push({ line, x, words: letter });
  }
  return all.filter(({ words }) => words.trim());
}

/** The part of a span on each of its lines: {line, x, end}. */
function boxes([start, end], letters) {
  const parts = [];
  for (const { line, x, end: right } of letters.slice(start, end)) {
    const last = parts.at(-1);
    if (last?.line === line) last.end = right;
    else parts.push({ line, x, end: right });
  }
  return parts;
}

/** Where the arc of triple `i` leaves its subject and meets its object; the arcs of a span stand side by side. */
function ends(triples, i, letters) {
  const touching = (span) =>
    triples.flatMap((one, j) =>
      ["subject_span", "object_span"].filter((name) => one[name].join() === span.join()).map((name) => `${j} ${name}`),
    );
  return ["subject_span", "object_span"].map((name) => {
    const all = touching(triples[i][name]);
    const [{ line, x, end }] = boxes(triples[i][name], letters);
    return { line, x: x + ((end - x) * (all.indexOf(`${i} ${name}`) + 1)) / (all.length + 1) };
  });
}

/** The horizontal bars of an arc: one, or one on each line where its ends are on different lines. */
function bars(triple, i, [subject, object], width, pen) {
  const half = pen.measureText(triple.predicate).width / 2 + 6;
  const bar = (line, from, to) => {
    const middle = Math.min(Math.max((from.x + to.x) / 2, half), width - half);
    const [left, right] = [Math.min(from.x, to.x, middle - half), Math.max(from.x, to.x, middle + half)];
    return { triple: i, line, from, to, middle, left, right };
  };
  if (subject.line === object.line) return [bar(subject.line, { x: subject.x }, { x: object.x })];
  const edge = { open: true };
  const [first, last] = subject.line < object.line ? [width, 0] : [0, width];
  return [
    bar(subject.line, { x: subject.x }, { x: first, ...edge }),
    bar(object.line, { x: last, ...edge }, { x: object.x }),
  ];
}

/** Give every bar a level above its line, short ones lowest, none across another; how many levels a line has. */
function stack(pieces) {
  const rooms = new Map();
  const placed = [];
  for (const one of [...pieces].sort((a, b) => a.right - a.left - (b.right - b.left))) {
    const apart = (other) => other.line !== one.line || other.right < one.left || one.right < other.left;
    one.level = 1;
    while (placed.some((other) => other.level === one.level && !apart(other))) one.level += 1;
    placed.push(one);
    rooms.set(one.line, Math.max(rooms.get(one.line) ?? 0, one.level));
  }
  return rooms;
}

function arc({ from, to, middle, level, triple }, top, { subject, predicate, object }, follow) {
  const y = top - STEP * level + 12;
  const side = Math.sign(to.x - from.x) || 1;
  const bend = Math.min(BEND, Math.abs(to.x - from.x) / 2);
  const rise = from.open ? `M${from.x} ${y}` : `M${from.x} ${top}V${y + bend}Q${from.x} ${y} ${from.x + side * bend} ${y}`;
  const fall = to.open ? `H${to.x}` : `H${to.x - side * bend}Q${to.x} ${y} ${to.x} ${y + bend}V${top}`;
  const parts = [svg("path", { d: rise + fall })];
  if (!to.open) parts.push(svg("path", { class: "tip-of-arc", d: `M${to.x - 4} ${top - 6}h8l-4 7z` }));
  parts.push(svg("text", { x: middle, y: y + 4, "text-anchor": "middle" }, predicate));
  const says = [subject, predicate, object].join(" · ");
  const watch = { onpointerenter: follow, onpointerleave: follow };
  return svg("g", { class: "arc", "data-triple": triple, ...watch }, svg("title", {}, says), ...parts);
}
