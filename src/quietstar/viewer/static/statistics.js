// Statistics over the thoughts of one run: those from the record, and those that the model has to measure.

import { count, fill, h, number, small } from "./dom.js";
import { source } from "./source.js";

const LETTERS = "x: the word that was said; p0, pm, pt: its probability without the thought, with it, from it alone; T: the tokens of the thought. Intervals: bootstrap over blocks of 16 thoughts. ~: not above the noise floor.";

// A section that fetches its numbers when it is opened first. `live`: a model is there to measure.
export function statistics(run, live) {
  const body = h("div", { class: "scroll" });
  const state = h("p", { class: "state", role: "status" });
  const element = h("details", { class: "more statistics" }, h("summary", {}, "statistics of the thoughts"), body, state);
  const tell = (error) => fill(state, h("span", { class: "problem" }, error.message));
  const measure = async (button) => {
    button.disabled = true;
    fill(state, "measuring: the model predicts again with filler, donor and truncated thoughts…");
    try {
      for await (const frame of source.frames(`runs/${encodeURIComponent(run.id)}/measure`, {})) {
        if (frame.kind !== "statistics") continue;
        draw(frame.data);
        fill(state, frame.data.warning);
      }
    } catch (error) {
      button.disabled = false;
      tell(error);
    }
  };
  const draw = (found) => {
    const ask = found.missing.length > 0 && h("p", {}, live
      ? h("button", { type: "button", onclick: (event) => measure(event.target) }, "Measure with the model")
      : h("span", {}, "Measured by the model: ", h("code", {}, `quietstar stats ${run.id} --measure`)),
    ` adds ${found.missing.map((one) => one.label).join(", ")}.`);
    fill(body, table(found.statistics), curve(found.early), ask);
  };
  let asked = false;
  element.addEventListener("toggle", () => {
    if (asked || !element.open) return;
    asked = true;
    fill(state, "…");
    source.statistics(run.id).then((found) => { draw(found); fill(state); }, (error) => { asked = false; tell(error); });
  });
  return element;
}

function table(rows) {
  if (!rows.length) return h("p", { class: "none" }, "No thoughts here.");
  const within = (one) => (one.low === null ? "–" : `${number(one.low, 4)} to ${number(one.high, 4)}`);
  return [h("p", { class: "facts" }, LETTERS), h(
    "table", { class: "numbers-table" },
    h("thead", {}, h("tr", {}, ["measure", "mean", "95 % interval", "unit", "thoughts", "what it is"].map((text) => h("th", { scope: "col" }, text)))),
    h("tbody", {}, rows.map((one) => h(
      "tr", {},
      h("th", { scope: "row" }, one.label), h("td", { class: "n", title: one.floor === null ? null : `noise floor ${small(one.floor)}` }, `${one.within ? "~" : ""}${number(one.mean, 4)}`), h("td", { class: "n" }, within(one)),
      h("td", {}, one.unit), h("td", { class: "n" }, count(one.count, "thought").split(" ")[0]),
      h("td", { class: "formula", title: one.source }, one.formula),
    ))),
  )];
}

// Share of thoughts whose next token is settled after so many of their tokens.
function curve(early) {
  return Object.entries(early).map(([name, shares]) => h(
    "p", { class: "facts" },
    name === "early" ? "Next token settled after 0, 1, … tokens of the thought: " : "The same from the thought alone: ",
    shares.map((share) => `${(100 * share).toFixed(0)} %`).join(", "),
  ));
}
