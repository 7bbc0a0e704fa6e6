// Panel "Triples": a sentence with the triples that a served model finds in it, drawn as arcs and listed.

import { Latest, ask, problem } from "./api.js";
import { arcs } from "./arcs.js";
import { el, field, gathered, select, slider, table } from "./dom.js";
import { number, t } from "./i18n.js";

const THRESHOLDS = ["head", "tail"];
const LIMITS = { min: "0.05", max: "0.95", step: "0.05" };

export function mount(root, { set, extractors }) {
  let state = {};
  let asked = null;
  const latest = new Latest();
  const later = gathered((patch) => set(patch, { push: false }), 200);
  const text = el("textarea", {
    rows: "3",
    spellcheck: "false",
    placeholder: t("tripleHint"),
    oninput: () => later({ text: text.value }),
  });
  const model = select(
    extractors.map(({ name, model }) => [name, `${name} (${model})`]),
    (name) => set({ run: name, head: "", tail: "" }),
  );
  const words = (value) => number(Number(value), 2);
  const threshold = (name) =>
    slider(t(`threshold_${name}`), t(`thresholdNote_${name}`), LIMITS, words, (value) => later({ [name]: value }));
  const sliders = Object.fromEntries(THRESHOLDS.map((name) => [name, threshold(name)]));
  const status = el("p", { class: "status", role: "status" });
  const answer = el("div");
  root.append(
    el(
      "form",
      { class: "ask", onsubmit: (event) => event.preventDefault() },
      field(t("tripleText"), text),
      el("div", { class: "row choices" }, field(t("run"), model, { class: "field" })),
      el("div", { class: "sliders samplers" }, Object.values(sliders).map(({ box }) => box)),
    ),
    status,
    answer,
  );

  function show(next) {
    state = next;
    const chosen = extractors.find(({ name }) => name === state.run) ?? extractors[0];
    model.value = chosen.name;
    if (text.value !== (state.text ?? "")) text.value = state.text ?? "";
    const body = { model: chosen.name, texts: [state.text ?? ""] };
    for (const name of THRESHOLDS) {
      const { input, output } = sliders[name];
      input.value = state[name] || chosen[`${name}_threshold`];
      output.textContent = words(input.value);
      if (state[name]) body[`${name}_threshold`] = Number(input.value); // else the model's own, however fine
    }
    const question = JSON.stringify(body);
    if (question === asked) return;
    asked = question;
    load(body);
  }

  function load(body) {
    latest.abort();
    if (!body.texts[0].trim()) {
      status.textContent = t("tripleGuide");
      answer.replaceChildren();
      return;
    }
    latest.run(
      (signal) => ask("v1/extract", { body, signal }),
      (found) => draw(body.texts[0], found),
      (error) => {
        status.textContent = "";
        answer.replaceChildren(problem(error, () => load(body)));
      },
    );
  }

  function draw(said, { results: [triples], warnings = [] }) {
    const count = t("triplesFound", { n: triples.length });
    status.textContent = triples.length ? count : t("noTriples");
    answer.replaceChildren(
      ...warnings.map((words) => el("p", { class: "note" }, words)),
      arcs(said, triples, count),
      ...(triples.length ? [list(triples)] : []),
      el("p", { class: "note" }, t("tripleNote")),
    );
  }

  function list(triples) {
    const caption = t("triplesCaption");
    const row = ({ subject, predicate, object, score }) => [subject, predicate, object, number(score, 2)];
    const heads = [t("tripleSubject"), t("triplePredicate"), t("tripleObject"), t("tripleScore")];
    const rows = table(caption, heads, triples.map(row), { numeric: [3] });
    return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption }, rows);
  }

  return {
    show,
    leave: () => {
      later.cancel();
      latest.abort();
    },
  };
}
