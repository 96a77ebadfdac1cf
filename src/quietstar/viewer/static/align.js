// What two sequences share and where they part: the shortest edit script (Myers 1986), for tokens and for words.

const MOST = 1200; // edits; texts further apart are simply two texts

// Stretches [{same, left: [from, to], right: [from, to]}, ...] that cover both sequences in order.
export function align(left, right, equal = (a, b) => a === b) {
  let head = 0;
  while (head < left.length && head < right.length && equal(left[head], right[head])) head += 1;
  let tail = 0;
  while (tail < left.length - head && tail < right.length - head && equal(left.at(-1 - tail), right.at(-1 - tail))) tail += 1;
  const a = left.slice(head, left.length - tail);
  const b = right.slice(head, right.length - tail);
  const out = [];
  const push = (same, l, r) => {
    if (l[0] === l[1] && r[0] === r[1]) return;
    const last = out.at(-1);
    if (last && last.same === same) [last.left[1], last.right[1]] = [l[1], r[1]];
    else out.push({ same, left: l, right: r });
  };
  push(true, [0, head], [0, head]);
  for (const [same, i, j, n, m] of script(a, b, equal)) push(same, [head + i, head + i + n], [head + j, head + j + m]);
  push(true, [left.length - tail, left.length], [right.length - tail, right.length]);
  return out;
}

// Steps [same, i, j, n, m] from the front.
function script(a, b, equal) {
  const whole = a.length || b.length ? [[false, 0, 0, a.length, b.length]] : [];
  if (!a.length || !b.length) return whole;
  const reached = new Map([[1, 0]]);
  const trail = [];
  for (let edits = 0; edits <= Math.min(MOST, a.length + b.length); edits += 1) {
    trail.push(new Map(reached));
    for (let k = -edits; k <= edits; k += 2) {
      const down = k === -edits || (k !== edits && (reached.get(k - 1) ?? -1) < (reached.get(k + 1) ?? -1));
      let i = down ? (reached.get(k + 1) ?? 0) : (reached.get(k - 1) ?? 0) + 1;
      while (i < a.length && i - k < b.length && equal(a[i], b[i - k])) i += 1;
      reached.set(k, i);
      if (i >= a.length && i - k >= b.length) return walk(trail, a.length, b.length);
    }
  }
  return whole;
}

function walk(trail, n, m) {
  const steps = [];
  let [i, j] = [n, m];
  for (let edits = trail.length - 1; edits >= 0; edits -= 1) {
    const reached = trail[edits];
    const k = i - j;
    const down = k === -edits || (k !== edits && (reached.get(k - 1) ?? -1) < (reached.get(k + 1) ?? -1));
    const before = down ? k + 1 : k - 1;
    const fromI = reached.get(before) ?? 0;
    const fromJ = fromI - before;
    const startI = edits ? (down ? fromI : fromI + 1) : 0;
    const startJ = edits ? startI - k : 0;
    if (i > startI) steps.push([true, startI, startJ, i - startI, i - startI]);
    if (edits) steps.push([false, fromI, fromJ, startI - fromI, startJ - fromJ]);
    [i, j] = [fromI, fromJ];
  }
  return steps.reverse();
}

// A text as words with the space before each.
export const words = (text) => text.match(/\s*\S+|\s+$/g) ?? [];
