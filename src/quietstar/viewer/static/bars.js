// Likeliest next tokens, ranked, as bars; several lists side by side on one scale.

import { h, percent, real_of, visible } from "./dom.js";

// `lists` is [[title, choices], ...]; a token that leads somewhere else than in the first list is accented, in the second
// list only where `changed` says that it is more than rounding.
export function bars(lists, changed) {
  const first = lists[0]?.[1][0]?.id;
  return h(
    "div",
    { class: "bars-row", "--lists": lists.length },
    lists.map(([title, choices], list) =>
      h(
        "section",
        { class: "bars" },
        h("h3", {}, title),
        choices.length
          ? h("ol", {}, choices.map((choice, n) => bar(choice, n === 0 && choice.id !== first && (list !== 1 || changed))))
          : h("p", { class: "none" }, "no thought"),
      ),
    ),
  );
}

function bar(choice, other) {
  const share = Math.min(1, Math.max(0, real_of(choice.prob) ?? 0));
  return h(
    "li",
    { class: other ? "other" : null, title: `token ${choice.id}`, "--p": share.toFixed(4) },
    h("bdi", { class: "word" }, visible(choice.text).replaceAll(" ", "·") || "◦"),
    h("span", { class: "share" }, percent(choice.prob)),
  );
}
