// Doubts about an answer, as the server says them in English, in the language of the page.

import { el } from "./dom.js";
import { t } from "./i18n.js";

// Each sentence of kexue.search.warnings, and of kexue.sampling.diagnose, that has words of its own here; the groups
// fill them.
const SENTENCES = [
  [/^the scores are not calibrated/, "doubtAbsent"],
  [/^the index holds fewer than (?<n>\d+) documents/, "doubtFew"],
  [/^the calibration is too old: it saw (?<n>[\d,]+) documents, and (?<changed>[\d,]+)/, "doubtOld"],
  [/^the calibration is of an older version/, "doubtVersion"],
  [/^the calibration belongs to vectors of another/, "doubtSpace"],
  [/^the index was calibrated without an encoder/, "doubtEncoder"],
  [/^the judged pairs are too few for a probability/, "doubtPairs"],
  [/^documents added since the whitening was fitted/, "doubtDrift"],
  [/^the model does not know these parts of the query: (?<words>.+)\.$/, "doubtUnknown"],
  [/^the query looks \S+, and (?<model>\S+) reads only/, "doubtLanguage"],
  [/^the query looks \S+, but the documents/, "doubtOther"],
  [/^the query was cut: at most (?<n>\d+) tokens/, "doubtCut"],
  [/^R-hat (?<rhat>[\d.]+|inf) >/, "doubtRhat"],
  [/^effective sample size (?<n>\d+) </, "doubtEss"],
  [/^acceptance (?<share>[\d.]+) </, "doubtAcceptance"],
  [/^all values are equal/, "doubtStill"],
  [/^one chain alone/, "doubtAlone"],
];

/** A banner with the doubts, or an empty list; `index` is the name of the index. */
export function doubts(sentences, index) {
  const items = (sentences ?? []).map((sentence) => el("li", {}, words(sentence, index)));
  return items.length ? [el("ul", { class: "doubts", "aria-label": t("doubts") }, items)] : [];
}

function words(sentence, index) {
  for (const [pattern, key] of SENTENCES) {
    const found = pattern.exec(sentence);
    if (found) return t(key, { index, ...found.groups });
  }
  return sentence;
}
