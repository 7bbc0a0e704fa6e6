// Panel "Diffusion": images drawn by the server from noise, step by step, with the settings of the sampler.

import { Latest, problem, stream } from "./api.js";
import { el, field, gathered, select, slider } from "./dom.js";
import { number, t } from "./i18n.js";

const SOLVERS = {
  ddim: "DDIM",
  dpmpp_2m: "DPM++ 2M",
  heun: "Heun",
  rk4: "RK4",
  ddpm: "DDPM",
};
const SLIDERS = {
  // name: [least, most, step, start, decimals]
  steps: [1, 100, 1, 20, 0],
  eta: [0, 1, 0.05, 0, 2],
  scale: [0, 5, 0.1, 1.5, 1],
};
const COUNT = 16;

export function mount(root, { set, runs }) {
  let state = {};
  let asked = null;
  let frames = []; // [{words, image, estimate}]
  const latest = new Latest();
  const status = el("p", { class: "status", role: "status" });
  const failure = el("div");
  const later = gathered((patch) => set(patch, { push: false }), 200);
  const picture = (words) => {
    const image = el("img", { alt: words, width: "400", height: "400", hidden: true });
    return { image, box: el("figure", {}, image, el("figcaption", { class: "note" }, words)) };
  };
  const noisy = picture(t("noisyImages"));
  const expected = picture(t("expectedImages"));
  const place = el("input", { type: "range", min: "1", max: "1", step: "1", oninput: () => draw(Number(place.value)) });
  const run = select(
    runs.map(({ name, model }) => [name, `${name} (${model})`]),
    (name) => set({ run: name, class: "" }),
  );
  const kind = el("select", { onchange: () => set({ class: kind.value }) });
  const solver = select(
    Object.entries(SOLVERS),
    (name) => set({ solver: name }),
  );
  const seed = el("input", {
    type: "number",
    min: "0",
    max: "4294967295",
    step: "1",
    onchange: () => set({ seed: seed.validity.valid ? seed.value : "" }),
  });
  const sliders = Object.fromEntries(Object.keys(SLIDERS).map((name) => [name, sampler(name)]));
  const kindField = field(t("imageClass"), kind, { class: "field narrow" });
  const another = () => set({ seed: String((Number(state.seed || 0) + 1) % 2 ** 32) });
  root.append(
    el(
      "form",
      { class: "ask", onsubmit: (event) => event.preventDefault() },
      el(
        "div",
        { class: "row choices" },
        field(t("run"), run, { class: "field" }),
        kindField,
        field(t("solver"), solver, { class: "field" }),
        field(t("seed"), seed, { class: "field narrow" }),
        el("button", { type: "button", onclick: another }, t("anotherSeed")),
      ),
      el(
        "div",
        { class: "sliders samplers" },
        Object.values(sliders).map((one) => one.box),
      ),
    ),
    status,
    failure,
    field(t("trajectory"), place, { class: "field trajectory" }),
    el("div", { class: "two pictures" }, noisy.box, expected.box),
    el("p", { class: "note" }, t("diffusionNote")),
  );

  function sampler(name) {
    const [min, max, step] = SLIDERS[name];
    const told = (value) => words(name, value);
    return slider(t(`sampler_${name}`), t(`samplerNote_${name}`), { min, max, step }, told, (value) => later({ [name]: value }));
  }

  const words = (name, value) => number(Number(value), SLIDERS[name][4]);

  function show(next) {
    state = next;
    const chosen = runs.find(({ name }) => name === state.run) ?? runs[0];
    const classes = chosen.classes.includes(state.class) ? state.class : "";
    run.value = chosen.name;
    kind.replaceChildren(
      el("option", { value: "" }, t("anyClass")),
      ...chosen.classes.map((name) => el("option", { value: name }, name)),
    );
    kind.value = classes;
    kindField.hidden = sliders.scale.box.hidden = !chosen.classes.length;
    solver.value = Object.hasOwn(SOLVERS, state.solver) ? state.solver : "ddim";
    seed.value = /^\d+$/.test(state.seed ?? "") ? state.seed : "0";
    sliders.eta.input.disabled = solver.value !== "ddim";
    for (const [name, { input, output }] of Object.entries(sliders)) {
      input.value = state[name] || SLIDERS[name][3];
      output.textContent = words(name, input.value);
    }
    const body = {
      run: chosen.name,
      n: COUNT,
      steps: Number(sliders.steps.input.value),
      solver: solver.value,
      seed: Number(seed.value),
    };
    if (solver.value === "ddim") body.eta = Number(sliders.eta.input.value);
    if (chosen.classes.length) body.scale = Number(sliders.scale.input.value);
    if (classes) body.condition = classes;
    const question = JSON.stringify(body);
    if (question === asked) return;
    asked = question;
    load(body);
  }

  function load(body) {
    frames = [];
    failure.replaceChildren();
    status.textContent = t("working");
    latest.run(
      (signal) => stream("v1/diffusion", { body, signal }, take),
      () => {},
      (error) => {
        status.textContent = "";
        failure.replaceChildren(problem(error, () => load(body)));
      },
    );
  }

  function take(event) {
    const last = frames.at(-1);
    const { step, steps, n } = event;
    const words = event.done
      ? t("drawnIn", { n, seconds: number(event.seconds, 2) })
      : t("atStep", { step, steps, time: number(event.time, 3) });
    frames.push({ words, image: event.image, estimate: event.estimate ?? event.image });
    const follows = !last || Number(place.value) >= frames.length - 1 || event.done; // not where one looks back
    place.max = String(frames.length);
    if (!follows) return;
    place.value = String(frames.length);
    draw(frames.length);
  }

  function draw(at) {
    const frame = frames[at - 1];
    if (!frame) return;
    status.textContent = frame.words;
    place.setAttribute("aria-valuetext", frame.words);
    for (const [one, data] of [
      [noisy, frame.image],
      [expected, frame.estimate],
    ]) {
      one.image.src = `data:image/png;base64,${data}`;
      one.image.hidden = false;
    }
  }

  return {
    show,
    leave: () => {
      later.cancel();
      latest.abort();
    },
  };
}
