// One hit: its text, what its score means in words, and why it was found.

import { alignment } from "./alignment.js";
import { Latest, ask, problem } from "./api.js";
import { bounded, el } from "./dom.js";
import { number, t } from "./i18n.js";

const LONGEST = 4000; // characters of a text on the page
const SHORT = 160; // of an id or a value

/** A list entry for `hit` and the means to open it. */
export function hitView(hit, { query, index, rerank, toggle, narrow }) {
  const text = hit.passage?.text ?? hit.document?.text ?? ""; // the best passage of a document that was split
  const place = hit.passage?.location;
  const metadata = Object.entries(hit.document?.metadata ?? {}).filter(
    ([, value]) => value !== null && typeof value !== "object", // no filter compares a list
  );
  const why = el("div", { class: "why", hidden: true });
  const button = el(
    "button",
    { type: "button", class: "ask-why", "aria-expanded": "false", onclick: () => toggle(hit.id) },
    t("why"),
  );
  const chip = ([name, value]) => {
    const words = t("pair", { name: bounded(name, SHORT), value: bounded(String(value), SHORT) });
    return el(
      "li",
      {},
      el(
        "button",
        {
          type: "button",
          class: "chip",
          "aria-label": t("filterBy", { words }),
          onclick: () => narrow(name, "eq", value),
        },
        words,
      ),
    );
  };
  const node = el(
    "li",
    { class: "hit", tabindex: "-1" },
    el("p", { class: "text" }, bounded(text, LONGEST)),
    el("dl", { class: "meaning" }, ...meaning(hit, rerank)),
    el(
      "div",
      { class: "foot" },
      el("code", { class: "id", title: t("id") }, bounded(hit.id, SHORT)),
      place ? el("span", { class: "place" }, bounded(place, SHORT)) : null,
      el("ul", { class: "chips" }, metadata.map(chip)),
      button,
    ),
    why,
  );

  const latest = new Latest();
  let opened = false;
  function open(wanted) {
    if (wanted === opened) return;
    opened = wanted;
    node.classList.toggle("open", wanted);
    button.setAttribute("aria-expanded", String(wanted));
    why.hidden = !wanted;
    if (wanted) explain();
    else latest.abort();
  }

  function explain() {
    why.replaceChildren(el("p", { class: "note", role: "status" }, t("working")));
    const body = { texts: [query, text], explain: true, index, kind: rerank || "wrd" };
    latest.run(
      (signal) => ask("v1/compare", { body, signal }),
      ({ explanation, warnings }) =>
        why.replaceChildren(
          explanation ? alignment(explanation, query, text, warnings) : el("p", { class: "note" }, t("noExplanation")),
        ),
      (error) => why.replaceChildren(problem(error, explain)),
    );
  }

  return { id: hit.id, node, open };
}

/** What a score means: terms and descriptions for a <dl>. */
export function meaning({ score, chance, probability }, rerank = "") {
  const shown = [term(t(rerank ? `score_${rerank}` : "cosine"), number(score, 3))];
  if (typeof chance === "number") shown.push(term(t("chanceOf"), rareness(chance)));
  if (probability) {
    const { value, low, high } = probability;
    const words = t("probabilityWords", { value: percent(value), low: percent(low), high: percent(high) });
    shown.push(term(t("probability"), words));
  }
  return shown;
}

const term = (name, words) => el("div", {}, el("dt", {}, name), el("dd", {}, words));
const percent = (share) => number(100 * share, 0);

/** How often an unrelated question finds a hit as near: one in so many, or a share where that is large. */
export function rareness(chance) {
  if (chance <= 0.1) return t("oneIn", { many: number(Math.floor(1 / chance + 1e-6), 0) });
  return t("shareOf", { share: number(Math.ceil(100 * chance - 1e-6), 0) });
}

/** A bar on which every mark is ten times rarer, and the same in words. */
export function rarity(percentile) {
  const share = Math.min(4, -Math.log10(Math.max(1 - percentile / 100, 1e-4))) / 4;
  const fill = el("span", { class: "fill" });
  fill.style.inlineSize = `${(100 * share).toFixed(1)}%`;
  const words = percentile >= 100 ? t("nearerAll") : t("nearer", { percentile: tail(percentile) });
  return el(
    "div",
    { class: "rarity" },
    el("span", { class: "bar", "aria-hidden": "true" }, fill),
    el("span", {}, words),
  );
}

/** A percentile with the digits that its distance from 100 needs, never rounded up to it. */
export function tail(percentile) {
  const left = 100 - percentile;
  const digits = left >= 1 ? 1 : Math.min(4, Math.ceil(-Math.log10(left)));
  const scale = 10 ** digits;
  return number(Math.floor(percentile * scale + 1e-6) / scale, digits);
}
