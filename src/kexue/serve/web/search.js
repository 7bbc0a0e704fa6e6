// Search as one types; every hit says what its score means and, on demand, why it is there.

import { Latest, ask, problem } from "./api.js";
import { debounced, el, field, select } from "./dom.js";
import { doubts } from "./doubts.js";
import { hitView } from "./hits.js";
import { number, t } from "./i18n.js";

const OPERATORS = { eq: "=", ne: "≠", lt: "<", le: "≤", gt: ">", ge: "≥", in: "∈", exists: "∃" };
const SETTLED = 140; // milliseconds of quiet before the server is asked

export function mount(root, { set }) {
  let state = {};
  let asked = null; // what the hits on the page answer
  let views = [];
  let typing = false;
  const latest = new Latest();

  const box = el("input", {
    type: "search",
    autocomplete: "off",
    spellcheck: "false",
    placeholder: t("searchHint"),
    enterkeyhint: "search",
  });
  const status = el("p", { class: "status", role: "status" });
  const trouble = el("div");
  const guide = el("div", { class: "note guide" });
  const chips = el("ul", { class: "chips", "aria-label": t("activeFilters") });
  const list = el("ol", { class: "hits", "aria-label": t("hits") });
  const count = el("input", {
    type: "number",
    min: "1",
    max: "100",
    step: "1",
    onchange: () => set({ k: count.valueAsNumber > 0 ? String(count.valueAsNumber) : "" }),
  });
  const rerank = select(
    [
      ["", t("rerankNone")],
      ["wrd", t("rerankWrd")],
      ["wmd", t("rerankWmd")],
    ],
    (value) => set({ rerank: value }),
  );
  const dehub = select(
    [
      ["", t("dehubBuilt")],
      ["none", t("dehubNone")],
      ["csls", t("dehubCsls")],
    ],
    (value) => set({ dehub: value }),
  );
  const options = el(
    "details",
    { class: "options" },
    el("summary", {}, t("options")),
    el(
      "div",
      { class: "row" },
      field(t("count"), count, { class: "field narrow" }),
      field(t("rerank"), rerank),
      field(t("dehub"), dehub),
    ),
    filterForm(addFilter),
  );
  const form = el(
    "form",
    { role: "search", class: "ask", onsubmit: (event) => event.preventDefault() },
    field(t("query"), box),
    chips,
    options,
  );
  root.append(form, status, trouble, guide, list);
  root.addEventListener("keydown", keys);
  box.addEventListener("input", () => {
    set({ q: box.value, open: "" }, { push: !typing });
    typing = true;
  });
  box.addEventListener("blur", () => (typing = false));
  const soon = debounced(search, SETTLED);
  if (!matchMedia("(pointer: coarse)").matches) box.focus(); // on a phone this would open the keyboard

  function show(next) {
    const question = JSON.stringify([next.index, next.q, next.k, next.rerank, next.dehub, next.f]);
    const typed = state.index !== undefined && (state.q ?? "") !== (next.q ?? ""); // not when the page opens
    state = next;
    if (box.value !== (state.q ?? "")) box.value = state.q ?? "";
    count.value = state.k ?? "10";
    rerank.value = state.rerank ?? "";
    dehub.value = state.dehub ?? "";
    if (state.k || state.rerank || state.dehub) options.open = true;
    showFilters();
    if (question === asked) return expand();
    asked = question;
    latest.abort();
    if (typed) soon();
    else search();
  }

  function search() {
    soon.cancel();
    if (!state.q?.trim()) {
      views = [];
      list.replaceChildren();
      trouble.replaceChildren();
      status.textContent = "";
      guide.replaceChildren(primer());
      return;
    }
    const body = { query: state.q, index: state.index, top_k: Number(state.k) || 10 };
    if (state.rerank) body.rerank = state.rerank;
    if (state.dehub) body.dehub = state.dehub;
    if (filters().length) body.filter = wire(filters());
    list.setAttribute("aria-busy", "true");
    latest.run((signal) => ask("v1/search", { body, signal }), answer, fail);
  }

  function answer({ results, timings, match, warnings }) {
    const weak = match === "weak";
    const verdict = weak ? [el("p", { class: "weak-match" }, el("strong", {}, t("noMatch")), " ", t("noMatchWords"))] : [];
    trouble.replaceChildren(...doubts(warnings, state.index), ...verdict);
    list.classList.toggle("weak", weak);
    list.removeAttribute("aria-busy");
    status.textContent = results.length
      ? t("found", { n: results.length, ms: number(1000 * (timings?.total ?? 0), 0) })
      : t(filters().length ? "nothingFiltered" : "nothing");
    views = results.map((hit) =>
      hitView(hit, { query: state.q, index: state.index, rerank: state.rerank, toggle, narrow: addFilter }),
    );
    list.replaceChildren(...views.map(({ node }) => node));
    guide.textContent = results.some(({ chance }) => typeof chance === "number") ? t("chanceGuide") : "";
    expand();
  }

  function fail(error) {
    list.removeAttribute("aria-busy");
    list.replaceChildren();
    views = [];
    status.textContent = "";
    guide.textContent = "";
    trouble.replaceChildren(problem(error, search));
  }

  function expand() {
    for (const view of views) view.open(view.id === state.open);
  }

  function toggle(id) {
    set({ open: state.open === id ? "" : id });
  }

  // Filters: [[field, operator, value], ...] as JSON in the address

  function filters() {
    try {
      const given = JSON.parse(state.f || "[]");
      return Array.isArray(given) ? given.filter((one) => Array.isArray(one) && one[1] in OPERATORS) : [];
    } catch {
      return [];
    }
  }

  function addFilter(name, operator, value) {
    const one = JSON.stringify([name, operator, value]);
    const kept = filters().filter((old) => JSON.stringify(old) !== one);
    set({ f: JSON.stringify([...kept, JSON.parse(one)]), open: "" });
  }

  function showFilters() {
    const chip = ([name, operator, value], place) => {
      const words = `${name} ${OPERATORS[operator]} ${Array.isArray(value) ? value.join(", ") : value}`;
      const remove = () => {
        const kept = filters().filter((_, i) => i !== place);
        set({ f: kept.length ? JSON.stringify(kept) : "", open: "" });
        box.focus();
      };
      return el(
        "li",
        {},
        el(
          "button",
          { type: "button", class: "chip on", "aria-label": t("removeFilter", { words }), onclick: remove },
          words,
          el("span", { "aria-hidden": "true" }, " ×"),
        ),
      );
    };
    chips.replaceChildren(...filters().map(chip));
    chips.hidden = !filters().length;
  }

  function keys(event) {
    const hits = views.map(({ node }) => node);
    const here = hits.indexOf(event.target.closest(".hit"));
    const inList = here >= 0;
    if (!inList && event.target !== box) return;
    const go = { ArrowDown: here + 1, ArrowUp: here - 1 }[event.key];
    if (go !== undefined && (inList || event.key === "ArrowDown") && hits.length) {
      event.preventDefault();
      if (go < 0) box.focus();
      else hits[Math.min(go, hits.length - 1)].focus();
    } else if (event.key === "Enter" && event.target === hits[here]) {
      toggle(views[here].id);
    } else if (event.key === "Escape") {
      event.preventDefault();
      if (inList && state.open) return set({ open: "" });
      box.focus();
      set({ q: "", open: "" });
    }
  }

  return { show, leave: () => (soon.cancel(), latest.abort()) };
}

/** What stands on the page before a question: how to read a hit, and the keys. */
function primer() {
  const entry = (name, words) => el("div", {}, el("dt", {}, t(name)), el("dd", {}, t(words)));
  return el(
    "div",
    { class: "primer" },
    el("p", {}, t("searchGuide")),
    el(
      "dl",
      {},
      entry("cosine", "primerCosine"),
      entry("chanceOf", "primerChance"),
      entry("probability", "primerProbability"),
      entry("why", "primerWhy"),
    ),
    el("p", {}, t("searchKeys")),
  );
}

/** What the server calls a filter: fields to a condition, or a list of conditions that all must hold. */
export function wire(filters) {
  const body = {};
  for (const [name, operator, value] of filters) {
    const one = { [operator]: value };
    body[name] = name in body ? [body[name], one].flat() : one;
  }
  return body;
}

function filterForm(add) {
  const name = el("input", { type: "text", autocomplete: "off", required: true });
  const value = el("input", { type: "text", autocomplete: "off" });
  const operator = select(
    Object.keys(OPERATORS).map((key) => [key, t(`op_${key}`)]),
    () => {},
  );
  const submit = () => {
    if (!name.value.trim()) return name.focus();
    add(name.value.trim(), operator.value, parse(operator.value, value.value.trim()));
    value.value = "";
  };
  const onkeydown = (event) => {
    if (event.key !== "Enter" || event.target.tagName !== "INPUT") return;
    event.preventDefault();
    submit();
  };
  return el(
    "fieldset",
    { class: "row", onkeydown },
    el("legend", {}, t("addFilter")),
    field(t("field"), name),
    field(t("operator"), operator),
    field(t("value"), value),
    el("button", { type: "button", onclick: submit }, t("add")),
  );
}

function parse(operator, words) {
  if (operator === "exists") return words !== "false";
  if (operator === "in") return words.split(/[,，]/).map((word) => scalar(word.trim()));
  return scalar(words);
}

// As `kexue search --filter` reads a value: numbers and booleans by their look, "..." to keep a string a string.
function scalar(words) {
  if (words === "true" || words === "false") return words === "true";
  if (/^".*"$/.test(words)) return words.slice(1, -1);
  return /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(words) ? Number(words) : words;
}
