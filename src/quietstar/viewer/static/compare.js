// Two runs side by side: what differs first, then both texts aligned.

import { align } from "./align.js";
import { href } from "./address.js";
import { count, h, number, readable, spoken, visible } from "./dom.js";
import { MEASURES, Run, largest, share, valueOf } from "./record.js";
import { source } from "./source.js";

const SIDES = ["left", "right"];
const FIRST = 8; // places listed at once
const KEPT = 24; // tokens of a shared stretch that are shown at each of its ends

export async function comparePage({ parts }) {
  document.title = "side by side · quietstar";
  const runs = await Promise.all([source.run(parts[1]), source.run(parts[2])].map(async (page) => Run.of(await page)));
  const steps = align(runs[0].tokens, runs[1].tokens, (a, b) => a.text === b.text);
  const parted = steps.filter((step) => !step.same);
  const most = Math.max(...runs.map((run) => largest(run, "kl")));
  const text = (n, step) => runs[n].tokens.slice(...step[SIDES[n]]).map((token) => token.text).join("");
  return {
    element: h(
      "div", { class: "page wide compare" },
      h("h1", {}, "Side by side"),
      facts(runs),
      h("h2", {}, parted.length ? `They part at ${count(parted.length, "place")}` : "They say the same"),
      listed(parted, text),
      h("div", { class: "aligned" }, SIDES.map((_, n) => h("h3", {}, h("a", { href: href(["run", runs[n].head.id]) }, h("code", {}, runs[n].head.id)))), steps.flatMap((step) => SIDES.map((_, n) => cell(runs[n], n, step, most, parted.indexOf(step))))),
      h("p", { class: "legend" }, `Tint: ${MEASURES.kl.long}. Each word leads to its thought.`),
    ),
  };
}

// The first places where they part, and the rest on demand.
function listed(parted, text) {
  const said = (n, step) => h("bdi", {}, visible(text(n, step)).slice(0, 80) || "(nothing)");
  const items = parted.map((step, n) =>
    h("li", {}, h("a", { href: `#d${n}`, onclick: (event) => jump(event, n) }, said(0, step), h("span", {}, " / "), said(1, step))),
  );
  const rest = items.slice(FIRST);
  return [
    h("ol", { class: "parted" }, items.slice(0, FIRST)),
    rest.length > 0 && h("details", {}, h("summary", {}, `${rest.length} more`), h("ol", { class: "parted" }, rest)),
  ];
}

function jump(event, n) {
  event.preventDefault();
  event.stopPropagation();
  document.getElementById(`d${n}`)?.scrollIntoView({ block: "center" });
}

// What is not the same: the question, the model, settings, and the numbers of each.
function facts(runs) {
  const mean = (run, name) => {
    const values = [...run.thoughts.values()].map((one) => one[name]).filter((value) => value !== null && Number.isFinite(value));
    return values.length ? number(values.reduce((a, b) => a + b, 0) / values.length, 4) : "–";
  };
  const names = [...new Set(runs.flatMap((run) => Object.keys(run.head.settings)))].filter((name) => name !== "show");
  const rows = [
    ["asked", ...runs.map((run) => run.head.asked || run.head.prompt)],
    ["what the model read", ...runs.map((run) => run.head.prompt)],
    ["model", ...runs.map((run) => run.head.model)],
    ["weights", ...runs.map((run) => `${run.head.base_hash.slice(0, 8)} ${run.head.head_hash.slice(0, 8)}`)],
    ...names.map((name) => [name.replaceAll("_", " "), ...runs.map((run) => String(run.head.settings[name] ?? "–"))]),
    ["ended", ...runs.map((run) => run.head.reason ?? "unfinished")],
    ["tokens", ...runs.map((run) => String(run.head.tokens))],
    ["thoughts", ...runs.map((run) => String(run.thoughts.size))],
    ["changed the likeliest word", ...runs.map((run) => String(run.head.flips))],
    ["mean w", ...runs.map((run) => mean(run, "weight"))],
    ["mean KL", ...runs.map((run) => mean(run, "kl"))],
  ];
  const differing = rows.filter(([, a, b]) => a !== b);
  const same = rows.length - differing.length;
  return h(
    "div", { class: "scroll" },
    h("table", { class: "differing" },
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "what differs"), runs.map((run) => h("th", { scope: "col" }, h("code", {}, run.head.id))))),
      h("tbody", {}, differing.map(([name, ...values]) => h("tr", {}, h("th", { scope: "row" }, name), values.map((value) => h("td", {}, h("bdi", {}, readable(value).slice(0, 400)))))))),
    h("p", { class: "facts" }, `${same} of ${rows.length} are the same.`),
  );
}

function cell(run, n, step, most, number_) {
  const tokens = run.tokens.slice(...step[SIDES[n]]);
  const long = step.same && tokens.length > 2 * KEPT + 8;
  const shown = long ? [...tokens.slice(0, KEPT), null, ...tokens.slice(-KEPT)] : tokens;
  return h(
    "div",
    { class: step.same ? "cell same" : "cell parts", id: !step.same && n === 0 ? `d${number_}` : null },
    shown.map((token) => {
      if (token === null) return h("span", { class: "cut" }, ` … ${count(tokens.length - 2 * KEPT, "token")} … `);
      const place = token.position - 1;
      const tint = share(valueOf(run, token, "kl"), most, "kl");
      const flipped = run.thoughts.get(place)?.flipped ? " flipped" : "";
      return run.thoughts.has(place)
        ? h("a", { class: `token${flipped}`, href: href(["run", run.head.id, place]), "aria-label": spoken(token.text), "--t": tint > 0.01 ? tint.toFixed(3) : null }, readable(token.text))
        : h("span", { class: "token" }, readable(token.text));
    }),
    !tokens.length && h("span", { class: "cut" }, "(nothing)"),
  );
}
