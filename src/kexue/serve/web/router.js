// State of the page in its URL: #panel?name=value reproduces what is shown.

export const PANELS = ["search", "compare", "map", "whitening", "hubness", "extract", "sampling", "diffusion"];

/** The panel, one of those there are, and its state, as strings, from the address. */
export function read(panels) {
  const [name, query = ""] = splitOnce(location.hash.slice(1), "?");
  const panel = panels.includes(name) ? name : panels[0];
  return { panel, state: Object.fromEntries(new URLSearchParams(query)) };
}

/** The address of a state; what is empty is left out. */
export function address(panel, state) {
  const given = Object.entries(state).filter(([, value]) => value !== undefined && value !== null && value !== "");
  const query = new URLSearchParams(given).toString();
  return `#${panel}${query ? `?${query}` : ""}`;
}

/** Show a state in the address bar: as a new step of the history, or in place of the present one. */
export function write(panel, state, push) {
  const target = address(panel, state);
  if (target === location.hash) return;
  history[push ? "pushState" : "replaceState"](null, "", target);
}

function splitOnce(text, mark) {
  const at = text.indexOf(mark);
  return at < 0 ? [text] : [text.slice(0, at), text.slice(at + 1)];
}
