// Where one is: `#/run/ID/57?key=value`. Every place has an address that survives a reload; inside a notebook's frame,
// which has no address of its own, the place is kept here.

const framed = location.protocol === "about:";
let current = framed ? "" : location.hash;
let arrive = () => {};

export function place() {
  const [path, query = ""] = (framed ? current : location.hash).replace(/^#\/?/, "").split("?");
  return { parts: path.split("/").filter(Boolean).map(decoded), query: new URLSearchParams(query) };
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    throw new Error(`this address is damaged: “${part}” is no valid percent-encoding`);
  }
}

export function href(parts, query = {}) {
  const kept = Object.entries(query).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  const path = `#/${parts.map(encodeURIComponent).join("/")}`;
  return kept.length ? `${path}?${new URLSearchParams(kept)}` : path;
}

// Go there: draws the page anew.
export function go(target) {
  if (!framed) {
    if (location.hash === target) arrive();
    else location.hash = target;
    return;
  }
  current = target;
  arrive();
}

// Say where one is now without drawing anything anew.
export function stay(target) {
  current = target;
  if (!framed) history.replaceState(null, "", target);
}

export function listen(draw) {
  arrive = draw;
  addEventListener("hashchange", draw);
  document.addEventListener("click", (event) => {
    const link = event.target.closest?.("a[href^='#']");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    go(link.getAttribute("href"));
  });
}
