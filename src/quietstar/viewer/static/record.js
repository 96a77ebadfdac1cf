// One run as the page works with it: tokens in order, and the thought before each by its place. It grows from a page of
// the record or from live events alike. The place of a thought is the position before the token it helps to predict.

import { real_of } from "./dom.js";

export class Run {
  constructor(head = {}) {
    this.head = head;
    this.tokens = [];
    this.thoughts = new Map();
    this.details = new Map(); // what was sent live; the rest is fetched when it is looked at
    this.changed = new Set();
    this.prompts = "";
  }

  static of(page) {
    const run = new Run(page.run);
    run.prompts = page.run.prompt;
    const { tokens, thoughts } = page;
    tokens.position.forEach((position, n) => {
      run.tokens.push({ position, id: tokens.token[n], text: tokens.text[n], logprob: real_of(tokens.logprob[n]) });
    });
    thoughts.position.forEach((position, n) => {
      const thought = { position, text: thoughts.text[n], trigger: thoughts.trigger[n], control: thoughts.control[n] };
      for (const name of ["weight", "kl", "entropy", "gain"]) thought[name] = real_of(thoughts[name][n]);
      thought.flipped = Boolean(thoughts.flipped[n]);
      run.thoughts.set(position, thought);
    });
    run.changed = new Set(page.changed);
    return run;
  }

  // Takes in a live event; returns the token it added, if it did.
  add(event) {
    if (event.event === "start") this.prompts = event.prompts[0];
    if (event.event === "thought") {
      const { position, trigger, control, flipped } = event;
      const thought = { position, trigger, control, flipped, text: event.samples[0]?.text ?? "" };
      for (const name of ["weight", "kl", "entropy"]) thought[name] = real_of(event[name]);
      thought.gain = event.base_logprob === null ? null : real_of(event.mixed_logprob) - real_of(event.base_logprob);
      this.thoughts.set(position, thought);
      this.details.set(position, { ...event, tries: [] });
    }
    if (event.event !== "token") return null;
    const token = { position: event.position, id: event.id, text: event.text, logprob: real_of(event.logprob) };
    this.tokens.push(token);
    return token;
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
    return text.length > width ? `…${text.slice(-width)}` : text;
  }

  at(position) {
    return this.tokens.find((token) => token.position === position + 1) ?? null;
  }

  places() {
    return [...this.thoughts.keys()].sort((a, b) => a - b);
  }
}

// What a token can be tinted by. `scale` bends the shares, for measures whose largest values dwarf the rest.
export const MEASURES = {
  kl: { label: "KL", long: "how far the thought moved the prediction: KL(with ‖ without)", unit: "nats", bend: 0.5 },
  weight: { label: "w", long: "how much weight the thought was given", unit: "", bend: 1 },
  gain: {
    label: "gain", unit: "nats", bend: 0.5,
    long: "log-probability of the word that was said, with the thought minus without",
  },
  entropy: { label: "entropy", long: "how undecided the prediction was without the thought", unit: "nats", bend: 1 },
  surprise: { label: "surprise", long: "how unlikely the word was that was said: −log p, with the thought", unit: "nats", bend: 0.5 },
};

export function valueOf(run, token, measure) {
  if (measure === "surprise") return token.logprob === null ? null : Math.max(0, -token.logprob);
  return run.thoughts.get(token.position - 1)?.[measure] ?? null;
}

// The largest value of a measure in a run; the tint of 1.
export function largest(run, measure) {
  let most = 0;
  for (const token of run.tokens) {
    const value = valueOf(run, token, measure);
    if (value !== null && Number.isFinite(value)) most = Math.max(most, Math.abs(value));
  }
  return most;
}

// From 0 to 1, negative where the value is.
export function share(value, most, measure) {
  if (value === null || most === 0) return 0;
  const part = Math.min(Math.abs(value) / most, 1) ** MEASURES[measure].bend;
  return value < 0 ? -part : part;
}
