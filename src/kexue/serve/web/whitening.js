// What other whitenings would do: quality and memory against the number of dimensions, as measured.

import { Latest, ask, problem } from "./api.js";
import { curves } from "./chart.js";
import { el, field, fold, responsive, table } from "./dom.js";
import { bytes, number, t } from "./i18n.js";

const NAMES = ["beta", "gamma", "k"];
const PLACES = { beta: "beta", gamma: "gamma", k: "dims" }; // their names in the address

export function mount(root, { set }) {
  let state = {};
  let loaded = null; // index whose rows are on the page
  let rows = [];
  let own = null; // the row of the index itself
  let measure = {}; // of what, and what chance alone would reach
  let sliders = {};
  const latest = new Latest();
  const status = el("p", { class: "status", role: "status" });
  const answer = el("div");
  root.append(status, answer);

  function show(next) {
    state = next;
    if (state.index !== loaded) load();
    else if (rows.length) draw();
  }

  function load() {
    loaded = state.index;
    rows = [];
    answer.replaceChildren();
    status.textContent = t("measuring");
    const name = encodeURIComponent(state.index);
    latest.run(
      (signal) => Promise.all([ask(`v1/indexes/${name}/whitening`, { signal }), ask(`v1/indexes/${name}`, { signal })]),
      ([measured, info]) => {
        status.textContent = "";
        rows = measured.rows;
        measure = measured;
        own = rowOf(info);
        if (rows.length) draw();
        else
          answer.replaceChildren(
            el("p", {}, t("noRows", { n: measured.texts ?? 0 })),
            el("pre", {}, el("code", {}, "kexue whiten tune PAIRS --out W")),
          );
      },
      (error) => {
        status.textContent = "";
        answer.replaceChildren(problem(error, load));
      },
    );
  }

  /** The measured row that has the index's own settings, if it was measured. */
  function rowOf({ whitening, dims }) {
    const same = (row) =>
      whitening
        ? row.beta === whitening.beta && row.gamma === whitening.gamma && row.k === (whitening.k ?? dims)
        : !row.beta && !row.gamma && row.k === dims;
    return rows.find(same) ?? null;
  }

  const values = (name) => [...new Set(rows.map((row) => row[name]))].sort((one, other) => one - other);

  /** The measured row nearest to what the sliders say, in steps of each slider; quality breaks ties. */
  function chosen() {
    const most = rows.reduce((large, row) => (row.k > large.k ? row : large)); // changes least
    const start = own ?? (decided() ? rows.reduce((best, row) => (row.score > best.score ? row : best)) : most);
    const wanted = NAMES.map((name) => {
      const given = Number(state[PLACES[name]]);
      return state[PLACES[name]] && Number.isFinite(given) ? given : start[name];
    });
    const step = (name, value) => {
      const all = values(name);
      return all.reduce((near, one, i) => (Math.abs(one - value) < Math.abs(all[near] - value) ? i : near), 0);
    };
    const weights = [1.01, 1.001, 1]; // two settings equally far: the one that keeps beta, then gamma
    const away = (row) =>
      NAMES.reduce((sum, name, i) => sum + weights[i] * Math.abs(step(name, row[name]) - step(name, wanted[i])), 0);
    return rows.reduce((near, row) =>
      away(row) < away(near) || (away(row) === away(near) && row.score > near.score) ? row : near,
    );
  }

  function draw() {
    const row = chosen();
    if (!sliders.box?.isConnected) build();
    for (const name of NAMES) {
      const all = values(name);
      const { input, output } = sliders[name];
      input.value = String(all.indexOf(row[name]));
      output.textContent = number(row[name]);
      input.setAttribute("aria-valuetext", number(row[name]));
    }
    const facts = [
      [metricWords(row.metric), withInterval(row)],
      [t("memory"), bytes(row.memory_bytes)],
    ];
    if (own && own !== row) {
      facts.push([
        t("againstOwn"),
        t("againstOwnWords", {
          score: `${signed(row.score - own.score)}${apart(row, own) ? "" : t("withinUncertainty")}`,
          memory: number((100 * row.memory_bytes) / own.memory_bytes, 0),
        }),
      ]);
    }
    sliders.facts.replaceChildren(
      ...facts.map(([name, words]) => el("div", {}, el("dt", {}, name), el("dd", {}, words))),
    );
    sliders.own.textContent = row === own ? t("ownChosen") : own ? t("ownMarked") : t("ownNotMeasured");
    const family = (one) => one.beta === row.beta && one.gamma === row.gamma;
    const series = (quantity) =>
      [...Map.groupBy(rows, ({ beta, gamma }) => `${beta} ${gamma}`).values()]
        .map((group) => ({
          points: group.map((one) => [one.k, one[quantity]]),
          kind: family(group[0]) ? "chosen" : "other",
        }))
        .sort((one, other) => (one.kind === "chosen") - (other.kind === "chosen"));
    const marks = (quantity) => [
      ...(own ? [{ x: own.k, y: own[quantity], kind: "own", words: row === own ? "" : t("thisIndex") }] : []),
      { x: row.k, y: row[quantity], kind: "now", words: row === own ? t("thisIndex") : "" },
    ];
    const common = { xLabel: t("dimensions"), xFormat: (value) => number(value) };
    if (!signal()) return; // nothing that curves could show
    sliders.charts.replaceChildren(
      responsive((width) =>
        curves({
          ...common,
          width,
          label: t("scoreCurve"),
          yLabel: t("score"),
          yFormat: (value) => number(Number(value.toPrecision(3))),
          series: series("score"),
          band: rows.filter((one) => family(one) && "low" in one).map((one) => [one.k, one.low, one.high]),
          marks: marks("score"),
          level: "chance" in measure ? { y: measure.chance, words: t("chance") } : null,
        }),
      ),
      responsive((width) =>
        curves({
          ...common,
          width,
          label: t("memoryCurve"),
          yLabel: t("memory"),
          yFormat: bytes,
          series: series("memory_bytes").slice(-1),
          marks: marks("memory_bytes"),
          zero: true,
        }),
      ),
    );
  }

  /** Whether these texts tell the settings apart; if not, none is better than another. */
  const decided = () => signal() && measure.decided !== false;

  /** Whether any setting finds more than chance does, beyond the doubt of its interval. */
  const signal = () => !("chance" in measure) || rows.some((row) => row.low > measure.chance);

  function build() {
    const slider = (name) => {
      const all = values(name);
      const input = el("input", {
        type: "range",
        min: "0",
        max: String(all.length - 1),
        step: "1",
        oninput: () => move(name, all[Number(input.value)]),
      });
      const output = el("output", { for: name });
      return {
        input,
        output,
        box: field(t(`slider_${name}`), input),
        note: el("p", { class: "note" }, t(`note_${name}`)),
      };
    };
    sliders = {
      box: el("div", { class: "sliders" }),
      facts: el("dl", { class: "meaning big" }),
      own: el("p", { class: "note" }),
      charts: el("div", { class: "two charts" }),
    };
    for (const name of NAMES) {
      const one = (sliders[name] = slider(name));
      one.input.id = name;
      one.box.querySelector("label").htmlFor = name;
      one.box.querySelector("label").after(one.output);
      sliders.box.append(el("div", { class: "slider" }, one.box, one.note));
    }
    const body = rows.map((row) => [
      number(row.beta),
      number(row.gamma),
      number(row.k),
      withInterval(row),
      bytes(row.memory_bytes),
      row === own ? t("thisIndex") : "",
    ]);
    const caption = t("rowsCaption", { n: rows.length, metric: metricWords(rows[0].metric) });
    answer.replaceChildren(
      sliders.box,
      el("div", { role: "status" }, sliders.facts, sliders.own),
      decided() ? "" : el("p", { class: "note doubt" }, el("strong", {}, t("cannotTell"))),
      signal() && !decided() ? el("p", { class: "note doubt" }, t("noDifference", { n: measure.texts })) : "",
      signal() ? sliders.charts : el("p", { class: "note doubt" }, t("noSignal", { n: measure.texts })),
      signal() ? el("p", { class: "note" }, t("curveNote")) : "",
      "texts" in measure
        ? el("p", { class: "note" }, t("measuredOn", { n: measure.texts, all: number(measure.documents) }))
        : "",
      fold(
        t("asTable"),
        el(
          "div",
          { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
          table(caption, ["β", "γ", "k", t("score"), t("memory"), ""], body, { numeric: [0, 1, 2, 3, 4] }),
        ),
      ),
      el("p", { class: "note" }, t("whitenHow")),
      el("pre", {}, el("code", {}, "kexue whiten tune PAIRS --out W")),
    );
  }

  // A slider that lands where nothing was measured moves the others to the nearest row that has its value.
  function move(name, value) {
    const here = chosen();
    const having = rows.filter((row) => row[name] === value);
    const far = (row) =>
      NAMES.reduce(
        (sum, other) => sum + Math.abs(values(other).indexOf(row[other]) - values(other).indexOf(here[other])),
        0,
      );
    const row = having.reduce((near, one) => (far(one) < far(near) ? one : near));
    set(Object.fromEntries(NAMES.map((one) => [PLACES[one], String(row[one])])), { push: false });
  }

  return { show, leave: () => latest.abort() };
}

// The server names its metric in English.
const metricWords = (metric) => (metric.startsWith("MRR@10 of finding a text") ? t("metricHalves") : metric);
const withInterval = (row) =>
  "low" in row
    ? t("interval", { value: number(row.score, 3), low: number(row.low, 3), high: number(row.high, 3) })
    : number(row.score, 3);
const apart = (one, other) => !("low" in one) || one.low > other.high || other.low > one.high;
const signed = (value) => `${value < 0 ? "−" : "+"}${number(Math.abs(value), 3)}`;
