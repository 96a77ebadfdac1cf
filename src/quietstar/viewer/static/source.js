// Where runs come from: the server behind the page, or the data inside an exported file. Both answer the same questions.

import { real_of } from "./dom.js";

const BOUNDED = ["kl", "weight", "gain", "entropy", "surprise"]; // measures of a thought that lists go by

async function read(path, query = {}) {
  const kept = Object.entries(query).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  const answer = await fetch(`/api/${path}${kept.length ? `?${new URLSearchParams(kept)}` : ""}`).catch(() => {
    throw new Error("the server does not answer; check that `quietstar view` is still running");
  });
  const found = await answer.json();
  if (!answer.ok) throw new Error(found.error ?? answer.statusText);
  return found;
}

class Server {
  about = () => read("about");
  runs = (query) => read("runs", query);
  run = (id) => read(`runs/${encodeURIComponent(id)}`);
  statistics = (id) => read(`runs/${encodeURIComponent(id)}/statistics`);
  thought = (id, position) => read(`runs/${encodeURIComponent(id)}/thoughts/${position}`);
  thoughts = (query) => read("thoughts", query);
  histograms = (query) => read("histograms", query);

  // What the model does, frame by frame, until it is done or the signal says stop.
  async *frames(path, body, signal) {
    const answer = await fetch(`/api/${path}`, {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal,
    });
    if (!answer.ok) throw new Error((await answer.json()).error ?? answer.statusText);
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const whole = (rest + value).split("\n\n");
      rest = whole.pop();
      for (const frame of whole) {
        const found = /^event: (\w+)\ndata: (.*)$/s.exec(frame);
        if (!found) continue;
        const data = JSON.parse(found[2]);
        if (found[1] === "problem") throw new Error(data.error);
        yield { kind: found[1], data };
      }
    }
  }
}

// The runs of one exported file: {about, runs: [{page, thoughts, entry}], list: [thought, ...]}.
class Inside {
  constructor(data) {
    this.data = data;
  }

  about = async () => this.data.about;

  #find(id) {
    const found = this.data.runs.find((one) => one.page.run.id === id || one.page.run.id.startsWith(id));
    if (!found) throw new Error(`there is no run ${id} in this file`);
    return found;
  }

  async runs({ query = "", tag = "" } = {}) {
    const words = query.toLowerCase().split(/[\s"]+/).filter(Boolean);
    const said = ({ page }) => [page.run.asked, page.run.text, ...page.thoughts.text].join("\n").toLowerCase();
    const runs = this.data.runs.filter(
      (one) => (!tag || one.page.run.tags.includes(tag)) && words.every((word) => said(one).includes(word)),
    );
    return { runs: runs.map((one) => one.entry), more: false };
  }

  run = async (id) => this.#find(id).page;

  statistics = async (id) => this.#find(id).statistics;

  async thought(id, position) {
    const found = this.#find(id).thoughts[position];
    if (!found) throw new Error(`run ${id} has no thought at position ${position}`);
    return found;
  }

  #chosen(query) {
    const words = (query.query ?? "").toLowerCase().split(/[\s"]+/).filter(Boolean);
    const within = (one, name) => {
      const [least, most] = [query[`min_${name}`], query[`max_${name}`]];
      const value = real_of(one[name]);
      return (!least || (value !== null && value >= Number(least))) && (!most || (value !== null && value <= Number(most)));
    };
    return this.data.list.filter(
      (one) =>
        words.every((word) => one.text.toLowerCase().includes(word)) &&
        ["run", "model", "trigger", "control"].every((name) => !query[name] || one[name] === query[name]) &&
        (!query.tag || this.#find(one.run).page.run.tags.includes(query.tag)) &&
        (!query.flipped || one.flipped === (query.flipped === "1")) &&
        (query.noise === "any" || one.above_noise === null || one.above_noise === (query.noise !== "below")) &&
        BOUNDED.every((name) => within(one, name)),
    );
  }

  async thoughts(query) {
    const order = query.order || "kl";
    const way = query.way === "up" ? 1 : -1;
    const at = Number(query.offset ?? 0);
    const value = (one) => real_of(one[order]) ?? way * Infinity; // unknown ones last
    const sorted = this.#chosen(query).sort((a, b) => (value(a) === value(b) ? 0 : way * (value(a) - value(b))));
    return { thoughts: sorted.slice(at, at + 100), more: sorted.length > at + 100 };
  }

  async histograms(query) {
    const chosen = this.#chosen(query);
    const out = {};
    for (const name of BOUNDED) {
      const values = chosen.map((one) => real_of(one[name])).filter(Number.isFinite);
      const low = values.reduce((a, b) => Math.min(a, b), values[0] ?? 0);
      const high = values.reduce((a, b) => Math.max(a, b), values[0] ?? 0);
      const counts = new Array(40).fill(0);
      for (const value of values) counts[Math.min(39, Math.floor(((value - low) / (high - low || 1)) * 40))] += 1;
      out[name] = { low, high, counts, count: chosen.length, undefined: chosen.length - values.length };
    }
    return out;
  }
}

const inside = document.getElementById("quietstar-data");
export const source = inside ? new Inside(JSON.parse(inside.textContent)) : new Server();
