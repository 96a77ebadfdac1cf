// The list of runs, newest first, read by pages as one scrolls; search finds words in prompts, answers and thoughts.

import { href, stay } from "./address.js";
import { choice, count, fill, h, visible, when } from "./dom.js";
import { source } from "./source.js";

export async function runsPage({ query, about }) {
  document.title = "runs · quietstar";
  const asked = { query: query.get("query") ?? "", tag: query.get("tag") ?? "" };
  const list = h("ol", { class: "runs" });
  const state = h("p", { class: "state", role: "status" });
  let turn = 0;
  const pages = paged(list, state, async (last) => {
    const { runs, more } = await source.runs({ ...asked, after: last?.id });
    return { items: runs, more };
  }, line, () => (asked.query || asked.tag ? "No run matches." : about.model ? "No runs yet. Ask something." : "No runs yet."));
  const search = h("input", {
    type: "search", placeholder: "words in prompts, answers, thoughts", "aria-label": "search the runs", value: asked.query,
    oninput: () => {
      turn += 1;
      const now = turn;
      setTimeout(() => {
        if (now !== turn) return;
        asked.query = search.value;
        stay(href(["runs"], asked));
        pages.restart();
      }, 200);
    },
  });
  const choose = (event) => {
    asked.tag = event.target.value;
    stay(href(["runs"], asked));
    pages.restart();
  };
  const names = about.facets.tag.map((tag) => [tag, `#${visible(tag)}`]);
  const tags = names.length ? choice([["", "any tag"], ...names], asked.tag, { "aria-label": "tag", onchange: choose }) : null;
  await pages.restart();
  return {
    element: h("div", { class: "page" }, h("h1", {}, "Runs"), h("p", { class: "facts" }, `${count(about.totals.runs, "run")}, ${count(about.totals.thoughts, "thought")}`), h("div", { class: "bar" }, search, tags), list, state, pages.end),
    left: () => pages.stop(),
  };
}

function line(run) {
  return h(
    "li", {},
    h(
      "a", { href: href(["run", run.id]) },
      h("span", { class: "asked" }, visible(run.asked) || "(no prompt)"),
      h("span", { class: "said" }, visible(run.text) || "(no text)"),
      h("span", { class: "facts" },
        h("code", {}, run.id), ` ${when(run.started)}  `, h("bdi", {}, visible(run.model)), `  ${count(run.thoughts, "thought")}`,
        run.flips > 0 && h("b", {}, ` likeliest word changed ${count(run.flips, "time")}`),
        run.flips > 0 && !Number.isFinite(run.noise_kl) && " (noise floor not measured)",
        run.phase === "reason" && " reasoning", run.reason === null && " unfinished",
        run.tags.map((tag) => h("span", { class: "tag" }, `#${visible(tag)}`))),
    ),
  );
}

// A list that reads on as its end comes near. `fetch` gets the last item it has and gives {items, more}.
export function paged(list, state, fetch, draw, nothing) {
  const end = h("div", { class: "end" });
  let [last, more, busy, turn] = [null, true, false, 0];
  const next = async () => {
    if (busy || !more) return;
    busy = true;
    const now = turn;
    try {
      const found = await fetch(last, list.childElementCount);
      if (now !== turn) return;
      list.append(...found.items.map(draw));
      last = found.items.at(-1) ?? last;
      more = found.more;
      state.textContent = list.childElementCount ? "" : nothing();
    } catch (error) {
      more = false;
      fill(state, error.message);
    } finally {
      if (now === turn) busy = false;
    }
    if (more && end.isConnected && end.getBoundingClientRect().top < innerHeight + 400) await next();
  };
  const watcher = new IntersectionObserver((seen) => seen.some((one) => one.isIntersecting) && next(), { rootMargin: "600px" });
  watcher.observe(end);
  const restart = () => {
    [last, more, busy, turn] = [null, true, false, turn + 1];
    fill(list);
    return next();
  };
  return { end, restart, stop: () => watcher.disconnect() };
}
