// Two texts: how near they are, and which word went to which.

import { alignment } from "./alignment.js";
import { Latest, ask, problem } from "./api.js";
import { debounced, el, field, select } from "./dom.js";
import { rarity } from "./hits.js";
import { number, t } from "./i18n.js";

export function mount(root, { set }) {
  let state = {};
  let asked = null;
  const latest = new Latest();
  const area = (name) =>
    el("textarea", {
      rows: "3",
      spellcheck: "false",
      oninput: (event) => set({ [name]: event.target.value }, { push: false }),
    });
  const areas = { a: area("a"), b: area("b") };
  const kind = select(
    [
      ["", t("kindWrd")],
      ["wmd", t("kindWmd")],
    ],
    (value) => set({ kind: value }),
  );
  const status = el("div", { role: "status" });
  const answer = el("div");
  root.append(
    el(
      "form",
      { class: "ask", onsubmit: (event) => event.preventDefault() },
      el("div", { class: "two" }, field(t("textA"), areas.a), field(t("textB"), areas.b)),
      el("div", { class: "row" }, field(t("kind"), kind)),
    ),
    status,
    answer,
  );
  const soon = debounced(compare, 300);

  function show(next) {
    const question = JSON.stringify([next.index, next.a, next.b, next.kind]);
    const typed = document.activeElement?.tagName === "TEXTAREA";
    state = next;
    for (const name of ["a", "b"]) if (areas[name].value !== (state[name] ?? "")) areas[name].value = state[name] ?? "";
    kind.value = state.kind ?? "";
    if (question === asked) return;
    asked = question;
    latest.abort();
    if (typed) soon();
    else compare();
  }

  function compare() {
    soon.cancel();
    if (!state.a?.trim() || !state.b?.trim()) {
      status.replaceChildren(el("p", { class: "note" }, t("compareGuide")));
      answer.replaceChildren();
      return;
    }
    const body = { texts: [state.a, state.b], explain: true, kind: state.kind || "wrd", index: state.index };
    latest.run(
      (signal) => ask("v1/compare", { body, signal }),
      draw,
      (error) => {
        status.replaceChildren();
        answer.replaceChildren(problem(error, compare));
      },
    );
  }

  function draw({ cosine, distance, percentile, kind: used, explanation, warnings }) {
    const entry = (name, words, wide) =>
      el("div", { class: wide ? "wide" : null }, el("dt", {}, name), el("dd", {}, words));
    const name = (used ?? "wrd").toUpperCase();
    status.replaceChildren(
      el(
        "dl",
        { class: "meaning big" },
        entry(t("cosine"), number(cosine, 3)),
        typeof distance === "number" ? entry(t("distanceOf", { name }), number(distance, 3)) : null,
        typeof percentile === "number" ? entry(t("percentile"), rarity(percentile), true) : null,
      ),
    );
    if (typeof percentile !== "number")
      status.append(el("p", { class: "note" }, t("noPercentile", { index: state.index })));
    answer.replaceChildren(
      explanation ? alignment(explanation, state.a, state.b, warnings) : el("p", { class: "note" }, t("noExplanation")),
    );
  }

  return { show, leave: () => (soon.cancel(), latest.abort()) };
}
