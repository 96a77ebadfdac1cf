// What the colours mean: the bounds of a scale with their colours, the noise floor, and the marks.

import { h, small } from "./dom.js";
import { MEASURES } from "./record.js";
import { BOUNDS } from "./scale.js";

// `runs` are those that are shown by it.
export function legend(measure, runs) {
  const { label, unit, long } = MEASURES[measure];
  const bounds = BOUNDS[measure];
  const swatch = (n, text, more = "") => h("span", { class: `swatch${more}`, "data-step": n }, text);
  const scale = h(
    "span", { class: "scale" },
    h("span", {}, unit ? `${label}, ${unit}:` : `${label}:`), swatch(0, without(bounds[0], runs, measure)),
    bounds.map((bound, n) => swatch(n + 1, n === bounds.length - 1 ? `${bound} and more` : `${bound}`)),
    measure === "gain" && swatch(3, "below 0", " negative"),
  );
  return [scale, h("span", { class: "words" }, `${long}. Each colour starts at its number, the same in every run. `, noise(runs, measure), " Underlined: likeliest word changed.")];
}

// What has no colour: all below the first bound, and up to the noise floor where that is higher.
function without(bound, runs, measure) {
  const floors = runs.map((run) => run.floor(measure) ?? 0);
  return Math.max(...floors) < bound ? `below ${bound}` : `up to ${[...new Set(floors)].map(small).join(" or ")}: noise`;
}

// The noise floor of runs in words.
export function noise(runs, measure = "kl") {
  const by = measure === "gain" ? "kl" : measure;
  const known = runs.map((run) => run.floor(by));
  if (runs.every((run) => run.noise === null)) return "Noise floor not measured: small values and changed words may be rounding.";
  if (known.every((one) => one === null)) return "";
  const values = known.map((one) => (one === null ? "not measured" : small(one)));
  const unit = MEASURES[by].unit && ` ${MEASURES[by].unit}`;
  const said = new Set(values).size === 1 ? values[0] : `${values[0]} left, ${values[1]} right`;
  return `Noise floor${by === measure ? "" : " of KL"}: ${said}${unit}, the largest change when the same position is computed in another batch. Smaller values have no colour and are no change.`;
}
