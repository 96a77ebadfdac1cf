// Draws the page that the address asks for.

import { href, listen, place } from "./address.js";
import { askPage } from "./ask.js";
import { comparePage } from "./compare.js";
import { fill, h, memory } from "./dom.js";
import { runPage } from "./run.js";
import { runsPage } from "./runs.js";
import { source } from "./source.js";
import { thoughtsPage } from "./thoughts.js";

const PAGES = { runs: runsPage, run: runPage, thoughts: thoughtsPage, ask: askPage, compare: comparePage };
const LOOKS = ["auto", "light", "dark"];

let leave = () => {};
let turn = 0;
const body = h("main", { id: "main", tabindex: -1 });
const links = h("nav", { "aria-label": "pages" });

function look(name) {
  if (name === "auto") delete document.documentElement.dataset.look;
  else document.documentElement.dataset.look = name;
  memory.set("look", name);
}

function header() {
  const now = LOOKS.includes(memory.get("look", "auto")) ? memory.get("look", "auto") : "auto";
  look(now);
  const options = LOOKS.map((name) => h("option", { value: name, selected: name === now }, name));
  const select = h("select", { class: "look", "aria-label": "colour scheme", onchange: (event) => look(event.target.value) }, options);
  return h("header", { class: "site" }, h("a", { class: "name", href: "#/runs" }, "quietstar"), links, select);
}

async function draw() {
  turn += 1;
  const now = turn;
  try {
    const { parts, query } = place();
    const about = await source.about();
    // an exported file of one run opens on it
    const at = parts.length ? parts : about.totals.runs === 1 && !about.model && about.only ? ["run", about.only] : ["runs"];
    const name = Object.hasOwn(PAGES, at[0]) ? at[0] : "runs";
    const page = await PAGES[name]({ parts: at, query, about });
    if (now !== turn) return page.left?.();
    leave();
    leave = page.left ?? (() => {});
    const shown = [["runs", "Runs"], ["thoughts", "Thoughts"], about.model && ["ask", "Ask"]].filter(Boolean);
    fill(links, shown.map(([where, label]) => h("a", { href: href([where]), "aria-current": where === name ? "page" : null }, label)));
    fill(body, page.element);
    scrollTo(0, 0);
    page.shown?.();
  } catch (error) {
    if (now !== turn) return;
    leave();
    leave = () => {};
    fill(body, h("div", { class: "page" }, h("p", { class: "problem", role: "alert" }, error.message), h("p", {}, h("a", { href: "#/runs" }, "all runs"))));
  }
}

function skip(event) {
  event.preventDefault();
  event.stopPropagation();
  body.focus();
}

document.body.append(h("a", { class: "skip", href: "#main", onclick: skip }, "skip to the text"), header(), body);
listen(draw);
draw();
