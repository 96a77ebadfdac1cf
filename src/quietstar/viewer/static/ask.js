// Ask the model: a prompt, a system prompt, settings. Answer and thoughts are shown as they are generated; Stop ends it.

import { go, href } from "./address.js";
import { field, fill, h, memory, readable, visible } from "./dom.js";
import { Run } from "./record.js";
import { Reader } from "./run.js";
import { source } from "./source.js";

const TRIGGERS = ["always", "never", "every:4", "random:0.2", "entropy:2", "weight:0.05"];
const CONTROLS = ["own", "none", "filler", "shuffled", "donor", "only"];

// [name, label, attributes, hint]; an empty field leaves the setting as it is
const NUMBERS = [
  ["max_new_tokens", "longest answer", { min: 1, step: 1, value: "128" }, "tokens"],
  ["thought_length", "thought length", { min: 0, step: 1, placeholder: "the model's own" }, "tokens"],
  ["samples", "samples", { min: 1, step: 1, value: "1" }, "thoughts at a position"],
  ["temperature", "temperature", { min: 0, step: "any", value: "0" }, "0 is greedy"],
  ["mixing_weight", "mixing weight", { step: "any", placeholder: "from the mixing head" }, "a fixed w for every thought"],
  ["speculate", "drafts", { min: 0, step: 1, placeholder: "auto" }, "tokens drafted ahead; 0: none"],
  ["seed", "seed", { step: 1, value: "0" }, "same seed, same output"],
];

export async function askPage({ about }) {
  document.title = "ask · quietstar";
  if (!about.model) return { element: h("div", { class: "page" }, h("h1", {}, "Ask"), h("p", {}, "This page has no model. Start `quietstar view` without --look to ask.")) };
  const prompt = h("textarea", { rows: 4, required: true, "aria-label": "prompt", placeholder: "Ask something", value: memory.get("prompt", "") });
  const system = h("textarea", { rows: 2, "aria-label": "system prompt", placeholder: "System prompt, if any", value: memory.get("system", "") });
  const raw = h("input", { type: "checkbox" });
  const numbers = Object.fromEntries(NUMBERS.map(([name, , attributes]) => [name, h("input", { type: "number", ...attributes })]));
  const listed = (name, values) => [h("input", { list: `${name}s`, value: values[0] }), h("datalist", { id: `${name}s` }, values.map((value) => h("option", { value })))];
  const [trigger, triggers] = listed("trigger", TRIGGERS);
  const [control, controls] = listed("control", CONTROLS);
  const state = h("p", { class: "state", role: "status" });
  const answer = h("div", { class: "answer" });
  const button = h("button", { type: "submit", class: "main" }, "Ask");
  let stop = null;
  const submit = async (event) => {
    event.preventDefault();
    if (stop) return stop.abort();
    memory.set("prompt", prompt.value);
    memory.set("system", system.value);
    const settings = { trigger: trigger.value || "always", control: control.value || "own" };
    for (const [name, input] of Object.entries(numbers)) if (input.value !== "") settings[name] = Number(input.value);
    stop = new AbortController();
    button.textContent = "Stop";
    state.classList.remove("problem");
    state.textContent = "asking…";
    const run = new Run({ asked: prompt.value });
    let place = null;
    const reader = new Reader(run, about, (chosen) => (place = chosen), { live: false });
    fill(answer, h("h2", { class: "asked" }, readable(prompt.value)), reader.element);
    let id = null;
    let problem = "";
    try {
      const body = { prompt: prompt.value, system: system.value || null, raw: raw.checked, settings };
      for await (const { kind, data } of source.frames("ask", body, stop.signal)) {
        if (kind === "loading") fill(state, `loading ${data.model}…`);
        if (kind === "waiting") state.textContent = `waiting for ${data.ahead} earlier…`;
        if (kind === "run") {
          id = data.id;
          run.head.id = id;
          state.textContent = "thinking…";
        }
        if (kind === "event") reader.add(data);
      }
    } catch (error) {
      problem = error.name === "AbortError" ? "" : error.message;
    }
    const stopped = stop.signal.aborted;
    stop = null;
    button.textContent = "Ask";
    fill(state, problem || (stopped ? "stopped" : ""));
    state.classList.toggle("problem", Boolean(problem));
    if (!answer.isConnected || !id) return;
    if (problem || stopped) answer.append(h("p", {}, h("a", { href: href(["run", id]) }, "see what was recorded")));
    else go(href(place === null ? ["run", id] : ["run", id, place]));
  };
  prompt.addEventListener("keydown", (event) => event.key === "Enter" && (event.ctrlKey || event.metaKey) && form.requestSubmit());
  const form = h(
    "form", { class: "ask", onsubmit: submit },
    prompt, system,
    h("details", {},
      h("summary", {}, "settings"),
      h("div", { class: "filters" },
        field("trigger", [trigger, triggers], "when to think"), field("control", [control, controls], "own: the model's own thoughts"),
        NUMBERS.map(([name, label, , hint]) => field(label, numbers[name], hint)),
        h("label", { class: "check" }, raw, " continue the prompt, without the chat template"))),
    h("p", { class: "bar" }, button, state),
  );
  return { element: h("div", { class: "page wide" }, h("h1", {}, "Ask"), h("p", { class: "facts" }, "of ", h("bdi", {}, visible(about.model)), ", on this machine"), form, answer), left: () => stop?.abort() };
}
