// One thought: token by token with its probabilities, its trigger, what it did to the next word, and its neighbours.
// Its samples and candidates are fetched when it is opened.

import { bars } from "./bars.js";
import { changing } from "./change.js";
import { fill, h, number, small, visible } from "./dom.js";
import { pieces } from "./pieces.js";
import { MEASURES, valueOf } from "./record.js";
import { source } from "./source.js";

const AROUND = 3; // neighbours on each side

export class Panel {
  constructor(run, { select, live, changed }) {
    Object.assign(this, { run, select, live, changed });
    this.body = h("div", { class: "panel-body" });
    this.spoken = h("p", { class: "spoken", role: "status" });
    this.element = h(
      "aside",
      { class: "panel", "aria-label": "thought", tabindex: -1 },
      h("button", { class: "close", "aria-label": "close the thought", onclick: () => this.close() }, "×"),
      this.spoken, this.body,
    );
    this.asked = 0;
    this.#empty();
  }

  #empty() {
    const { thoughts } = this.run;
    fill(
      this.body,
      h("p", { class: "none" }, thoughts.size ? "Select a word to read the thought before it." : "No thoughts here yet."),
    );
  }

  close() {
    this.element.classList.remove("open");
    this.asked += 1;
    this.spoken.textContent = "";
    this.#empty();
    this.select(null);
  }

  async show(place, quiet = false) {
    const { run } = this;
    this.asked += 1;
    const { asked } = this;
    const thought = run.thoughts.get(place);
    const token = run.at(place);
    this.element.classList.add("open");
    if (!thought) {
      fill(this.body, this.#head(place, token), h("p", { class: "none" }, "No thought before this word."), this.#around(place));
      this.spoken.textContent = "no thought here";
      return;
    }
    const effect = thought.flipped ? ", likeliest word changed" : run.above(thought) ? "" : ", below the noise floor";
    const summary = `thought: ${visible(thought.text)}. Weight ${number(thought.weight)}, KL ${number(thought.kl, 4)}${effect}`;
    if (!quiet) fill(this.spoken, summary);
    fill(this.body, this.#head(place, token), this.#numbers(thought, token), this.#whole(thought.text), this.#around(place));
    try {
      const detail = run.details.get(place) ?? (await source.thought(run.head.id, place));
      if (asked !== this.asked) return; // another one was chosen meanwhile
      fill(
        this.body,
        this.#head(place, token), this.#numbers(thought, token), this.#measured(detail.measures ?? {}), this.#samples(detail),
        bars([
          ["without", detail.base], ["with", detail.mixed], ["only the thought", detail.only],
        ], thought.flipped),
        changing(this, place, detail),
        this.#around(place),
      );
    } catch (error) {
      if (asked === this.asked) fill(this.body, this.#head(place, token), h("p", { class: "problem", role: "alert" }, error.message));
    }
  }

  #head(place, token) {
    return h(
      "h2",
      { class: "context" },
      h("bdi", {}, visible(this.run.before(place)) || "(start)"), " ",
      token ? h("mark", {}, h("bdi", {}, visible(token.text) || "◦")) : h("mark", {}, "(end)"),
    );
  }

  #numbers(thought, token) {
    const value = (name) => (token ? valueOf(this.run, token, name) : null);
    const shown = [["kl", thought.kl, 4], ["weight", thought.weight, 3], ["gain", thought.gain, 4], ["entropy", thought.entropy, 2], ["surprise", value("surprise"), 2]];
    const list = h(
      "dl",
      { class: "numbers" },
      shown.map(([name, found, digits]) =>
        h("div", { title: MEASURES[name].long }, h("dt", {}, MEASURES[name].label), h("dd", {}, number(found, digits))),
      ),
      h("div", { title: "the rule that decided to think here" }, h("dt", {}, "trigger"), h("dd", {}, h("bdi", {}, visible(thought.trigger)))),
      thought.control !== "own" && h("div", { title: "what the run used instead of its own thought" }, h("dt", {}, "control"), h("dd", {}, h("bdi", {}, visible(thought.control)))),
    );
    return h(
      "div", {}, list,
      thought.flipped && h("p", { class: "flag" }, "likeliest word changed"),
      this.run.noise === null && h("p", { class: "none" }, "noise floor not measured"),
      !this.run.above(thought) && h("p", { class: "none" }, `below the noise floor (KL ${small(this.run.noise.kl)}): no change`),
    );
  }

  // What the model measured about this thought; the statistics of the run say what each is.
  #measured(found) {
    const shown = [["compute", "compute effect", 4], ["content", "content effect", 4], ["garble", "garble", 2], ["greedy", "as the base", 2], ["early_area", "early answering", 2]];
    const known = shown.filter(([name]) => name in found);
    if (!known.length) return null;
    const entry = ([name, label, digits]) => h("div", {}, h("dt", {}, label), h("dd", {}, number(found[name], digits)));
    return h("dl", { class: "numbers" }, known.map(entry));
  }

  #whole(text) {
    return h("p", { class: "thought" }, h("bdi", {}, visible(text)));
  }

  #samples(detail) {
    const many = detail.samples.length > 1;
    return h(
      "ol",
      { class: "samples" },
      detail.samples.map((sample) =>
        h("li", {}, pieces(sample), many && h("p", { class: "of" }, `w ${number(sample.weight)}`)),
      ),
    );
  }

  #around(place) {
    const places = this.run.places();
    const here = places.findIndex((one) => one >= place);
    const at = here < 0 ? places.length : here;
    const near = places.slice(Math.max(0, at - AROUND), at + AROUND + 1).filter((one) => one !== place);
    if (!near.length) return null;
    return h(
      "section",
      { class: "around" },
      h("h3", {}, "neighbouring thoughts"),
      h(
        "ul", {},
        near.map((one) =>
          h(
            "li", {},
            h(
              "button", { onclick: () => this.select(one) },
              h("bdi", { class: "word" }, visible(this.run.at(one)?.text ?? "(end)") || "◦"), " ",
              h("bdi", { class: "thought" }, visible(this.run.thoughts.get(one).text)),
            ),
          ),
        ),
      ),
    );
  }
}
