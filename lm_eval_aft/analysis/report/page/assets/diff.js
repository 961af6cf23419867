// The difference of two texts, word by word, by their longest common subsequence.

// Cells of the table of common subsequences: 12 MB.
const MOST_CELLS = 6e6;

const words = (text) => text.match(/\s+|[\p{L}\p{N}_]+|[^\s\p{L}\p{N}_]/gu) || [];

// Parts of the two texts as ["same" | "del" | "ins", text]; null if the texts are too long to compare.
function wordDiff(before, after) {
  const a = words(before);
  const b = words(after);
  let start = 0;
  while (start < a.length && start < b.length && a[start] === b[start]) start++;
  let end = 0;
  while (end < a.length - start && end < b.length - start && a[a.length - 1 - end] === b[b.length - 1 - end]) end++;
  const [n, m] = [a.length - start - end, b.length - start - end];
  if ((n + 1) * (m + 1) > MOST_CELLS || n > 65535 || m > 65535) return null;
  const common = commonLengths(a, b, start, n, m);
  const parts = [];
  const add = (kind, text) => {
    if (parts.length && parts.at(-1)[0] === kind) parts.at(-1)[1] += text;
    else parts.push([kind, text]);
  };
  if (start) add("same", a.slice(0, start).join(""));
  let [i, j] = [0, 0];
  while (i < n || j < m) {
    if (i < n && j < m && a[start + i] === b[start + j]) {
      add("same", a[start + i]);
      i++;
      j++;
    } else if (j >= m || (i < n && common[(i + 1) * (m + 1) + j] >= common[i * (m + 1) + j + 1])) add("del", a[start + i++]);
    else add("ins", b[start + j++]);
  }
  if (end) add("same", a.slice(a.length - end).join(""));
  return parts;
}

// The length of the longest common subsequence of each pair of ends, a row of m + 1 cells for each word of a.
function commonLengths(a, b, start, n, m) {
  const common = new Uint16Array((n + 1) * (m + 1));
  for (let i = n - 1; i >= 0; i--) {
    for (let j = m - 1; j >= 0; j--) {
      const here = i * (m + 1) + j;
      const below = here + m + 1;
      common[here] = a[start + i] === b[start + j] ? common[below + 1] + 1 : Math.max(common[below], common[here + 1]);
    }
  }
  return common;
}

function diffBox(before, after, label) {
  const parts = wordDiff(before, after);
  if (parts === null) return h("p", { class: "quiet" }, "These texts are too long to compare word by word.");
  const tags = { same: "span", del: "del", ins: "ins" };
  return h("pre", { class: "text diff", dir: "auto", tabindex: "0", role: "region", "aria-label": label }, parts.map(([kind, text]) => h(tags[kind], {}, show(text))));
}
