// The page of one run: its text, the strip over it, and the thought one chose.

import { go, href, stay } from "./address.js";
import { choice, count, fill, h, memory, number, readable, small, visible, when } from "./dom.js";
import { legend } from "./legend.js";
import { Panel } from "./panel.js";
import { Passage } from "./passage.js";
import { MEASURES, Run, computed, told, valueOf } from "./record.js";
import { source } from "./source.js";
import { statistics } from "./statistics.js";
import { Strip } from "./strip.js";

export async function runPage({ parts, about }) {
  const run = Run.of(await source.run(parts[1]));
  const reader = new Reader(run, about, (place) => stay(href(place === null ? ["run", run.head.id] : ["run", run.head.id, place])));
  const element = h("div", { class: "run" }, head(run, about), reader.element);
  document.title = `${visible(run.head.asked || run.head.text || run.head.id).slice(0, 60)} · quietstar`;
  return { element, shown: () => parts[2] !== undefined && reader.select(Number(parts[2]), true) };
}

// Text, strip, tools and panel of a run, finished or growing.
export class Reader {
  constructor(run, about, chosen, { live = Boolean(about.model) } = {}) {
    this.run = run;
    this.chosen = chosen;
    this.measure = Object.hasOwn(MEASURES, memory.get("measure", "kl")) ? memory.get("measure", "kl") : "kl";
    const spaces = memory.get("spaces", "0") === "1";
    this.passage = new Passage(run, {
      measure: this.measure, spaces, label: "the answer; arrow keys move between thoughts, f moves to the next one that changed the likeliest word",
      select: (place, quiet) => this.#selected(place, quiet),
    });
    this.strip = new Strip(run, this.measure, (place) => this.passage.select(place));
    this.panel = new Panel(run, {
      live, select: (place) => (place === null ? this.#closed() : this.passage.select(place)), changed: (place) => this.passage.mark(place),
    });
    this.legend = h("p", { class: "legend" });
    this.element = h(
      "div",
      { class: "reader" },
      h("div", { class: "text" }, h("div", { class: "tools" }, this.#tools(spaces), this.strip.element, this.legend), this.passage.element),
      this.panel.element,
    );
    this.#explain();
  }

  #tools(spaces) {
    const measures = h(
      "fieldset", { class: "measures" },
      h("legend", {}, "tint by"),
      Object.entries(MEASURES).map(([name, { label, long }]) =>
        h("label", { title: long }, h("input", { type: "radio", name: "measure", value: name, checked: name === this.measure, onchange: () => this.#tint(name) }), h("span", {}, label)),
      ),
    );
    const showSpaces = (event) => {
      this.passage.show(event.target.checked);
      memory.set("spaces", event.target.checked ? "1" : "0");
    };
    const show = h("label", { class: "check" }, h("input", { type: "checkbox", checked: spaces, onchange: showSpaces }), " show spaces");
    const button = (label, title, onclick) => h("button", { type: "button", title, onclick }, label);
    const strongest = button(
      "strongest", "the thought with the largest value of the chosen measure; again for the next", () => this.#strongest(),
    );
    const flip = button(
      "next change", "the next thought that changed the likeliest word (key f)",
      () => this.passage.step(1, (thought) => thought?.flipped),
    );
    return h("div", { class: "bar" }, measures, show, h("span", { class: "buttons" }, strongest, flip));
  }

  // Thoughts below the noise floor are not ranked.
  #strongest() {
    const value = (one) => valueOf(this.run, this.run.at(one.position), this.measure) ?? -Infinity;
    const thoughts = [...this.run.thoughts.values()].filter((one) => this.run.at(one.position) && this.run.above(one));
    const order = thoughts.sort((a, b) => value(b) - value(a));
    const at = order.findIndex((one) => one.position === this.passage.selected);
    const next = order[(at + 1) % order.length];
    if (next) this.passage.select(next.position);
    else fill(this.legend, "No thought is above the noise floor.");
  }

  #tint(name) {
    this.measure = name;
    memory.set("measure", name);
    this.passage.tint(name);
    this.strip.draw(name);
    this.#explain();
  }

  #explain() {
    fill(this.legend, legend(this.measure, [this.run]));
  }

  #selected(place, quiet) {
    this.strip.point(place);
    this.panel.show(place, quiet);
    this.chosen(place);
  }

  #closed() {
    this.passage.select(null);
    this.strip.point(null);
    this.passage.element.focus();
    this.chosen(null);
  }

  select(place, quiet = false) {
    return this.passage.select(place, { quiet });
  }

  // Take in a live event.
  add(event) {
    const token = this.run.add(event);
    if (event.event === "noise") this.#tint(this.measure);
    if (!token) return;
    const follow = innerHeight + scrollY >= document.documentElement.scrollHeight - 80;
    this.passage.append(token);
    this.strip.draw(this.measure);
    if (follow && this.passage.selected === null) scrollTo(0, document.documentElement.scrollHeight);
  }
}

// How many thoughts are above the noise floor.
function floor(run) {
  if (run.noise === null) return "noise floor not measured";
  const above = [...run.thoughts.values()].filter((one) => run.above(one)).length;
  return `${above} above the noise floor (KL ${small(run.noise.kl)} nats)`;
}

function head(run, about) {
  const { head: one } = run;
  const settings = Object.entries(one.settings).filter(([name, value]) => name !== "show" && value !== null && value !== "" && !(Array.isArray(value) && !value.length));
  const facts = [
    count(one.tokens, "token"), count(one.thoughts, "thought"), one.thoughts > 0 && `likeliest word changed ${count(run.flips, "time")}`,
    one.thoughts > 0 && floor(run),
    one.seconds !== null && `${number(one.seconds, 1)} s`, one.drafted > 0 && `${one.accepted} of ${one.drafted} drafted tokens accepted`, visible(one.reason ?? "unfinished: still running, or killed"),
  ].filter(Boolean);
  return h(
    "header",
    { class: "run-head" },
    h("p", { class: "eyebrow" }, h("code", {}, one.id), ` ${when(one.started)} `, h("bdi", {}, visible(one.model)), one.phase === "reason" && " reasoning", one.tags.map((tag) => h("span", { class: "tag" }, `#${visible(tag)}`))),
    h("h1", { class: "asked" }, readable(one.asked || one.prompt) || "(no prompt)"),
    one.note && h("p", { class: "note" }, readable(one.note)),
    h("p", { class: "facts" }, facts.join(", ")),
    one.untrained && h("p", { class: "facts" }, "Its thoughts are untrained: their weight is 0, so they cannot change the answer. “Only the thought” is what each would say alone."),
    h(
      "details", { class: "more" },
      h("summary", {}, "how it was made"),
      h("dl", { class: "settings" },
        settings.map(([name, value]) => h("div", {}, h("dt", {}, h("bdi", {}, visible(name.replaceAll("_", " ")))), h("dd", {}, h("bdi", {}, visible(told(value)))))),
        h("div", {}, h("dt", {}, "base"), h("dd", {}, h("bdi", {}, visible(one.base)))),
        h("div", {}, h("dt", {}, "weights"), h("dd", {}, h("bdi", {}, weights(one)))),
        h("div", {}, h("dt", {}, "computed by"), h("dd", {}, visible(computed(one))))),
      one.chat && one.prompt && [h("h2", {}, "what the model read"), h("pre", { class: "prompt" }, readable(one.prompt))],
    ),
    one.thoughts > 0 && statistics(one, Boolean(about.model)),
    h(
      "p", { class: "links" },
      one.continues && h("a", { href: href(["run", one.continues]) }, "the reasoning before this answer"),
      one.continued.map((id) => h("a", { href: href(["run", id]) }, "the answer after this reasoning")),
      h("a", { href: href(["thoughts"], { run: one.id, noise: "any" }) }, "all its thoughts"),
      comparing(one),
    ),
  );
}

// Fingerprints of the weights of a run.
function weights(one) {
  const parts = [`base ${one.base_hash.slice(0, 12)}`, `head ${one.head_hash.slice(0, 12)}`, one.adapter && `adapter ${one.adapter}`];
  return visible(parts.filter(Boolean).join(", "));
}

// A list of other runs to compare this one with, read when it is opened; runs of the same question first.
function comparing(one) {
  const select = choice([["", "compare with…"]], "", { "aria-label": "compare with another run", onchange: () => select.value && go(href(["compare", one.id, select.value])) });
  const load = async () => {
    if (select.loaded) return;
    select.loaded = true;
    const { runs } = await source.runs({});
    const others = runs.filter((other) => other.id !== one.id).sort((a, b) => (b.asked === one.asked) - (a.asked === one.asked));
    const name = (other) => `${other.id}  ${when(other.started)}  ${visible(other.asked).slice(0, 50)}`;
    select.append(...others.map((other) => h("option", { value: other.id }, name(other))));
  };
  select.addEventListener("focus", load);
  select.addEventListener("pointerdown", load);
  return select;
}
