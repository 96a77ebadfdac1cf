// The text as it reads, each token tinted by a measure and selectable. A listbox to the keyboard and to screen readers:
// one stop of the Tab key, arrows move from thought to thought.

import { h, marked, readable, spoken } from "./dom.js";
import { stepOf, valueOf } from "./record.js";

const BLOCK = 40; // tokens a block has at least

export class Passage {
  constructor(run, { measure, spaces = false, select, label }) {
    Object.assign(this, { run, measure, spaces, onselect: select });
    this.spans = new Map(); // by place
    this.selected = null;
    this.element = h("div", {
      class: "passage", role: "listbox", tabindex: 0, "aria-label": label, lang: "",
      onclick: (event) => this.#click(event), onkeydown: (event) => this.#key(event),
    });
    for (const token of run.tokens) this.#place(this.#span(token));
    this.tint(measure);
  }

  // Spans stand in blocks that end at line breaks, so that the browser can leave out those that are out of sight.
  #place(span) {
    const last = this.block?.lastElementChild;
    if (!last || (this.block.childElementCount >= BLOCK && last.token.text.includes("\n"))) {
      this.block = h("div", { class: "block" });
      this.element.append(this.block);
    }
    this.block.append(span);
  }

  #span(token) {
    const place = token.position - 1;
    const span = h("span", { class: "token", role: "option", id: `t${place}`, "aria-selected": "false" });
    span.place = place;
    span.token = token;
    this.#name(span);
    this.spans.set(place, span);
    return span;
  }

  #name(span) {
    const { text } = span.token;
    const thought = this.run.thoughts.get(span.place);
    span.classList.toggle("thinks", Boolean(thought));
    span.classList.toggle("flipped", Boolean(thought?.flipped));
    span.classList.toggle("changed", this.run.changed.has(span.place));
    span.classList.toggle("inside", text === "");
    span.textContent = this.spaces ? marked(text) || "◦" : readable(text);
    if (spoken(text)) span.setAttribute("aria-label", spoken(text));
  }

  // Take in a token that has just come.
  append(token) {
    const span = this.#span(token);
    this.#place(span);
    this.#shade(span);
  }

  tint(measure) {
    this.measure = measure;
    for (const span of this.spans.values()) this.#shade(span);
  }

  #shade(span) {
    span.dataset.step = stepOf(this.run, span.token, this.measure);
    span.classList.toggle("negative", valueOf(this.run, span.token, this.measure) < 0);
  }

  show(spaces) {
    this.spaces = spaces;
    for (const span of this.spans.values()) this.#name(span);
  }

  mark(place) {
    this.run.changed.add(place);
    this.spans.get(place)?.classList.add("changed");
  }

  // Select a place; `quiet` where it comes from the address and not from a person.
  select(place, { quiet = false, scroll = true } = {}) {
    const before = this.spans.get(this.selected);
    before?.setAttribute("aria-selected", "false");
    const span = this.spans.get(place);
    this.selected = span ? place : null;
    if (!span) return false;
    span.setAttribute("aria-selected", "true");
    this.element.setAttribute("aria-activedescendant", span.id);
    this.onselect(place, quiet); // first, because an open panel leaves less room on a narrow screen
    if (scroll) span.scrollIntoView({ block: "nearest" }); // as far as its scroll-margin asks for
    return true;
  }

  #click(event) {
    const span = event.target.closest(".token");
    if (span && !getSelection().toString()) this.select(span.place, { scroll: false });
  }

  // The next place with a thought in a direction that `wanted` likes; places alone where nothing was thought.
  step(direction, wanted = () => true) {
    const places = this.run.thoughts.size ? this.run.places() : [...this.spans.keys()];
    const liked = places.filter((place) => this.spans.has(place) && wanted(this.run.thoughts.get(place)));
    const now = this.selected ?? (direction > 0 ? -Infinity : Infinity);
    const next = direction > 0 ? liked.find((place) => place > now) : liked.findLast((place) => place < now);
    if (next !== undefined) this.select(next);
  }

  #line(direction) {
    const from = this.spans.get(this.selected);
    if (!from) return this.step(direction);
    const box = from.getClientRects()[0];
    const order = [...this.spans.values()];
    let best = null;
    let nearest = Infinity;
    let row = null;
    for (let n = order.indexOf(from) + direction; n >= 0 && n < order.length; n += direction) {
      const other = order[n].getClientRects()[0];
      if (!other || Math.abs(other.top - box.top) < box.height / 2) continue;
      row ??= other.top;
      if (Math.abs(other.top - row) > box.height / 2) break;
      const away = Math.abs(other.left - box.left);
      if (away < nearest) [best, nearest] = [order[n], away];
    }
    if (best) this.select(best.place);
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const flipped = (thought) => thought?.flipped;
    const actions = {
      ArrowRight: () => this.step(1), ArrowLeft: () => this.step(-1),
      ArrowDown: () => this.#line(1), ArrowUp: () => this.#line(-1),
      Home: () => this.select(Math.min(...this.spans.keys())), End: () => this.select(Math.max(...this.spans.keys())),
      f: () => this.step(1, flipped), F: () => this.step(-1, flipped),
    };
    if (!actions[event.key]) return;
    event.preventDefault();
    actions[event.key]();
  }
}
