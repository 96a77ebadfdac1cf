// Two runs side by side: first what differs, then both texts aligned.

import { align } from "./align.js";
import { href } from "./address.js";
import { count, h, number, readable, small, spoken, visible } from "./dom.js";
import { legend } from "./legend.js";
import { Run, stepOf, told } from "./record.js";
import { source } from "./source.js";

const SIDES = ["left", "right"];
const FIRST = 8; // places listed at once
const KEPT = 24; // tokens of a shared stretch that are shown at each of its ends

export async function comparePage({ parts }) {
  document.title = "side by side · quietstar";
  const runs = await Promise.all([source.run(parts[1]), source.run(parts[2])].map(async (page) => Run.of(await page)));
  const steps = align(runs[0].tokens, runs[1].tokens, (a, b) => a.text === b.text);
  const parted = steps.filter((step) => !step.same);
  const alike = await parting(runs, steps, parted[0]);
  const text = (n, step) => runs[n].tokens.slice(...step[SIDES[n]]).map((token) => token.text).join("");
  return {
    element: h(
      "div", { class: "page wide compare" },
      h("h1", {}, "Side by side"),
      facts(runs),
      h("h2", {}, parted.length ? `The texts differ at ${count(parted.length, "position")}` : "The texts are the same"),
      alike !== null && h(
        "p", { class: "facts" },
        `At the first of them, the two words differ by no more than the noise floor (${small(alike)} nats): `,
        "this difference and all that follows from it may be rounding.",
      ),
      listed(parted, text),
      h(
        "div", { class: "aligned" },
        runs.map((run) => h("h3", {}, h("a", { href: href(["run", run.head.id]) }, h("code", {}, run.head.id)))),
        steps.flatMap((step) => runs.map((run, n) => cell(run, n, step, parted.indexOf(step)))),
      ),
      h("p", { class: "legend" }, legend("kl", runs), " Each word links to its thought."),
    ),
  };
}

// The larger noise floor, where the words at which two texts first part are no further apart than that; null elsewhere.
async function parting(runs, steps, first) {
  const floors = runs.map((run) => run.floor("logprob"));
  if (!first || floors.includes(null) || steps.indexOf(first) > 1) return null;
  const from = runs.map((run, n) => run.tokens[first[SIDES[n]][0]]);
  if (!runs.every((run, n) => from[n] && run.thoughts.has(from[n].position - 1))) return null;
  const floor = Math.max(...floors);
  const apart = await Promise.all(runs.map(async (run, n) => {
    const { mixed } = await source.thought(run.head.id, from[n].position - 1);
    const [own, other] = [from[n].id, from[1 - n].id].map((id) => mixed.find((choice) => choice.id === id)?.prob);
    return own && other ? Math.log(own) - Math.log(other) : Infinity;
  }));
  return apart.every((distance) => Math.abs(distance) <= floor) ? floor : null;
}

// The first positions where the texts differ, and the rest on demand.
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

// What is not the same: the question, the model, settings, and the numbers of each. What computed them is always named,
// with a mark where it differs; numbers that differ by no more than the larger noise floor are the same.
function facts(runs) {
  const heads = runs.map((run) => run.head);
  const row = (name, of) => [name, ...runs.map((run) => String(of(run.head, run) ?? "–"))];
  const names = (of) => [...new Set(heads.flatMap((head) => Object.keys(of(head) ?? {})))];
  const computed = [
    row("dtype", (head) => head.dtype), row("device", (head) => head.device), row("quietstar", (head) => head.version),
    ...names((head) => head.versions).filter((name) => name !== "quietstar").map((name) => row(name, (head) => head.versions[name])),
    row("noise floor, KL", (_, run) => (run.noise === null ? "not measured" : small(run.noise.kl))),
  ];
  const rows = [
    row("asked", (head) => head.asked || head.prompt), row("what the model read", (head) => head.prompt), row("model", (head) => head.model),
    row("weights", (head) => `${head.base_hash.slice(0, 8)} ${head.head_hash.slice(0, 8)} ${(head.adapter_hash ?? "").slice(0, 8)}`.trim()),
    ...names((head) => head.settings).filter((name) => name !== "show").map((name) => row(name.replaceAll("_", " "), (head) => (Object.hasOwn(head.settings, name) ? told(head.settings[name]) : null))),
    row("ended", (head) => head.reason ?? "unfinished"), row("tokens", (head) => head.tokens), row("thoughts", (_, run) => run.thoughts.size),
    row("likeliest word changed", (_, run) => run.flips),
  ];
  const numbers = [["mean w", "weight"], ["mean KL", "kl"]].map(([name, measure]) => mean(runs, name, measure));
  const differing = [...rows.filter(([, a, b]) => a !== b), ...numbers.filter((one) => !one.same).map((one) => one.row)];
  const within = numbers.filter((one) => one.within).map((one) => one.row[0]);
  const other = computed.slice(0, -1).filter(([, a, b]) => a !== b).map(([name]) => name);
  const draw = (mark) => ([name, left, right]) => {
    const differs = left !== right;
    const cells = [left, right].map((value) => h("td", { class: mark && differs ? "differs" : null }, h("bdi", {}, readable(value).slice(0, 400))));
    return h("tr", {}, h("th", { scope: "row" }, mark ? `${name} ${differs ? "≠" : "="}` : name), cells);
  };
  return h(
    "div", { class: "scroll" },
    h("table", { class: "differing" },
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "what differs"), runs.map((run) => h("th", { scope: "col" }, h("code", {}, run.head.id))))),
      h("tbody", {}, differing.map(draw(false))),
      h("tbody", { class: "computed" }, computed.map(draw(true)))),
    h("p", { class: "facts" }, `${rows.length + numbers.length - differing.length} of ${rows.length + numbers.length} are the same.`,
      within.length > 0 && ` Within the larger noise floor of the two, so no difference: ${within.join(", ")}.`),
    other.length > 0 && h("p", { class: "facts" }, `Computed with another ${other.join(", ")}: part of the difference may be rounding.`),
  );
}

// The mean of a measure over the thoughts of each run; `same` where the two are no more apart than the larger floor.
function mean(runs, name, measure) {
  const [left, right] = runs.map((run) => {
    const values = [...run.thoughts.values()].map((one) => one[measure]).filter((value) => value !== null && Number.isFinite(value));
    return values.length ? values.reduce((a, b) => a + b, 0) / values.length : null;
  });
  const row = [name, ...[left, right].map((value) => number(value, 4))];
  const equal = left === right || (left === null && right === null);
  const within = !equal && left !== null && right !== null && Math.abs(left - right) <= Math.max(...runs.map((run) => run.floor(measure) ?? 0));
  return { row, same: equal || within, within };
}

function cell(run, n, step, number_) {
  const tokens = run.tokens.slice(...step[SIDES[n]]);
  const long = step.same && tokens.length > 2 * KEPT + 8;
  const shown = long ? [...tokens.slice(0, KEPT), null, ...tokens.slice(-KEPT)] : tokens;
  return h(
    "div",
    { class: step.same ? "cell same" : "cell parts", id: !step.same && n === 0 ? `d${number_}` : null },
    shown.map((token) => {
      if (token === null) return h("span", { class: "cut" }, ` … ${count(tokens.length - 2 * KEPT, "token")} … `);
      const place = token.position - 1;
      const flipped = run.thoughts.get(place)?.flipped ? " flipped" : "";
      return run.thoughts.has(place)
        ? h("a", { class: `token${flipped}`, href: href(["run", run.head.id, place]), "aria-label": spoken(token.text), "data-step": stepOf(run, token, "kl") }, readable(token.text))
        : h("span", { class: "token" }, readable(token.text));
    }),
    !tokens.length && h("span", { class: "cut" }, "(nothing)"),
  );
}
