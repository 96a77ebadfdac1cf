// A thought's tokens as a row of pieces.

import { h, percent, quoted, real_of, visible } from "./dom.js";

// A thought token by token, the likelier the darker; its probabilities below.
export function pieces(sample) {
  if (!sample.ids.length) return h("p", { class: "none" }, "an empty thought");
  const texts = sample.pieces.length ? sample.pieces : sample.ids.map((id) => `#${id}`);
  return h(
    "span",
    { class: "pieces", "aria-label": `thought: ${visible(sample.text)}`, role: "img" },
    texts.map((text, n) => {
      const probability = Math.exp(real_of(sample.logprobs[n]) ?? 0);
      const known = sample.logprobs[n] !== undefined;
      return h(
        "span",
        { class: "piece", "--p": known ? probability.toFixed(3) : 0, title: known ? `${quoted(text)} ${percent(probability)}, token ${sample.ids[n]}` : null },
        h("bdi", {}, visible(text).replaceAll(" ", "·") || "◦"),
        known && h("small", {}, percent(probability).replace(" ", "")),
      );
    }),
  );
}
