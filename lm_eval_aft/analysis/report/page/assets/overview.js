// The first screen: the verdict on each task, and the scores of all runs on one axis. Numbers are texts made in Python.

const kind = (verdict) => (verdict === "better" || verdict === "worse" ? verdict : "level");
const SIGNS = { better: "\u25b2", worse: "\u25bc", level: "=" };

// A minus sign is as wide as a plus sign.
const typeset = (text) => text.replaceAll("-", "\u2212");

// The place of a value on an axis, as a share of its width.
const along = (axis, value) => `${(100 * (value - axis.low)) / (axis.high - axis.low)}%`;

const TRACK = 32;

// A square and a diamond are texts or lines around their middle: a share of the width cannot be moved by half a square.
const MARKS = {
  circle: (x, y) => svg("circle", { cx: x, cy: y, r: 5 }),
  hollow: (x, y) => svg("circle", { class: "hollow", cx: x, cy: y, r: 4.5 }),
  square: (x, y) => svg("line", { class: "square", x1: x, x2: x, y1: y - 4.5, y2: y + 4.5 }),
  diamond: (x, y) => svg("text", { class: "diamond", x, y: y + 5, "text-anchor": "middle" }, "\u25c6"),
};

// One interval on an axis: a point, its ends, and the lines of the ticks behind them.
function track(axis, mark, attributes, shape) {
  const middle = TRACK / 2;
  const picture = svg("svg", { height: TRACK, width: "100%", "aria-hidden": "true", ...attributes });
  for (const tick of axis.ticks) {
    picture.append(svg("line", { class: tick.value === 0 ? "zero" : "grid", x1: along(axis, tick.value), x2: along(axis, tick.value), y1: 0, y2: TRACK }));
  }
  if (mark.low !== null && mark.high !== null) {
    picture.append(svg("line", { class: "interval", x1: along(axis, mark.low), x2: along(axis, mark.high), y1: middle, y2: middle }));
    for (const end of [mark.low, mark.high]) {
      picture.append(svg("line", { class: "interval", x1: along(axis, end), x2: along(axis, end), y1: middle - 4, y2: middle + 4 }));
    }
  }
  picture.append((MARKS[shape] || MARKS.circle)(along(axis, mark.value), middle));
  return picture;
}

// The texts of the ticks. Those at the ends stay within the width.
function axisTexts(axis) {
  const picture = svg("svg", { height: 18, width: "100%", class: "ticks", "aria-hidden": "true" });
  for (const tick of axis.ticks) {
    const share = (tick.value - axis.low) / (axis.high - axis.low);
    const anchor = share < 0.03 ? "start" : share > 0.97 ? "end" : "middle";
    picture.append(svg("text", { x: along(axis, tick.value), y: 14, "text-anchor": anchor }, typeset(tick.text)));
  }
  return picture;
}

function verdictMark(verdict) {
  return h("strong", { class: "verdict " + kind(verdict) }, h("span", { "aria-hidden": "true" }, SIGNS[kind(verdict)] + " "), show(verdict));
}

function renderHeadline(headline, several) {
  const facts = several ? [] : headline.facts;
  const [first, ...others] = headline.sentences;
  return h(
    "div",
    { class: "headline " + kind(headline.verdict) },
    h("p", {}, headline.verdict ? [verdictMark(headline.verdict), " "] : null, show(first)),
    facts.length ? h("dl", { class: "facts-row" }, facts.map((fact) => h("div", {}, h("dt", {}, show(fact.label)), h("dd", {}, show(typeset(fact.text)))))) : null,
    others.map((sentence) => h("p", { class: "more quiet" }, show(sentence))),
  );
}

function stripRow(row, axis, columns) {
  const side = row.baseline ? "baseline" : kind(row.verdict);
  const name = [show(row.name), row.baseline ? h("span", { class: "quiet" }, " baseline") : row.verdict ? [" ", verdictMark(row.verdict)] : null];
  return h(
    "tr",
    { role: "row" },
    h("th", { scope: "row", role: "rowheader" }, name),
    h("td", { class: "picture", role: "cell" }, track(axis, row, { class: "track " + side }, row.baseline ? "square" : "circle")),
    h("td", { class: "number score", role: "cell" }, show(row.score)),
    columns.tokens ? h("td", { class: "number", role: "cell" }, row.tokens ? [show(row.tokens), h("span", { class: "unit" }, " tokens")] : "\u2013") : null,
    columns.ratio ? h("td", { class: "number", role: "cell" }, show(row.ratio.replace("x ", "\u00d7\u2009") || "\u2013")) : null,
  );
}

function renderStrip(strip) {
  const columns = { tokens: strip.rows.some((row) => row.tokens), ratio: strip.rows.some((row) => row.ratio) };
  const heads = [["run", ""], [strip.axis.label, "picture"], ["score", "number"], columns.tokens && ["tokens", "number"], columns.ratio && ["cost", "number"]].filter(Boolean);
  const titles = { tokens: "generated tokens a question", cost: "generated tokens, divided by the baseline's" };
  return h(
    "table",
    { class: "strip", role: "table" },
    h("caption", {}, show(strip.title)),
    h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, heads.map(([label, name]) => h("th", { scope: "col", role: "columnheader", class: name || null, title: titles[label] || null }, show(label))))),
    h("tbody", { role: "rowgroup" }, strip.rows.map((row) => stripRow(row, strip.axis, columns)), h("tr", { class: "axis", role: "row", "aria-hidden": "true" }, h("td"), h("td", { class: "picture" }, axisTexts(strip.axis)), h("td", { colspan: heads.length - 2 }))),
  );
}

function renderOverview(data) {
  const headlines = data.headlines.map((headline) => renderHeadline(headline, data.headlines.length > 2));
  const key = h("p", { class: "quiet" }, "Bars are 95% intervals. Tokens are generated tokens a question, and cost is their ratio to the baseline's. (k, layers) behind a name: k drafts, then so many layers that aggregate them.");
  return section("verdict", data.effects ? "Verdict" : "Result", headlines, data.notes.map((note) => h("p", { class: "note" }, show(note))), h("div", { class: "strips" }, data.strips.map(renderStrip)), data.strips.length ? key : null);
}

function renderRuns(data) {
  const runs = data.runs.map((run) =>
    h("div", { class: "run" }, h("h3", {}, show(run.name)), h("p", {}, run.date ? h("span", { class: "quiet" }, show(`Ended ${run.date}. `)) : null, show(run.settings)), textBox(run.command, "command of " + run.name)),
  );
  const shared = data.shared.length ? h("dl", { class: "facts" }, data.shared.map((fact) => [h("dt", {}, show(fact.label)), h("dd", {}, show(fact.text))])) : null;
  // Paper has nothing to click: how the runs were made is printed.
  addEventListener("beforeprint", () => { document.querySelector("#settings details").open = true; });
  return section("settings", "Settings and commands", h("details", { class: "panel" }, h("summary", {}, "How each run was made"), shared ? [h("h3", {}, "Equal in all runs"), shared] : null, runs));
}
