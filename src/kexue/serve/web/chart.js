// Small charts in SVG: curves, lines that grow, and bars.

import { svg } from "./dom.js";

const MARGIN = { top: 28, right: 18, bottom: 46, left: 62 };

/** About `count` round numbers from `low` to `high`. */
export function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 2.5, 5, 10].find((one) => one * power >= rough);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) found.push(i * step + 0); // + 0: no minus zero
  return found;
}

function frame(width, height, label, { x, y, xTicks, yTicks, xFormat, yFormat, xLabel, yLabel }) {
  const bottom = height - MARGIN.bottom;
  const grid = yTicks.map((value) =>
    svg(
      "g",
      {},
      svg("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y(value), y2: y(value) }),
      svg("text", { class: "tick", x: MARGIN.left - 8, y: y(value) + 4, "text-anchor": "end" }, yFormat(value)),
    ),
  );
  const below = xTicks.map((value) =>
    svg("text", { class: "tick", x: x(value), y: bottom + 18, "text-anchor": "middle" }, xFormat(value)),
  );
  const names = [
    svg("text", { class: "axis", x: width - MARGIN.right, y: height - 8, "text-anchor": "end" }, xLabel),
    svg("text", { class: "axis", x: 2, y: 11 }, yLabel),
  ];
  return svg(
    "svg",
    { class: "chart", width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label },
    grid,
    below,
    names,
  );
}

/**
 * Curves over a logarithmic x axis.
 *
 * series: [{points: [[x, y], ...], kind}]; marks: [{x, y, kind, words}], where kind is a class for the style sheet;
 * band: [[x, low, high], ...], between which the truth may lie; level: {y, words}, a line across.
 */
export function curves({ width, height = 260, label, series, marks, band = [], level = null, zero = false, ...axes }) {
  const { xLabel, yLabel, xFormat, yFormat } = axes;
  const points = series.flatMap((one) => one.points);
  const xs = [...new Set(points.map(([x]) => x))].sort((one, other) => one - other);
  const [left, right] = [Math.log(xs[0]), Math.log(xs.at(-1))];
  const ys = [...points.map(([, y]) => y), ...band.flatMap(([, low, high]) => [low, high]), ...(level ? [level.y] : [])];
  const spread = Math.max(...ys) - Math.min(...ys) || Math.abs(ys[0]) || 1;
  const low = zero ? 0 : Math.min(...ys) - 0.08 * spread;
  const high = Math.max(...ys) + 0.12 * spread;
  const x = (value) =>
    MARGIN.left + 12 + ((width - MARGIN.left - MARGIN.right - 24) * (Math.log(value) - left)) / (right - left || 1);
  const y = (value) => height - MARGIN.bottom - ((height - MARGIN.top - MARGIN.bottom) * (value - low)) / (high - low);
  const drawn = frame(width, height, label, {
    x,
    y,
    xTicks: sparse(xs, x),
    yTicks: ticks(low, high, 4),
    xFormat,
    yFormat,
    xLabel,
    yLabel,
  });
  if (band.length) {
    const across = [...band].sort((one, other) => one[0] - other[0]);
    const edge = [...across.map(([a, , high]) => [a, high]), ...across.reverse().map(([a, low]) => [a, low])];
    drawn.append(svg("polygon", { class: "band", points: edge.map(([a, b]) => `${x(a)},${y(b)}`).join(" ") }));
  }
  if (level) {
    const [left, right] = [MARGIN.left, width - MARGIN.right];
    drawn.append(
      svg("line", { class: "middle", x1: left, x2: right, y1: y(level.y), y2: y(level.y) }),
      svg("text", { class: "says", x: left + 6, y: y(level.y) - 5 }, level.words),
    );
  }
  for (const { points: curve, kind } of series) {
    const sorted = [...curve].sort((one, other) => one[0] - other[0]);
    drawn.append(
      svg("polyline", { class: `curve ${kind}`, points: sorted.map(([a, b]) => `${x(a)},${y(b)}`).join(" ") }),
    );
    drawn.append(...sorted.map(([a, b]) => svg("circle", { class: `dot ${kind}`, cx: x(a), cy: y(b), r: 3 })));
  }
  for (const { x: a, y: b, kind, words } of marks) {
    const nearRight = x(a) > 0.6 * width;
    drawn.append(
      svg("circle", { class: `mark ${kind}`, cx: x(a), cy: y(b), r: kind === "own" ? 9 : 6 }),
      words
        ? svg(
            "text",
            {
              class: "says",
              x: x(a) + (nearRight ? -13 : 13),
              y: y(b) - 9,
              "text-anchor": nearRight ? "end" : "start",
            },
            words,
          )
        : "",
    );
  }
  return drawn;
}

/** Lines [[[x, y], ...], ...] over a plain x axis that ends at `end`; y from `low` to `high` at least. */
export function traces({ width, height = 200, label, lines, end, low = Infinity, high = -Infinity, ...axes }) {
  const ys = lines.flat().map(([, y]) => y);
  const [least, most] = [Math.min(low, ...ys), Math.max(high, ...ys)];
  const x = (value) => MARGIN.left + ((width - MARGIN.left - MARGIN.right) * value) / end;
  const room = height - MARGIN.top - MARGIN.bottom;
  const y = (value) => height - MARGIN.bottom - (room * (value - least)) / (most - least || 1);
  const [xTicks, yTicks] = [ticks(0, end, 4), ticks(least, most, 3)];
  const drawn = frame(width, height, label, { x, y, xTicks, yTicks, ...axes });
  for (const line of lines)
    drawn.append(svg("polyline", { class: "curve trace", points: line.map(([a, b]) => `${x(a)},${y(b)}`).join(" ") }));
  return drawn;
}

/** Those of the values that leave each other room for a number. */
function sparse(values, x) {
  const kept = [];
  for (const value of values) if (!kept.length || x(value) - x(kept.at(-1)) > 34) kept.push(value);
  return kept;
}

/** Bars [{from, to, documents}] over whole numbers, with the heights on a logarithmic scale; `middle` is marked. */
export function bars({ width, height = 280, label, data, middle, middleWords, xLabel, yLabel, format, says }) {
  const end = data.at(-1).to + 1;
  const most = Math.max(...data.map(({ documents }) => documents));
  const top = 10 ** Math.ceil(Math.log10(most + 1));
  const x = (value) => MARGIN.left + ((width - MARGIN.left - MARGIN.right) * value) / end;
  const y = (value) =>
    height - MARGIN.bottom - ((height - MARGIN.top - MARGIN.bottom) * Math.log10(value + 1)) / Math.log10(top + 1);
  const yTicks = [0, 1, 10, 100, 1e3, 1e4, 1e5, 1e6, 1e7].filter((value) => value <= top);
  const xTicks = ticks(0, end, width < 500 ? 4 : 8).filter((value) => Number.isInteger(value) && value < end);
  const drawn = frame(width, height, label, {
    x: (value) => x(value + 0.5),
    y,
    xTicks,
    yTicks,
    xFormat: format,
    yFormat: format,
    xLabel,
    yLabel,
  });
  for (const { from, to, documents } of data) {
    const wide = x(to + 1) - x(from);
    const gap = wide > 4 ? 1 : 0;
    const bar = {
      class: "column",
      x: x(from) + gap,
      y: y(documents),
      width: Math.max(0.5, wide - 2 * gap),
      height: y(0) - y(documents),
    };
    if (documents) drawn.append(svg("rect", bar, svg("title", {}, says({ from, to, documents }))));
  }
  if (middle < end) {
    const at = x(middle + 0.5);
    const right = at > 0.7 * width;
    drawn.append(
      svg("line", { class: "middle", x1: at, x2: at, y1: MARGIN.top, y2: y(0) }),
      svg(
        "text",
        { class: "says", x: at + (right ? -6 : 6), y: MARGIN.top + 10, "text-anchor": right ? "end" : "start" },
        middleWords,
      ),
    );
  }
  return drawn;
}
