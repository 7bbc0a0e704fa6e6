// Puts the panel that the address names on the page, and holds what all panels share: index, language, theme.

import { ask, forgetKey, hasKey, problem } from "./api.js";
import { el, field, select } from "./dom.js";
import { language, setLanguage, t } from "./i18n.js";
import { PANELS, address, read, write } from "./router.js";
import * as compare from "./compare.js";
import * as diffusion from "./diffusion.js";
import * as extract from "./extract.js";
import * as hubness from "./hubness.js";
import * as map from "./map.js";
import * as sampling from "./sampling.js";
import * as search from "./search.js";
import * as whitening from "./whitening.js";

const modules = { search, compare, map, whitening, hubness, extract, sampling, diffusion };
const main = document.getElementById("main");
const button = (id) => document.getElementById(id);

let indexes = null; // [{name, documents}]
let runs = []; // [{name, model, classes}]
let extractors = []; // [{name, model, predicates, head_threshold, tail_threshold}]
let writers = []; // [{name, model}]
let panels = PANELS; // those that this server has something for
let panel = null; // name of the panel shown
let state = {};
let shown = null; // what its mount() returned

/** The models of panels that look at no index. */
const models = () => ({ diffusion: runs, extract: extractors, sampling: writers });

/** Change the state: the address follows, and the panel shows it. */
function set(patch, { push = true } = {}) {
  state = { ...state, ...patch };
  write(panel, state, push);
  shown.show(state);
}

function render({ remount = false } = {}) {
  const wanted = read(panels);
  state = { index: indexes[0]?.name, ...wanted.state };
  if (remount || wanted.panel !== panel || !shown) {
    shown?.leave?.();
    panel = wanted.panel;
    frame();
    const body = main.querySelector(".panel");
    shown = modules[panel].mount(body, { set, runs, extractors, writers });
  }
  links();
  picker();
  shown.show(state);
}

function frame() {
  document.title = `${t(panel)} · kexue`;
  main.replaceChildren(
    el(
      "div",
      { class: "heading" },
      el("div", {}, el("h1", {}, t(panel)), el("p", { class: "lead" }, t(`${panel}Lead`))),
      el("div", { id: "picker" }),
    ),
    el("div", { class: "panel", id: panel }),
  );
}

function links() {
  const entry = (name) =>
    el("a", { href: address(name, { index: state.index }), "aria-current": name === panel ? "page" : null }, t(name));
  button("panels").replaceChildren(...panels.map((name) => el("li", {}, entry(name))));
}

function picker() {
  if (panel in models()) {
    button("picker").replaceChildren();
    return;
  }
  const known = indexes.some(({ name }) => name === state.index) || !state.index;
  const entries = known ? indexes : [{ name: state.index, documents: null }, ...indexes];
  const words = ({ name, documents }) =>
    documents === null || documents === undefined ? name : t("indexEntry", { name, n: documents });
  const control = select(
    entries.map((entry) => [entry.name, words(entry)]),
    (index) => {
      // what was opened, filtered or pointed at belongs to the other index
      set({ index, open: "", f: "", view: "", id: "", beta: "", gamma: "", dims: "" });
      links();
    },
  );
  control.value = state.index ?? "";
  button("picker").replaceChildren(field(t("index"), control));
}

async function start() {
  try {
    ({ indexes, runs = [], extractors = [], writers = [] } = await ask("v1/indexes"));
  } catch (error) {
    main.replaceChildren(problem(error, start));
    return;
  }
  panels = PANELS.filter((name) => (models()[name] ?? indexes).length);
  if (panels.length) render({ remount: true });
  else main.replaceChildren(el("p", { class: "empty" }, t("noIndexes")));
}

function dress() {
  document.documentElement.lang = language() === "zh" ? "zh-Hans" : "en";
  for (const node of document.querySelectorAll("[data-t]")) node.textContent = t(node.dataset.t);
  for (const node of document.querySelectorAll("[data-t-label]"))
    node.setAttribute("aria-label", t(node.dataset.tLabel));
  button("language").textContent = t("otherLanguage");
  button("language").lang = language() === "zh" ? "en" : "zh-Hans";
  button("theme").textContent = dark() ? t("light") : t("dark");
  button("forget").hidden = !hasKey();
}

function dark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function theme(name) {
  if (name) document.documentElement.dataset.theme = name;
  document.dispatchEvent(new Event("kexue-theme"));
  dress();
}

button("language").addEventListener("click", () => {
  setLanguage(language() === "zh" ? "en" : "zh");
  dress();
  if (shown) render({ remount: true });
  else start();
});
button("theme").addEventListener("click", () => {
  const name = dark() ? "light" : "dark";
  localStorage.setItem("kexue-theme", name);
  theme(name);
});
button("forget").addEventListener("click", () => {
  forgetKey();
  dress();
});
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address belongs to the panels
  main.focus();
});
document.addEventListener("kexue-key", dress);
document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, textarea, select");
  const box = document.querySelector(".panel input[type=search]");
  if (event.key !== "/" || typing || event.ctrlKey || event.metaKey || event.altKey || !box) return;
  event.preventDefault();
  box.focus();
  box.select();
});
window.addEventListener("hashchange", () => shown && render());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => theme(null));
theme(localStorage.getItem("kexue-theme"));
start();
