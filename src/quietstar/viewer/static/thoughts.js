// Thoughts over all runs, the most influential first: a table to sort and filter, how the measures are spread, and a
// link to each position. The filters are kept in the address.

import { href, stay } from "./address.js";
import { choice, count, field, fill, h, number, quoted, svg, visible } from "./dom.js";
import { ending } from "./record.js";
import { paged } from "./runs.js";
import { source } from "./source.js";

const COLUMNS = [["kl", "KL", 4], ["weight", "w", 3], ["gain", "gain", 4], ["entropy", "entropy", 2], ["surprise", "surprise", 2]];
const FILTERS = ["query", "run", "tag", "model", "trigger", "control", "flipped", "noise", ...COLUMNS.flatMap(([name]) => [`min_${name}`, `max_${name}`]), "order", "way"];

export async function thoughtsPage({ query, about }) {
  document.title = "thoughts · quietstar";
  const asked = Object.fromEntries(FILTERS.map((name) => [name, query.get(name) ?? ""]));
  const rows = h("tbody");
  const state = h("p", { class: "state", role: "status" });
  const spread = h("div", { class: "spread" });
  const heads = new Map();
  const pages = paged(rows, state, async (last, offset) => {
    const { thoughts, more } = await source.thoughts({ ...asked, offset });
    return { items: thoughts, more };
  }, row, () => "No thought matches.");
  const draw = async () => {
    stay(href(["thoughts"], asked));
    const [order, up] = [asked.order || "kl", asked.way === "up"];
    for (const [name, head] of heads) head.setAttribute("aria-sort", name === order ? (up ? "ascending" : "descending") : "none");
    const [found] = await Promise.all([source.histograms(asked).catch(() => null), pages.restart()]);
    if (found) fill(spread, COLUMNS.map(([name, label, digits]) => histogram(found[name], label, digits, asked, name, change)));
  };
  let turn = 0;
  const change = (name, value) => {
    asked[name] = value;
    turn += 1;
    const now = turn;
    setTimeout(() => now === turn && draw(), name === "query" ? 200 : 0);
  };
  const sort = (name) => {
    const same = (asked.order || "kl") === name;
    asked.way = same && asked.way !== "up" ? "up" : "";
    asked.order = name;
    draw();
  };
  const head = (name, label) => {
    const made = h("th", { scope: "col", class: name === "position" ? "" : "n" }, h("button", { type: "button", onclick: () => sort(name) }, label));
    heads.set(name, made);
    return made;
  };
  const facet = (name, label) => {
    const values = about.facets[name] ?? [];
    return values.length > 1 || asked[name] ? field(label, choice([["", "any"], ...values.map((value) => [value, visible(value)])], asked[name], { onchange: (event) => change(name, event.target.value) })) : null;
  };
  const bound = (name, label) => field(label, h("input", { type: "number", step: "any", value: asked[name], onchange: (event) => change(name, event.target.value) }));
  const filters = h(
    "div", { class: "filters" },
    field("words", h("input", { type: "search", value: asked.query, placeholder: "in the thought", oninput: (event) => change("query", event.target.value) })),
    field("likeliest word", choice([["", "any"], ["1", "changed"], ["0", "not changed"]], asked.flipped, { onchange: (event) => change("flipped", event.target.value) })),
    field("noise floor", choice([["", "above it, or not measured"], ["below", "below it"], ["any", "any"]], asked.noise, { onchange: (event) => change("noise", event.target.value) })),
    facet("model", "model"), facet("tag", "tag"), facet("trigger", "trigger"), facet("control", "control"),
    h("details", {}, h("summary", {}, "bounds"), h("div", { class: "filters" }, COLUMNS.map(([name, label]) => [bound(`min_${name}`, `${label} from`), bound(`max_${name}`, `to`)]))),
    asked.run && h("p", { class: "facts" }, "of run ", h("code", {}, asked.run), " ", h("a", { href: href(["thoughts"], { ...asked, run: "" }) }, "of all runs")),
  );
  const table = h(
    "table", { class: "thoughts" },
    h("thead", {}, h("tr", {}, head("position", "position"), h("th", { scope: "col" }, "thought"), COLUMNS.map(([name, label]) => head(name, label)), h("th", { scope: "col" }, "without"), h("th", { scope: "col" }, "with"), h("th", { scope: "col" }, "only"))),
    rows,
  );
  await draw();
  return { element: h("div", { class: "page wide" }, h("h1", {}, "Thoughts"), filters, spread, h("div", { class: "scroll" }, table), state, pages.end), left: () => pages.stop() };
}

function row(one) {
  const word = (text) => (text === null ? "–" : quoted(text));
  const [below, unknown] = [one.above_noise === false, one.above_noise === null];
  return h(
    "tr", { class: below ? "noise" : one.flipped ? "flipped" : null, title: below ? "below the noise floor: no change" : unknown ? "noise floor not measured" : null },
    h("td", { class: "place" }, h("a", { href: href(["run", one.run, one.position]) }, h("bdi", {}, visible(ending(one.context, 34)) || "(start)"))),
    h("td", {}, h("bdi", { class: "thought" }, visible(one.text)), one.samples > 1 && h("small", {}, ` +${one.samples - 1}`)),
    COLUMNS.map(([name, label, digits]) => h("td", { class: "n", "data-label": label }, number(one[name], digits))),
    h("td", { "data-label": "without" }, h("bdi", {}, word(one.base_token))),
    h("td", { "data-label": "with", class: one.flipped ? "other" : null }, h("bdi", {}, word(one.mixed_token))),
    h("td", { "data-label": "only" }, h("bdi", {}, word(one.only_token))),
  );
}

// Bars of counts; a click bounds the list to that bin and above.
function histogram(found, label, digits, asked, name, change) {
  const most = Math.max(1, ...found.counts);
  const [width, height] = [320, 56];
  const wide = width / found.counts.length;
  const step = (found.high - found.low) / found.counts.length;
  const drawn = svg(
    "svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img", "aria-label": `${label}: from ${number(found.low, digits)} to ${number(found.high, digits)}, ${count(found.count, "thought")}` },
    ...found.counts.map((n, bin) => {
      const tall = n ? Math.max(1.5, (Math.sqrt(n / most)) * (height - 2)) : 0;
      const bar = svg("rect", { x: bin * wide, y: height - tall, width: wide * 0.86, height: tall, class: "bar" });
      const title = svg("title", {}, `${number(found.low + bin * step, digits)} to ${number(found.low + (bin + 1) * step, digits)}: ${n}`);
      bar.append(title);
      bar.addEventListener("click", () => change(`min_${name}`, String(found.low + bin * step)));
      return bar;
    }),
  );
  const bounded = asked[`min_${name}`] || asked[`max_${name}`];
  return h(
    "figure", {},
    h("figcaption", {}, label, bounded && h("button", { type: "button", onclick: () => { asked[`max_${name}`] = ""; change(`min_${name}`, ""); } }, "all")),
    drawn,
    h("p", { class: "axis" }, h("span", {}, number(found.low, digits)), h("span", {}, number(found.high, digits))),
  );
}
