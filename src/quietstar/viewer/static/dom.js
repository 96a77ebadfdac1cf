// Elements from plain values. What models, people and files say only ever becomes text nodes and attribute values:
// nothing on this page makes markup out of a string. All of it passes here, where characters that hide or reorder text
// become visible codes; only the value of a form field stays as it is.

const READ = ["title", "placeholder", "aria-label", "aria-description", "aria-valuetext"]; // attributes that are read

export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  set(element, attributes);
  element.append(...shown(children));
  return element;
}

export function set(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) element.removeAttribute(name);
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name.startsWith("--")) element.style.setProperty(name, value);
    else if (name === "value" || name === "checked") element[name] = value;
    else element.setAttribute(name, value === true ? "" : READ.includes(name) ? visible(String(value)) : String(value));
  }
  return element;
}

export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  set(element, attributes);
  element.append(...shown(children));
  return element;
}

export function fill(element, ...children) {
  element.replaceChildren(...shown(children));
  return element;
}

function shown(children) {
  const kept = children.flat(2).filter((child) => child !== null && child !== undefined && child !== false);
  return kept.map((child) => (child instanceof Node ? child : readable(String(child))));
}

// A labelled control: the label wraps it, so that both are one target.
export function field(label, control, hint = "") {
  return h("label", { class: "field" }, h("span", {}, label), control, hint && h("small", {}, hint));
}

export function choice(options, selected, attributes = {}) {
  return h("select", attributes, options.map(([value, label]) => h("option", { value, selected: value === selected }, label)));
}

const HIDDEN = /[\p{Cc}\p{Cs}\p{Zl}\p{Zp}]|(?![\u200c\u200d])\p{Cf}/gu;
const code = (character) => `\\x${character.codePointAt(0).toString(16).padStart(2, "0")}`;

// Text on one line: line breaks and tabs as signs, other control characters as their code.
export function visible(text) {
  const signs = { "\n": "⏎", "\r": "␍", "\t": "⇥" };
  return text.replace(HIDDEN, (character) => signs[character] ?? code(character));
}

// Text to read: line breaks and tabs stay, what could reorder or hide text becomes its code.
export function readable(text) {
  return text.replace(HIDDEN, (character) => (character === "\n" || character === "\t" ? character : code(character)));
}

// The same with every space to be seen.
export function marked(text) {
  return readable(text).replaceAll(" ", "·").replaceAll("\t", "⇥\t").replaceAll("\n", "⏎\n");
}

// What a screen reader says for text without a letter in it, null for any other.
export function spoken(text) {
  if (text === "") return "inside a character";
  if (text.trim() === "") return text.includes("\n") ? "line break" : "space";
  return null;
}

// Words in quotes as in the terminal: “ the”, with its space.
export const quoted = (text) => `“${visible(text)}”`;

export function number(value, digits = 3) {
  const real = real_of(value);
  if (real === null) return "–";
  if (!Number.isFinite(real)) return real > 0 ? "∞" : "−∞";
  return real.toFixed(digits).replace("-", "−");
}

// A small number to two digits, as in 0.00012 or 3.1e−9.
export function small(value) {
  return (value !== 0 && Math.abs(value) < 1e-5 ? value.toExponential(1) : String(Number(value.toPrecision(2)))).replace("-", "−");
}

// The record writes numbers that JSON has no name for as text.
export function real_of(value) {
  if (typeof value === "string") return { inf: Infinity, "-inf": -Infinity }[value] ?? null;
  return typeof value === "number" ? value : null;
}

export function percent(probability) {
  const share = 100 * (real_of(probability) ?? 0);
  return share >= 9.95 || share === 0 ? `${share.toFixed(0)} %` : share >= 0.1 ? `${share.toFixed(1)} %` : "<0.1 %";
}

export function when(text) {
  const date = new Date(text);
  const two = (n) => String(n).padStart(2, "0");
  return `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())} ${two(date.getHours())}:${two(date.getMinutes())}`;
}

export const count = (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;

// What a person chose stays chosen, where the browser lets a page remember anything.
export const memory = {
  get(name, otherwise) {
    try {
      return localStorage.getItem(`quietstar.${name}`) ?? otherwise;
    } catch {
      return otherwise;
    }
  },
  set(name, value) {
    try {
      localStorage.setItem(`quietstar.${name}`, value);
    } catch {
      // a page in a sandbox forgets
    }
  },
};
