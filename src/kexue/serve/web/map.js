// The documents of an index in the plane: look around, and see where the hits of a query lie.

import { Latest, ask, problem } from "./api.js";
import { debounced, el, field, select } from "./dom.js";
import { number, t } from "./i18n.js";
import { address } from "./router.js";

const SAMPLES = [500, 2000, 5000, 20000];
const HITS = 20;
const LISTED = 30;
const LONGEST_ID = 300; // characters: the ids of hits go into an address
const REACH = 14; // pixels within which a point is meant
const STEP = 1.4; // one step of zoom

export function mount(root, { set }) {
  let state = {};
  let loaded = null;
  let asked = null;
  let sampled = []; // the documents drawn, and how many there are
  let documents = 0;
  let points = []; // those, and the hits that are not among them
  let hits = new Set();
  let pointed = null; // the point under the pointer or in the list
  let view = null; // {x, y, zoom}: the point of the plane in the middle, and pixels per unit relative to the whole
  const latest = { points: new Latest(), hits: new Latest(), others: new Latest() };

  const box = el("input", { type: "search", autocomplete: "off", spellcheck: "false", placeholder: t("mapHint") });
  const sample = select(
    SAMPLES.map((n) => [String(n), number(n)]),
    (value) => set({ sample: value }),
  );
  const status = el("p", { class: "status", role: "status" });
  const trouble = el("div");
  const canvas = el("canvas", {
    tabindex: "0",
    role: "application",
    "aria-label": t("mapLabel"),
    "aria-describedby": "map-keys",
  });
  const tip = el("p", { class: "tip", hidden: true, "aria-hidden": "true" });
  const list = el("ul", { class: "points" });
  const share = el("p", { class: "note" });
  const listed = el("h2", {});
  const zooms = [
    ["−", "zoomOut", () => zoom(1 / STEP)],
    ["+", "zoomIn", () => zoom(STEP)],
    ["⤢", "zoomAll", home],
  ];
  const tools = el(
    "div",
    { class: "tools" },
    zooms.map(([sign, name, act]) =>
      el("button", { type: "button", "aria-label": t(name), title: t(name), onclick: act }, sign),
    ),
  );
  root.append(
    el(
      "form",
      { role: "search", class: "ask", onsubmit: (event) => event.preventDefault() },
      el(
        "div",
        { class: "row" },
        field(t("mapQuery"), box, { class: "field grow" }),
        field(t("drawn"), sample, { class: "field narrow" }),
      ),
    ),
    status,
    trouble,
    el("div", { class: "plane" }, canvas, tip, tools),
    el("p", { class: "note", id: "map-keys" }, t("mapKeys")),
    share,
    listed,
    list,
  );
  const settled = debounced(() => {
    set(
      { view: view && [view.x, view.y, view.zoom].map((value) => Number(value.toPrecision(5))).join(",") },
      { push: false },
    );
  }, 200);
  const soon = debounced(search, 180);
  let typing = false;
  box.addEventListener("input", () => {
    set({ q: box.value }, { push: !typing });
    typing = true;
  });
  box.addEventListener("blur", () => (typing = false));
  box.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    event.preventDefault();
    set({ q: "" });
  });

  function show(next) {
    const moved = next.view !== state.view;
    const typed = state.index !== undefined && (state.q ?? "") !== (next.q ?? ""); // not when the page opens
    state = next;
    if (box.value !== (state.q ?? "")) box.value = state.q ?? "";
    sample.value = state.sample || "2000";
    if (moved || !view) view = parsed(state.view);
    const name = JSON.stringify([state.index, state.sample]);
    if (name !== loaded) {
      loaded = name;
      load();
    }
    const question = JSON.stringify([state.index, state.q]);
    if (question !== asked) {
      asked = question;
      latest.hits.abort();
      if (typed) soon();
      else search();
    }
    if (points.length) refresh();
  }

  const plane = (signal, ids = []) => {
    const query = new URLSearchParams([["sample", state.sample || "2000"], ...ids.map((id) => ["id", id])]);
    return ask(`v1/indexes/${encodeURIComponent(state.index)}/map?${query}`, { signal });
  };

  function load() {
    sampled = points = [];
    share.textContent = "";
    status.textContent = t("working");
    latest.points.run(
      plane,
      (answer) => {
        trouble.replaceChildren();
        sampled = points = answer.points;
        documents = answer.documents ?? sampled.length;
        share.textContent =
          answer.explained === undefined ? "" : t("mapShare", { share: number(100 * answer.explained, 0) });
        placeHits();
      },
      failed(load),
    );
  }

  /** Hits that were not drawn have their places, too. */
  function placeHits() {
    const there = new Set(sampled.map(({ id }) => id));
    const others = [...hits].filter((id) => !there.has(id) && id.length <= LONGEST_ID);
    latest.others.abort();
    points = sampled;
    report();
    refresh();
    if (!sampled.length || !others.length) return;
    latest.others.run(
      (signal) => plane(signal, others),
      (answer) => {
        points = [...sampled, ...answer.points];
        report();
        refresh();
      },
      failed(placeHits),
    );
  }

  function search() {
    soon.cancel();
    if (!state.q?.trim()) {
      hits = new Set();
      return placeHits();
    }
    const body = { query: state.q, index: state.index, top_k: HITS };
    latest.hits.run(
      (signal) => ask("v1/search", { body, signal }),
      ({ results }) => {
        trouble.replaceChildren();
        hits = new Set(results.map(({ id }) => id));
        placeHits();
      },
      failed(search),
    );
  }

  const failed = (retry) => (error) => {
    status.textContent = "";
    trouble.replaceChildren(problem(error, retry));
  };

  function report() {
    if (!points.length) return;
    const seen = points.filter(({ id }) => hits.has(id)).length;
    const drawn =
      sampled.length < documents
        ? t("mapSample", { n: sampled.length, all: number(documents) })
        : t("mapPoints", { n: documents });
    const outside = points.length - sampled.length;
    const marked = hits.size ? t(outside ? "mapHitsOutside" : "mapHits", { n: seen, all: hits.size, outside }) : "";
    status.textContent = [drawn, marked].filter((words) => words).join(" ");
  }

  // The plane on the canvas

  function base() {
    const [xs, ys] = ["x", "y"].map((axis) => points.map((point) => point[axis]));
    const range = (values) =>
      values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);
    const [[left, right], [low, high]] = [range(xs), range(ys)];
    const fit = 0.92 * Math.min(canvas.clientWidth / (right - left || 1), canvas.clientHeight / (high - low || 1));
    return { fit, x: (left + right) / 2, y: (low + high) / 2 };
  }

  function current() {
    const whole = base();
    const { x, y, zoom: times } = view ?? { ...whole, zoom: 1 };
    const scale = whole.fit * times;
    const [w, h] = [canvas.clientWidth / 2, canvas.clientHeight / 2];
    return { x, y, zoom: times, scale, to: (point) => [w + (point.x - x) * scale, h - (point.y - y) * scale] };
  }

  function refresh() {
    draw();
    enumerate();
  }

  function draw() {
    const ratio = window.devicePixelRatio || 1;
    const [w, h] = [canvas.clientWidth, canvas.clientHeight];
    if (!w || !points.length) return;
    if (canvas.width !== Math.round(w * ratio) || canvas.height !== Math.round(h * ratio)) {
      canvas.width = Math.round(w * ratio);
      canvas.height = Math.round(h * ratio);
    }
    const style = getComputedStyle(canvas);
    const pen = canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, w, h);
    const { to, zoom: times } = current();
    const size = Math.min(5, 2.2 + 0.6 * Math.log2(Math.max(1, times)));
    const dot = (point, radius) => {
      const [x, y] = to(point);
      if (x < -9 || y < -9 || x > w + 9 || y > h + 9) return;
      pen.beginPath();
      pen.arc(x, y, radius, 0, 2 * Math.PI);
      pen.fill();
    };
    pen.fillStyle = style.color;
    pen.globalAlpha = hits.size ? 0.35 : 0.6;
    for (const point of points) if (!hits.has(point.id)) dot(point, size);
    pen.globalAlpha = 1;
    pen.fillStyle = style.outlineColor;
    for (const point of points) if (hits.has(point.id)) dot(point, size + 3);
    const meant = pointed ?? points.find(({ id }) => id === state.id);
    tip.hidden = !meant;
    if (!meant) return;
    const [x, y] = to(meant);
    pen.strokeStyle = style.outlineColor;
    pen.lineWidth = 2;
    pen.beginPath();
    pen.arc(x, y, size + 6, 0, 2 * Math.PI);
    pen.stroke();
    tip.textContent = meant.text;
    tip.style.insetInlineStart = `${Math.max(8, Math.min(x + 14, w - tip.offsetWidth - 8))}px`;
    tip.style.insetBlockStart = `${y + 18 + tip.offsetHeight > h ? Math.max(4, y - tip.offsetHeight - 14) : y + 14}px`;
  }

  /** The points in view as a list: hits first, then those nearest to the middle. */
  function enumerate() {
    const [w, h] = [canvas.clientWidth, canvas.clientHeight];
    if (!points.length || !w) return;
    const { to } = current();
    const inside = points
      .map((point) => ({ point, at: to(point) }))
      .filter(({ at: [x, y] }) => x >= 0 && y >= 0 && x <= w && y <= h);
    const away = ({ point, at: [x, y] }) => (hits.has(point.id) ? 0 : 1e9) + Math.hypot(x - w / 2, y - h / 2);
    inside.sort((one, other) => away(one) - away(other));
    listed.textContent = t("inView", { n: inside.length, shown: Math.min(LISTED, inside.length) });
    const entry = ({ point }) => {
      const mark = (wanted) => () => {
        pointed = wanted;
        draw();
      };
      return el(
        "li",
        { class: hits.has(point.id) ? "hit-point" : null },
        el(
          "a",
          {
            href: address("search", { index: state.index, q: point.text.slice(0, 300) }),
            onpointerenter: mark(point),
            onpointerleave: mark(null),
            onfocus: mark(point),
            onblur: mark(null),
          },
          point.text,
        ),
        hits.has(point.id) ? el("span", { class: "badge" }, t("hit")) : null,
      );
    };
    list.replaceChildren(...inside.slice(0, LISTED).map(entry));
  }

  // Looking around

  const slow = debounced(enumerate, 120);

  function look(next) {
    view = next;
    draw();
    slow();
    settled();
  }

  function home() {
    view = null;
    refresh();
    settled();
  }

  /** Zoom about a place of the canvas, by default its middle. */
  function zoom(times, [px, py] = [canvas.clientWidth / 2, canvas.clientHeight / 2]) {
    if (!points.length) return;
    const now = current();
    const factor = Math.max(0.5, Math.min(200, now.zoom * times)) / now.zoom;
    const [dx, dy] = [(px - canvas.clientWidth / 2) / now.scale, -(py - canvas.clientHeight / 2) / now.scale];
    look({ x: now.x + dx * (1 - 1 / factor), y: now.y + dy * (1 - 1 / factor), zoom: now.zoom * factor });
  }

  function pan(dx, dy) {
    if (!points.length) return;
    const now = current();
    look({ x: now.x - dx / now.scale, y: now.y + dy / now.scale, zoom: now.zoom });
  }

  function under(event) {
    if (!points.length) return null;
    const { to } = current();
    const { left, top } = canvas.getBoundingClientRect();
    let [best, reach] = [null, REACH];
    for (const point of points) {
      const [x, y] = to(point);
      const far = Math.hypot(x - event.clientX + left, y - event.clientY + top) - (hits.has(point.id) ? 4 : 0);
      if (far < reach) [best, reach] = [point, far];
    }
    return best;
  }

  let drag = null;
  canvas.addEventListener(
    "wheel",
    (event) => {
      event.preventDefault();
      const { left, top } = canvas.getBoundingClientRect();
      zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0016)), [event.clientX - left, event.clientY - top]);
    },
    { passive: false },
  );
  canvas.addEventListener("pointerdown", (event) => {
    drag = { x: event.clientX, y: event.clientY, moved: false };
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (drag) {
      const [dx, dy] = [event.clientX - drag.x, event.clientY - drag.y];
      if (!drag.moved && Math.hypot(dx, dy) < 4) return;
      drag = { x: event.clientX, y: event.clientY, moved: true };
      pan(dx, dy);
    } else {
      const point = under(event);
      if (point === pointed) return;
      pointed = point;
      draw();
    }
  });
  canvas.addEventListener("pointerup", (event) => {
    if (drag && !drag.moved) set({ id: under(event)?.id ?? "" });
    drag = null;
  });
  canvas.addEventListener("pointercancel", () => (drag = null));
  canvas.addEventListener("pointerleave", () => {
    pointed = null;
    draw();
  });
  canvas.addEventListener("keydown", (event) => {
    const quarter = canvas.clientWidth / 8;
    const act = {
      ArrowLeft: () => pan(quarter, 0),
      ArrowRight: () => pan(-quarter, 0),
      ArrowUp: () => pan(0, quarter),
      ArrowDown: () => pan(0, -quarter),
      "+": () => zoom(STEP),
      "=": () => zoom(STEP),
      "-": () => zoom(1 / STEP),
      0: home,
    }[event.key];
    if (!act || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    act();
  });
  const watcher = new ResizeObserver(() => points.length && refresh());
  watcher.observe(canvas);
  document.addEventListener("kexue-theme", draw);

  function leave() {
    for (const one of [soon, settled, slow]) one.cancel();
    for (const one of Object.values(latest)) one.abort();
    watcher.disconnect();
    document.removeEventListener("kexue-theme", draw);
  }

  return { show, leave };
}

function parsed(words) {
  const [x, y, zoom] = (words ?? "").split(",").map(Number);
  return Number.isFinite(x) && Number.isFinite(y) && zoom > 0 ? { x, y, zoom } : null;
}
