// Panel "Hubness": the documents that are near very many others, and measures of it.

import { Latest, ask, problem } from "./api.js";
import { bars } from "./chart.js";
import { bounded, el, field, fold, responsive, table } from "./dom.js";
import { number, t } from "./i18n.js";

const BARS = 60;
const FEW = 200; // documents; fewer say little

export function mount(root, { set }) {
  let state = {};
  let asked = null;
  const latest = new Latest();
  const whole = (name, start, max) => {
    const input = el("input", {
      type: "number",
      min: "1",
      max,
      step: "1",
      onchange: () => set({ [name]: input.valueAsNumber > 0 ? String(input.valueAsNumber) : "" }),
    });
    return { input, start };
  };
  const controls = { k: whole("k", "10", "1000"), top: whole("top", "20", "1000") };
  const status = el("p", { class: "status", role: "status" });
  const answer = el("div");
  root.append(
    el(
      "form",
      { class: "ask", onsubmit: (event) => event.preventDefault() },
      el(
        "div",
        { class: "row" },
        field(t("neighbours"), controls.k.input, { class: "field narrow" }),
        field(t("worst"), controls.top.input, { class: "field narrow" }),
      ),
    ),
    status,
    answer,
  );

  function show(next) {
    state = next;
    for (const [name, { input, start }] of Object.entries(controls)) input.value = state[name] || start;
    const question = JSON.stringify([state.index, state.k, state.top]);
    if (question === asked) return;
    asked = question;
    load();
  }

  function load() {
    status.textContent = t("working");
    const query = new URLSearchParams({ index: state.index ?? "", k: state.k || "10", top: state.top || "20" });
    latest.run(
      (signal) => ask(`v1/hubness?${query}`, { signal }),
      draw,
      (error) => {
        status.textContent = "";
        answer.replaceChildren(problem(error, load));
      },
    );
  }

  function draw(report) {
    status.textContent = "";
    const percent = (share, digits = 0) => number(100 * share, digits);
    const degree = report.k_skewness < 1 ? "slight" : report.k_skewness < 2 ? "moderate" : "strong";
    const reading = [
      t(`hub_${degree}`, { skewness: number(report.k_skewness, 2) }),
      t("hubTop", { share: percent(report.top20_share) }),
      t("hubAnti", { share: percent(report.antihub_occurrence, 1), k: report.k }),
      t("hubMax", { max: number(report.max), k: report.k }),
    ];
    const documents = report.documents ?? report.n;
    const doubts = [
      report.n < documents ? t("hubSample", { n: report.n, all: number(documents) }) : null,
      report.n < FEW ? t("hubFew", { n: report.n }) : null,
    ];
    const measures = [
      [t("skewness"), number(report.k_skewness, 3), t("skewnessNote")],
      [t("robinhood"), number(report.robinhood, 3), t("robinhoodNote")],
      [t("gini"), number(report.gini, 3), t("giniNote")],
      [t("atkinson"), number(report.atkinson, 3), t("giniNote")],
      [t("antihubs"), `${percent(report.antihub_occurrence, 1)} %`, t("antihubsNote")],
      [t("hubShare"), `${percent(report.hub_occurrence, 1)} %`, t("hubShareNote")],
    ];
    const data = binned(report.histogram ?? []);
    const says = ({ from, to, documents }) =>
      t("barWords", { n: documents, range: from === to ? number(from) : `${number(from)}–${number(to)}` });
    answer.replaceChildren(
      el(
        "ul",
        { class: "reading" },
        reading.map((words) => el("li", {}, words)),
      ),
      ...doubts.filter((words) => words).map((words) => el("p", { class: "note doubt" }, words)),
      degree === "slight" ? "" : el("p", { class: "note" }, t("hubRemedy")),
      el("h2", {}, t("histogram")),
      data.length
        ? responsive((width) =>
            bars({
              width,
              label: t("histogramLabel", { n: report.n, max: number(report.max), k: report.k }),
              data,
              middle: report.k,
              middleWords: t("mean", { k: report.k }),
              xLabel: t("timesFound"),
              yLabel: t("documentsAxis"),
              format: (value) => number(value),
              says,
            }),
          )
        : el("p", { class: "note" }, t("noHistogram")),
      data.length
        ? fold(
            t("asTable"),
            el(
              "div",
              { class: "scroll", tabindex: "0", role: "region", "aria-label": t("histogram") },
              table(
                t("histogram"),
                [t("timesFound"), t("documentsAxis")],
                data
                  .filter(({ documents }) => documents)
                  .map(({ from, to, documents }) => [
                    from === to ? number(from) : `${number(from)}–${number(to)}`,
                    number(documents),
                  ]),
                { numeric: [0, 1] },
              ),
            ),
          )
        : "",
      el("h2", {}, t("worstHubs")),
      el(
        "div",
        { class: "scroll", tabindex: "0", role: "region", "aria-label": t("worstHubs") },
        table(
          t("worstCaption", { k: report.k, n: report.top.length }),
          [t("timesFound"), t("text"), t("id")],
          report.top.map(({ id, count, text }) => [number(count), text, bounded(id, 160)]),
          { numeric: [0], wide: [1, 2] },
        ),
      ),
      fold(
        t("measures"),
        el(
          "div",
          { class: "scroll", tabindex: "0", role: "region", "aria-label": t("measures") },
          table(
            t("measuresCaption", { n: report.n, k: report.k }),
            [t("measure"), t("value"), t("meaning")],
            measures,
            { numeric: [1] },
          ),
        ),
      ),
    );
  }

  return { show, leave: () => latest.abort() };
}

/** A histogram as at most about 60 bars; the server gives pairs (times, documents), or ranges. */
export function binned(histogram) {
  const given = histogram.map((one) =>
    Array.isArray(one)
      ? { from: one[0], to: one[0], documents: one[1] }
      : { from: one.count_from, to: one.count_to, documents: one.documents },
  );
  if (!given.length) return [];
  const end = Math.max(...given.map(({ to }) => to)) + 1;
  const size = Math.ceil(end / BARS);
  const found = Array.from({ length: Math.ceil(end / size) }, (_, i) => ({
    from: i * size,
    to: (i + 1) * size - 1,
    documents: 0,
  }));
  for (const { from, documents } of given) found[Math.floor(from / size)].documents += documents;
  return found;
}
