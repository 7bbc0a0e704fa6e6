// Draws the word alignment: two rows of words joined by the mass that moved, and a table that adds up to the distance.

import { el, fold, responsive, svg, table } from "./dom.js";
import { number, t } from "./i18n.js";

const MOST = 28; // words of a side in the picture; the table has all
const SHADES = 6;
const LINE = 26; // pixels from word to word in a column
const WIDEST = 620; // pixels of two columns
const LETTERS = 80; // of a word that are looked at: the server cuts longer ones

/** The picture and the table of an explanation {distance, kind, pairs} of texts `a` and `b`, and what it leaves out. */
export function alignment({ distance, kind, pairs }, a, b, warnings = []) {
  const moves = merged(pairs);
  const total = moves.reduce((sum, { contribution }) => sum + contribution, 0);
  const name = kind.toUpperCase();
  const best = moves
    .filter(({ mass }) => mass >= moves[0].mass / 4)
    .reduce((one, other) => (other.cost < one.cost ? other : one), moves[0]);
  const worst = moves.reduce((one, other) => (other.contribution > one.contribution ? other : one), moves[0]);
  const words = ({ source, target }) => ({ source, target });
  const row = (move) => [
    move.source,
    move.target,
    `${number(100 * move.mass, 1)} %`,
    number(move.cost, 3),
    number(move.contribution, 4),
  ];
  const caption = t("movesCaption", { n: moves.length, name, distance: number(distance, 4) });
  return el(
    "figure",
    { class: "alignment" },
    el(
      "figcaption",
      {},
      el("p", {}, t("distanceIs", { name, distance: number(distance, 3) })),
      moves.length > 0 && distance > 0
        ? el(
            "p",
            {},
            t("bestMove", words(best)),
            " ",
            t("worstMove", { ...words(worst), share: number((100 * worst.contribution) / distance, 0) }),
          )
        : null,
    ),
    responsive((width) => picture(moves, a, b, width, kind, caption), { class: "picture" }),
    legend(),
    cutNote(warnings),
    fold(
      t("asTable"),
      el(
        "div",
        { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
        table(caption, [t("from"), t("to"), t("mass"), t("cost"), t("contribution")], moves.map(row), {
          numeric: [2, 3, 4],
          foot: [
            t("sum"),
            "",
            `${number(100 * moves.reduce((sum, { mass }) => sum + mass, 0), 1)} %`,
            "",
            number(total, 4),
          ],
        }),
      ),
    ),
  );
}

/** Moves between the same two words as one: masses and contributions add, the cost is their mean. */
export function merged(pairs) {
  const byWords = new Map();
  for (const { source, target, mass, contribution } of pairs) {
    const key = JSON.stringify([source, target]);
    const move = byWords.get(key) ?? { source, target, mass: 0, contribution: 0 };
    move.mass += mass;
    move.contribution += contribution;
    byWords.set(key, move);
  }
  const moves = [...byWords.values()].map((move) => ({
    ...move,
    cost: move.mass > 0 ? move.contribution / move.mass : 0,
  }));
  return moves.sort((one, other) => other.mass - one.mass);
}

/** The words of one side in the order of the text, the lightest left out when there are too many. */
function side(moves, end, text) {
  const mass = new Map();
  for (const move of moves) mass.set(move[end], (mass.get(move[end]) ?? 0) + move.mass);
  const kept = [...mass]
    .sort((one, other) => other[1] - one[1])
    .slice(0, MOST)
    .map(([word]) => word);
  return kept
    .map((word) => [place(text, word), word])
    .sort((one, other) => one[0] - other[0])
    .map(([, word]) => word);
}

/** That a text was longer than the model reads, in the words of the page; null where none was. */
export function cutNote(warnings) {
  const most = (warnings ?? []).map((one) => /cut: at most (\d+) tokens/.exec(one)?.[1]).find((found) => found);
  return most ? el("p", { class: "note" }, t("textsCut", { most })) : null;
}

/** Where a word stands by itself in a text, not inside a longer one; a word that the server cut, by its beginning. */
function place(text, label) {
  const word = /^(.+)\.\.\. \([\d,]+ letters\)$/s.exec(label)?.[1] ?? label;
  const letter = (character) => character !== undefined && /[\p{L}\p{N}]/u.test(character) && character < "\u2e80";
  for (let at = text.indexOf(word); at >= 0; at = text.indexOf(word, at + 1)) {
    const inside = (letter(text[at - 1]) && letter(word[0])) || (letter(text[at + word.length]) && letter(word.at(-1)));
    if (!inside) return at;
  }
  return text.indexOf(word);
}

function picture(moves, a, b, room, kind, label) {
  const sides = [side(moves, "source", a), side(moves, "target", b)];
  const pen = document.createElement("canvas").getContext("2d");
  const { fontSize, fontFamily } = getComputedStyle(document.body);
  pen.font = `${fontSize} ${fontFamily}`;
  const widths = sides.map((words) => words.map((word) => pen.measureText(word).width));
  const needed = Math.max(...widths.map((one) => one.reduce((sum, w) => sum + w + 12, 0)));
  const across = needed <= room; // else two columns
  const width = across ? room : Math.min(room, WIDEST);
  const height = across ? 170 : LINE * Math.max(...sides.map((words) => words.length));
  const places = sides.map((words, row) =>
    across ? acrossPlaces(widths[row], width) : words.map((_, i) => (height * (i + 0.5)) / words.length),
  );
  const columns = [
    Math.min(0.36 * width, Math.max(...widths[0])),
    width - Math.min(0.36 * width, Math.max(...widths[1])),
  ];
  const heaviest = Math.max(...moves.map(({ mass }) => mass));
  const costs = moves.map(({ cost }) => cost);
  const [near, far] = kind === "wrd" ? [0.15, 0.85] : [Math.min(...costs), Math.max(...costs)]; // WMD has no scale of its own

  const line = (move) => {
    const from = places[0][sides[0].indexOf(move.source)];
    const to = places[1][sides[1].indexOf(move.target)];
    if (from === undefined || to === undefined) return null;
    const middle = (columns[0] + columns[1]) / 2;
    const d = across
      ? `M${from} 32C${from} 85 ${to} 85 ${to} 138`
      : `M${columns[0] + 10} ${from}C${middle} ${from} ${middle} ${to} ${columns[1] - 10} ${to}`;
    const shade = Math.min(SHADES - 1, Math.max(0, Math.floor((SHADES * (move.cost - near)) / (far - near || 1))));
    const says = t("moveWords", { ...move, mass: number(100 * move.mass, 1), cost: number(move.cost, 3) });
    return svg(
      "path",
      {
        d,
        class: `move shade-${shade}`,
        "stroke-width": (1 + (9 * move.mass) / heaviest).toFixed(2),
        "data-0": move.source,
        "data-1": move.target,
      },
      svg("title", {}, says),
    );
  };
  const drawn = svg(
    "svg",
    { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label },
    moves.map(line).reverse(),
  );

  const follow = (row, word) => (event) => {
    for (const path of drawn.querySelectorAll(".move")) {
      path.classList.toggle("dim", event.type === "pointerenter" && path.getAttribute(`data-${row}`) !== word);
    }
  };
  for (const row of [0, 1]) {
    sides[row].forEach((word, i) => {
      const at = places[row][i];
      const spot = across
        ? { x: at, y: row ? 156 : 22, "text-anchor": "middle" }
        : { x: columns[row], y: at + 5, "text-anchor": row ? "start" : "end" };
      drawn.append(
        svg(
          "text",
          { ...spot, onpointerenter: follow(row, word), onpointerleave: follow(row, word) },
          across ? word : cut(word, 0.36 * width, pen),
        ),
      );
    });
  }
  return drawn;
}

/** Middles of words set side by side with equal gaps, in the middle of the width. */
function acrossPlaces(widths, width) {
  const words = widths.reduce((sum, w) => sum + w, 0);
  const gap = Math.min(44, (width - words) / widths.length);
  let x = (width - words - gap * (widths.length - 1)) / 2;
  return widths.map((w) => {
    const middle = x + w / 2;
    x += w + gap;
    return middle;
  });
}

function cut(word, room, pen) {
  const letters = [...word.slice(0, LETTERS)];
  while (letters.length > 1 && pen.measureText(letters.join("")).width > room) letters.pop();
  return letters.join("").length < word.length ? `${letters.slice(0, -1).join("")}…` : word;
}

function legend() {
  const swatch = (_, i) => el("span", { class: `swatch shade-${i}` });
  return el(
    "p",
    { class: "legend" },
    t("legendWidth"),
    " ",
    el(
      "span",
      { class: "scale" },
      t("near"),
      el("span", { class: "swatches", "aria-hidden": "true" }, Array.from({ length: SHADES }, swatch)),
      t("far"),
    ),
  );
}
