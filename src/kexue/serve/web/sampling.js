// Panel "Sentences": chains that write around words, or say a sentence in other words, while one looks on.

import { Latest, problem, stream } from "./api.js";
import { traces } from "./chart.js";
import { doubts } from "./doubts.js";
import { el, field, responsive, select } from "./dom.js";
import { number, t } from "./i18n.js";

const STEPS = [100, 500, 2000];
const CHARTS = {
  // name: [the lines of an event, limits of y, decimals]
  scores: [(event) => event.log_rho, {}, 0],
  acceptance: [(event) => [event.acceptance], { low: 0, high: 1 }, 2],
  power: [(event) => [event.gamma], { low: 0 }, 1],
};

export function mount(root, { set, writers }) {
  let state = {};
  let asked = null;
  let events = [];
  const latest = new Latest();
  const status = el("p", { class: "status", role: "status" });
  const judgement = el("div");
  const list = el("ol", { class: "sentences" });
  const charts = el("div", { class: "two small charts" });
  const answer = el("div", {}, judgement, list, charts);
  const kind = select(
    [
      ["", t("aroundWords")],
      ["text", t("otherWords")],
    ],
    (value) => {
      told.placeholder = t(value ? "sentenceHint" : "wordsHint");
    },
  );
  const told = el("input", { type: "text", spellcheck: "false", placeholder: t("wordsHint") });
  const model = select(writers.map(({ name, model }) => [name, `${name} (${model})`]), () => {});
  const steps = select(STEPS.map((n) => [String(n), number(n)]), () => {});
  const seed = el("input", { type: "number", min: "0", max: "4294967295", step: "1" });
  const submit = (event) => {
    event.preventDefault();
    if (seed.value === state.seed && told.value === state.q) seed.value = String((Number(seed.value) + 1) % 2 ** 32);
    set({ q: told.value, kind: kind.value, run: model.value, steps: steps.value, seed: seed.value });
  };
  root.append(
    el(
      "form",
      { class: "ask", onsubmit: submit },
      el(
        "div",
        { class: "row choices" },
        field(t("sentencesFor"), kind, { class: "field" }),
        field(t("given"), told, { class: "field grow" }),
        field(t("run"), model, { class: "field" }),
        field(t("chainSteps"), steps, { class: "field narrow" }),
        field(t("seed"), seed, { class: "field narrow" }),
        el("button", { type: "submit" }, t("write")),
      ),
    ),
    status,
    answer,
    el("p", { class: "note" }, t("sentencesNote")),
  );

  function show(next) {
    state = next;
    const chosen = writers.find(({ name }) => name === state.run) ?? writers[0];
    kind.value = state.kind === "text" ? "text" : "";
    told.value = state.q ?? "";
    told.placeholder = t(kind.value ? "sentenceHint" : "wordsHint");
    model.value = chosen.name;
    steps.value = STEPS.map(String).includes(state.steps) ? state.steps : "500";
    seed.value = /^\d+$/.test(state.seed ?? "") ? state.seed : "0";
    const words = told.value.split(/[\s,，、]+/).filter(Boolean);
    const body = { run: chosen.name, steps: Number(steps.value), seed: Number(seed.value) };
    if (kind.value) body.text = told.value.trim();
    else body.words = words;
    const question = JSON.stringify(body);
    if (question === asked) return;
    asked = question;
    clear();
    if (!words.length) status.textContent = t("sentencesGuide");
    else load(body);
  }

  function clear() {
    latest.abort();
    events = [];
    judgement.replaceChildren();
    list.replaceChildren();
    charts.replaceChildren();
  }

  function load(body) {
    clear();
    answer.hidden = false;
    status.replaceChildren(t("working"));
    latest.run(
      (signal) => stream("v1/sampling", { body, signal }, (event) => take(event, body.words ?? [])),
      () => {},
      (error) => {
        answer.hidden = true;
        status.replaceChildren(problem(error, () => load(body)));
      },
    );
  }

  function take(event, words) {
    if (event.done) {
      finish(event, words);
      return;
    }
    const order = event.sentences.map((text, i) => [text, event.log_rho[i]]);
    write(order.map(([text, score]) => ({ text, log_rho: score })), words);
    events.push(event);
    const { step, steps: all, gamma } = event;
    status.textContent = t("atChainStep", { step, steps: all, gamma: number(gamma, 2) });
    if (events.length === 1) charts.replaceChildren(...Object.keys(CHARTS).map(chart));
    else charts.dispatchEvent(new Event("more"));
  }

  function finish({ results, acceptance, rhat, ess, flags, seconds }, words) {
    write(results, words);
    const shown = (value, digits) => (value === null ? "–" : number(value, digits));
    const said = { n: results.length, seconds: number(seconds, 1), acceptance: number(100 * acceptance, 1) };
    status.textContent = t("writtenIn", { ...said, rhat: shown(rhat, 3), ess: shown(ess, 0) });
    judgement.replaceChildren(...doubts(flags));
  }

  function write(sentences, words) {
    const item = ({ text, log_rho: score }) =>
      el("li", {}, el("span", { class: "text" }, marked(text, words)), el("span", { class: "number" }, number(score, 1)));
    list.replaceChildren(...sentences.map(item));
  }

  function chart(name) {
    const [lines, limits, digits] = CHARTS[name];
    let width = 0;
    const draw = () => {
      const ofEvent = events.map((event) => [event.step, lines(event)]);
      const count = ofEvent[0][1].length;
      return traces({
        width,
        label: t(`chain_${name}`),
        lines: Array.from({ length: count }, (_, i) => ofEvent.map(([step, values]) => [step, values[i]])),
        end: events[0].steps,
        ...limits,
        xLabel: t("chainStep"),
        yLabel: t(`chain_${name}`),
        xFormat: (value) => number(value),
        yFormat: (value) => number(value, digits),
      });
    };
    const box = responsive((room) => {
      width = room;
      return draw();
    });
    charts.addEventListener("more", () => width && box.isConnected && box.replaceChildren(draw()));
    return box;
  }

  return { show, leave: () => latest.abort() };
}

/** A text with the given words marked. */
function marked(text, words) {
  const parts = [];
  for (let at = 0; at < text.length; ) {
    const word = words.find((one) => text.startsWith(one, at));
    if (word) parts.push(el("mark", {}, word));
    else if (typeof parts.at(-1) === "string") parts.push(parts.pop() + text[at]);
    else parts.push(text[at]);
    at += word ? word.length : 1;
  }
  return parts;
}
