// Change a thought and see what it does: the next word at once, the text that follows on demand. Every intervention is
// recorded with the run.

import { align, words } from "./align.js";
import { bars } from "./bars.js";
import { fill, h, number, percent, quoted, readable, real_of, small, visible } from "./dom.js";
import { pieces } from "./pieces.js";
import { source } from "./source.js";

const KINDS = {
  edited: "edited", resampled: "resampled", donor: "donor", filler: "filler", shuffled: "shuffled", none: "no thought",
  "truncated:0": "empty", "truncated": "truncated",
};

const SAME = "The next word is the same, so all text after it is the same: a thought is private to the word it helps to predict.";

// The section of a panel that changes the thought at a place; what was tried before is shown wherever it is known.
export function changing(panel, place, detail) {
  const list = h("ol", { class: "tries" }, [...detail.tries].reverse().map((one) => attempt(panel, place, detail, one)));
  if (!panel.live) return detail.tries.length ? h("section", { class: "change" }, h("h3", {}, "interventions"), list) : null;
  const own = detail.samples[0];
  const shown = readable(own?.text ?? "");
  const text = h("textarea", { rows: 2, "aria-label": "the thought, to edit", spellcheck: "false", value: shown });
  const edited = () => (text.value === shown ? own?.text ?? "" : text.value); // its own characters, where it was left as it is
  const donor = h("input", { type: "number", min: 0, placeholder: "earlier", "aria-label": "position of the donor" });
  const borrowed = () => ({ kind: "donor", donor: donor.value === "" ? null : Number(donor.value) }); // null: an earlier one
  const state = h("p", { class: "state", role: "status" });
  const buttons = [];
  const attemptWith = async (wanted) => {
    buttons.forEach((button) => (button.disabled = true));
    state.classList.remove("problem");
    state.textContent = "thinking…";
    try {
      for await (const frame of source.frames(`runs/${encodeURIComponent(panel.run.head.id)}/thoughts/${place}/change`, wanted)) {
        if (frame.kind === "loading") fill(state, `loading ${frame.data.model}…`);
        if (frame.kind === "waiting") state.textContent = `waiting for ${frame.data.ahead} earlier…`;
        if (frame.kind === "tries") {
          detail.tries.push(...frame.data.tries);
          list.prepend(...frame.data.tries.toReversed().map((one) => attempt(panel, place, detail, one, true)));
          panel.changed(place);
          state.textContent = "";
        }
      }
    } catch (error) {
      fill(state, error.message);
      state.classList.add("problem");
    }
    buttons.forEach((button) => (button.disabled = false));
  };
  const button = (label, title, wanted) => {
    const made = h("button", { type: "button", title, onclick: () => attemptWith(wanted()) }, label);
    buttons.push(made);
    return made;
  };
  return h(
    "section",
    { class: "change" },
    h("h3", {}, "change this thought"),
    text,
    h(
      "div", { class: "buttons" },
      button("Try this text", "use the text above as the thought", () => ({ kind: "edited", text: edited() })),
      button("Empty", "the markers with nothing between them", () => ({ kind: "truncated:0" })),
      button("Filler", "as many filler tokens", () => ({ kind: "filler" })),
      button("Shuffle", "its own tokens in random order", () => ({ kind: "shuffled" })),
      button("Resample 8", "sample eight new thoughts", () => ({ kind: "resampled", n: 8 })),
      button("No thought", "predict the next word without a thought here", () => ({ kind: "none" })),
      h("span", { class: "donor" }, button("Donor", "the thought of another position of this run", borrowed), donor),
    ),
    state,
    list,
  );
}

function attempt(panel, place, detail, one, open = false) {
  const compared = comparedOf(one);
  const [before, after] = [(compared?.mixed ?? detail.mixed)[0], one.mixed[0]];
  const other = compared ? compared.changed : Boolean(before && after && before.id !== after.id);
  const about = one.settings.donor !== undefined ? ` from ${one.settings.donor}` : "";
  const kind = Object.hasOwn(KINDS, one.kind) ? KINDS[one.kind] : visible(one.kind);
  const box = h(
    "details",
    { class: "try", open: open && one.kind !== "resampled" },
    h(
      "summary", {},
      h("span", { class: "kind" }, kind + about), " ",
      one.kind !== "none" && h("bdi", { class: "thought" }, visible(one.sample.text)), " ",
      after && h("span", { class: other ? "outcome other" : "outcome" }, `${quoted(after.text)} ${percent(after.prob)}`),
      h("small", {}, ` w ${number(one.sample.weight)} KL ${number(one.kl, 4)}`),
    ),
  );
  const show = () => {
    if (!box.open || box.filled) return;
    box.filled = true;
    box.append(
      one.kind === "none" ? "" : h("p", {}, pieces(one.sample)),
      bars([[compared ? "own thought" : "own thought, as recorded", compared?.mixed ?? detail.mixed], ["this thought", one.mixed], ["only this thought", one.only]], other),
      h("p", { class: "facts" }, verdict(compared, before, after)),
      following(panel, place, one),
    );
  };
  box.addEventListener("toggle", show);
  show();
  return h("li", {}, box);
}

// The prediction with the own thought that was computed beside a try; null in records from before, or damaged ones.
function comparedOf(one) {
  const found = one.settings.compared;
  if (!Array.isArray(found?.mixed) || !found.mixed.every((row) => Array.isArray(row) && typeof row[1] === "string")) return null;
  return { ...found, mixed: found.mixed.map(([id, text, prob]) => ({ id, text, prob })) };
}

// What may be said about the likeliest word, and what computed it.
function verdict(compared, before, after) {
  if (!compared) return "Compared with the recorded prediction, which may come from another batch or precision.";
  const floor = compared.floor ? `rounding (${small(real_of(compared.floor.logprob) ?? 0)} nats)` : "rounding, which was not measured";
  const tie = before && after && before.id !== after.id && `The two likeliest words differ by no more than ${floor}: no change.`;
  const said = compared.changed ? "Likeliest word changed." : tie || "Likeliest word not changed.";
  const words = (by) => Object.entries(by ?? {}).map(([name, value]) => `${name} ${value}`).join(", ");
  const both = `${said} Both predictions were computed now, `;
  if (!compared.recorded) return `${both}in one batch shape.`;
  return `${both}by ${words(compared.computed)}; the run by ${words(compared.recorded)}.`;
}

// The text that follows with the try in place, beside the one that was said.
function following(panel, place, one) {
  const recorded = panel.run.tokens.filter((token) => token.position > place).map((token) => token.text).join("");
  let original = typeof one.settings.original === "string" ? one.settings.original : null; // computed anew
  const path = `runs/${encodeURIComponent(panel.run.head.id)}/interventions/${one.number}/follow`;
  const box = h("div", { class: "following" });
  let text = one.continuation;
  let marks = false;
  let stop = null;
  let problem = "";
  const differ = h("label", { class: "check" }, h("input", { type: "checkbox", onchange: (event) => { marks = event.target.checked; draw(); } }), " mark differences");
  const button = h("button", { type: "button", onclick: () => (stop ? stop.abort() : follow()) });
  const column = (title, said, which) => h("section", {}, h("h4", {}, title), side(said, text, marks, which));
  const draw = () => {
    const said = original ?? recorded;
    const left = original !== null ? "with its own thought, computed again" : "as recorded";
    button.textContent = stop ? "Stop" : text === null ? "Continue the text" : "Continue it again";
    fill(
      box,
      text !== null && [differ, h("div", { class: "beside" }, column(left, said, "left"), column("with this thought", said, "right"))],
      text === said && !stop && h("p", { class: "facts" }, SAME),
      problem && h("p", { class: "problem", role: "alert" }, problem),
      panel.live && button,
    );
  };
  const follow = async () => {
    stop = new AbortController();
    [text, problem] = ["", ""];
    draw();
    try {
      for await (const frame of source.frames(path, {}, stop.signal)) {
        if (frame.kind === "event" && frame.data.event === "token") text += frame.data.text;
        if (frame.kind === "followed") [text, original] = [frame.data.text, frame.data.original];
        draw();
      }
      one.continuation = text;
    } catch (error) {
      if (error.name === "AbortError") one.continuation = text;
      else [text, problem] = [one.continuation, error.message];
    }
    stop = null;
    draw();
  };
  draw();
  return box;
}

function side(old, now, marked, which) {
  const text = which === "left" ? old : now;
  if (!marked) return h("p", { class: "said" }, readable(text));
  const [left, right] = [words(old), words(now)];
  const own = which === "left" ? left : right;
  return h("p", { class: "said" }, align(left, right, (a, b) => a.trim() === b.trim()).map((step) => {
    const part = readable(own.slice(...step[which]).join(""));
    return step.same || !part ? part : h(which === "left" ? "del" : "ins", {}, part);
  }));
}
