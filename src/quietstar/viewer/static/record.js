// One run as the page works with it: tokens in order, and the thought before each by its place. It grows from a page of
// the record or from live events alike. The place of a thought is the position before the token it helps to predict.

import { real_of } from "./dom.js";
import { step } from "./scale.js";

const FLOORS = { kl: "kl", logprob: "logprob", weight: "weight", gain: "gain" }; // which noise a measure of a thought has

export class Run {
  constructor(head = {}) {
    this.head = head;
    this.tokens = [];
    this.thoughts = new Map();
    this.details = new Map(); // what was sent live; the rest is fetched when it is looked at
    this.changed = new Set();
    this.prompts = "";
    this.noise = null; // {kl, logprob, weight, places}: how far rounding alone moves each; null where it is unknown
  }

  static of(page) {
    const run = new Run(page.run);
    run.prompts = page.run.prompt;
    run.noise = noise_of(page.run.noise);
    const { tokens, thoughts } = page;
    tokens.position.forEach((position, n) => {
      run.tokens.push({ position, id: tokens.token[n], text: tokens.text[n], logprob: real_of(tokens.logprob[n]) });
    });
    thoughts.position.forEach((position, n) => {
      const thought = { position, text: thoughts.text[n], trigger: thoughts.trigger[n], control: thoughts.control[n] };
      for (const name of ["weight", "kl", "entropy", "gain"]) thought[name] = real_of(thoughts[name][n]);
      thought.flipped = Boolean(thoughts.flipped[n]) && run.above(thought);
      run.thoughts.set(position, thought);
    });
    run.changed = new Set(page.changed);
    return run;
  }

  // Takes in a live event; returns the token it added, if it did.
  add(event) {
    if (event.event === "start") this.prompts = event.prompts[0];
    if (event.event === "noise") this.noise = noise_of(event);
    if (event.event === "thought") {
      const { position, trigger, control, flipped } = event;
      const thought = { position, trigger, control, text: event.samples[0]?.text ?? "" };
      for (const name of ["weight", "kl", "entropy"]) thought[name] = real_of(event[name]);
      thought.gain = event.base_logprob === null ? null : real_of(event.mixed_logprob) - real_of(event.base_logprob);
      thought.flipped = flipped && this.above(thought);
      this.thoughts.set(position, thought);
      this.details.set(position, { ...event, tries: [] });
    }
    if (event.event !== "token") return null;
    const token = { position: event.position, id: event.id, text: event.text, logprob: real_of(event.logprob) };
    this.tokens.push(token);
    return token;
  }

  // Sizes of a measure up to this are rounding; null where that is unknown or does not apply.
  floor(measure) {
    return (this.noise && this.noise[FLOORS[measure]]) ?? null;
  }

  // Whether a thought moved the prediction by more than rounding; true where the noise floor is unknown.
  above(thought) {
    const floor = this.floor("kl");
    return floor === null || thought.kl === null || thought.kl > floor;
  }

  // How many thoughts changed which word is likeliest, by more than rounding.
  get flips() {
    return [...this.thoughts.values()].filter((one) => one.flipped).length;
  }

  get text() {
    return this.tokens.map((token) => token.text).join("");
  }

  // The text just before a place, shortened from the left.
  before(position, width = 60) {
    let text = "";
    for (let n = this.tokens.length - 1; n >= 0 && text.length < width; n -= 1) {
      if (this.tokens[n].position <= position) text = this.tokens[n].text + text;
    }
    return ending(text, width);
  }

  at(position) {
    return this.tokens.find((token) => token.position === position + 1) ?? null;
  }

  places() {
    return [...this.thoughts.keys()].sort((a, b) => a - b);
  }
}

// The last words of a text, about `width` characters; a word is cut only where it alone is longer.
export function ending(text, width) {
  if (text.length <= width) return text;
  const kept = text.slice(-width);
  const inside = !/\s/.test(kept[0]) && !/\s/.test(text.at(-width - 1));
  const gap = inside ? kept.search(/\s(?=.*\S)/s) : -1;
  return `…${gap < 0 ? kept : kept.slice(gap)}`;
}

function noise_of(found) {
  if (!found || real_of(found.kl) === null) return null;
  return { kl: real_of(found.kl), logprob: real_of(found.logprob), weight: real_of(found.weight), gain: real_of(found.gain ?? null), places: found.places };
}

// What a token can be tinted by.
export const MEASURES = {
  kl: { label: "KL", long: "KL(with ‖ without): how far the thought moved the prediction", unit: "nats" },
  weight: { label: "w", long: "Mixing weight: how much of the mixed prediction comes from the thought", unit: "" },
  gain: { label: "gain", long: "Log-probability of the word that was said, with the thought minus without", unit: "nats" },
  entropy: { label: "entropy", long: "How undecided the base prediction, without the thought, is", unit: "nats" },
  surprise: { label: "surprise", long: "How unlikely the word was that was said: −log p of the mixed prediction", unit: "nats" },
};

export function valueOf(run, token, measure) {
  if (measure === "surprise") return token.logprob === null ? null : Math.max(0, -token.logprob);
  return run.thoughts.get(token.position - 1)?.[measure] ?? null;
}

// The step of a token on the scale of a measure, 0 within the run's noise floor; a thought whose KL lies within it has
// no gain either.
export function stepOf(run, token, measure) {
  const thought = run.thoughts.get(token.position - 1);
  if (measure === "gain" && thought && !run.above(thought)) return 0;
  return step(measure, valueOf(run, token, measure), run.floor(measure));
}

// What computed a run: precision, device and the versions of what has a say in the numbers.
export function computed(head) {
  const versions = Object.entries(head.versions ?? {}).filter(([name]) => name !== "quietstar");
  return [`${head.dtype} on ${head.device}`, `quietstar ${head.version}`, ...versions.map((one) => one.join(" "))].join(", ");
}

// The value of a setting in words.
export const told = (value) => (value !== null && typeof value === "object" && !Array.isArray(value) ? JSON.stringify(value) : String(value ?? "–"));
