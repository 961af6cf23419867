// Elements and text. Everything that a model wrote reaches the page through show(), which makes text nodes only.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== ""));
  return node;
}

const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

// Control characters, marks that reverse or hide text, invisible tag characters, halves of surrogate pairs. Joiners
// inside emoji (U+200C, U+200D) stay as they are.
const HIDDEN =
  /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb\u{e0000}-\u{e007f}\ud800-\udfff]/gu;

const CONTROLS = (
  "NUL SOH STX ETX EOT ENQ ACK BEL BS TAB LF VT FF CR SO SI " +
  "DLE DC1 DC2 DC3 DC4 NAK SYN ETB CAN EM SUB ESC FS GS RS US"
).split(" ");

function name(character) {
  const code = character.codePointAt(0);
  return CONTROLS[code] || "U+" + code.toString(16).toUpperCase().padStart(4, "0");
}

// Text as nodes; the names of invisible characters are shown.
function show(text) {
  const nodes = [];
  let from = 0;
  for (const match of text.matchAll(HIDDEN)) {
    if (match.index > from) nodes.push(document.createTextNode(text.slice(from, match.index)));
    nodes.push(h("span", { class: "hidden-character", title: "a character that cannot be seen" }, name(match[0])));
    from = match.index + match[0].length;
  }
  if (from < text.length || !nodes.length) nodes.push(document.createTextNode(text.slice(from)));
  return nodes;
}

// Characters shown at once: one or two screens of a card.
const CLIP = 8000;

// A text in a box that scrolls. Of a text longer than CLIP, a click shows the rest.
function textBox(text, label) {
  if (!text.trim()) return h("p", { class: "quiet" }, text ? "only white space" : "empty");
  const box = h("pre", { class: "text", dir: "auto", tabindex: "0", role: "region", "aria-label": label });
  if (text.length <= CLIP) {
    box.append(...show(text));
    return box;
  }
  box.append(...show(text.slice(0, CLIP)));
  const more = h("button", { type: "button", class: "more" }, `Show all ${count(text.length)} characters`);
  more.addEventListener("click", () => {
    box.replaceChildren(...show(text));
    more.remove();
    box.focus();
  });
  return [box, more];
}

const count = (number) => Math.round(number).toLocaleString("en-US");

const clip = (text, length) => (text.length > length ? text.slice(0, length) + "\u2026" : text);
const plural = (number, thing) => `${count(number)} ${thing}${number === 1 ? "" : "s"}`;

// The label of a tick: 1200 is 1.2k, 3.4e12 is 3.4T.
function short(number) {
  const size = Math.abs(number);
  for (const [unit, letter] of [[1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (size >= unit) return String(+(number / unit).toPrecision(3)) + letter;
  }
  return String(+number.toPrecision(3));
}

function section(id, title, ...children) {
  return h("section", { id, "aria-labelledby": id + "-title" }, h("h2", { id: id + "-title" }, title), ...children);
}
