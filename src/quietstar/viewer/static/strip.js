// The whole text as one strip: the step of the measure along it, where the likeliest word changed, where one is.
// Click or drag jumps; to the keyboard it is a slider over the places.

import { set, svg } from "./dom.js";
import { MEASURES, stepOf } from "./record.js";
import { STEPS } from "./scale.js";

const WIDTH = 600;
const HEIGHT = 32;

export class Strip {
  constructor(run, measure, jump) {
    this.run = run;
    this.jump = jump;
    this.bars = svg("path", { class: "bars" });
    this.flips = svg("path", { class: "flips" });
    this.here = svg("rect", { class: "here", y: 0, width: 3, height: HEIGHT, visibility: "hidden" });
    this.element = svg(
      "svg",
      {
        class: "strip", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "slider", tabindex: 0,
        "aria-label": "position in the text", "aria-valuemin": 0,
      },
      this.bars, this.flips, this.here,
    );
    const point = (event) => {
      const box = this.element.getBoundingClientRect();
      const at = Math.floor(((event.clientX - box.left) / box.width) * this.run.tokens.length);
      const token = this.run.tokens[Math.max(0, Math.min(this.run.tokens.length - 1, at))];
      if (token) this.jump(token.position - 1);
    };
    this.element.addEventListener("pointerdown", (event) => {
      this.element.setPointerCapture(event.pointerId);
      point(event);
    });
    this.element.addEventListener("pointermove", (event) => event.buttons && point(event));
    this.element.addEventListener("keydown", (event) => this.#key(event));
    this.draw(measure);
  }

  #key(event) {
    const { tokens } = this.run;
    const at = Number(this.element.getAttribute("aria-valuenow") ?? 0);
    const far = Math.max(1, Math.round(tokens.length / 20));
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowDown: -1, ArrowUp: 1, PageDown: far, PageUp: -far, Home: -Infinity, End: Infinity };
    if (!(event.key in steps) || !tokens.length) return;
    event.preventDefault();
    this.jump(tokens[Math.max(0, Math.min(tokens.length - 1, at + steps[event.key]))].position - 1);
  }

  draw(measure) {
    const { run } = this;
    const { tokens } = run;
    const bins = Math.max(1, Math.min(300, tokens.length));
    const heights = new Array(bins).fill(0);
    let flips = "";
    tokens.forEach((token, n) => {
      const bin = Math.floor((n / tokens.length) * bins);
      heights[bin] = Math.max(heights[bin], stepOf(run, token, measure) / STEPS);
      if (run.thoughts.get(token.position - 1)?.flipped) flips += `M${this.#x(n)} ${HEIGHT}v-5`;
    });
    const wide = WIDTH / bins;
    const path = heights.map((height, n) => `M${(n * wide).toFixed(2)} ${HEIGHT - 6}v${(-height * (HEIGHT - 8)).toFixed(2)}h${(wide * 0.86).toFixed(2)}V${HEIGHT - 6}z`);
    this.bars.setAttribute("d", path.join(""));
    this.flips.setAttribute("d", flips);
    set(this.element, { "aria-valuemax": Math.max(0, tokens.length - 1), "aria-description": `height shows ${MEASURES[measure].label}` });
  }

  #x(n) {
    return (((n + 0.5) / this.run.tokens.length) * WIDTH).toFixed(2);
  }

  point(place) {
    const n = this.run.tokens.findIndex((token) => token.position === place + 1);
    this.here.setAttribute("visibility", n < 0 ? "hidden" : "visible");
    if (n < 0) return;
    this.here.setAttribute("x", Number(this.#x(n)) - 1.5);
    set(this.element, { "aria-valuenow": n, "aria-valuetext": `token ${n + 1} of ${this.run.tokens.length}` });
  }
}
