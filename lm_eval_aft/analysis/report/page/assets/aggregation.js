// What aggregation did: three sentences, two pictures, and the tables in a fold.

const BARS = { height: 150, top: 18, bottom: 36, left: 12 };

// Answers and votes by the number of right drafts, as pairs of bars. All places are shares of the width.
function rightDraftBars(rows) {
  const { height, top, bottom } = BARS;
  const picture = svg("svg", { class: "bars", height: height + top + bottom, width: "100%", role: "img", "aria-label": "share of questions that the answer and the vote get right, by the number of right drafts" });
  const level = (share) => top + height * (1 - share);
  for (const [share, text] of [[0, "0%"], [0.5, "50%"], [1, "100%"]]) {
    picture.append(svg("line", { class: "grid", x1: `${BARS.left}%`, x2: "100%", y1: level(share), y2: level(share) }), svg("text", { x: `${BARS.left - 1.5}%`, y: level(share) + 4, "text-anchor": "end" }, text));
  }
  const step = (100 - BARS.left) / rows.length;
  const width = Math.min(step * 0.36, 9);
  rows.forEach((row, place) => {
    const middle = BARS.left + step * (place + 0.5);
    const sides = row.vote === null ? [["answer", row.answer, row.answer_text, 0]] : [["answer", row.answer, row.answer_text, -1], ["vote", row.vote, row.vote_text, 1]];
    for (const [name, share, text, side] of sides) {
      const left = middle + (side - 1) * width / 2;
      picture.append(svg("rect", { class: name, x: `${left}%`, width: `${width}%`, y: level(share), height: Math.max(height * share, 1) }, svg("title", {}, `${name} right on ${text}`)));
      if (rows.length <= 6) picture.append(svg("text", { class: "value", x: `${left + width / 2}%`, y: level(share) - 4, "text-anchor": "middle" }, text.replace("%", "")));
    }
    picture.append(
      svg("text", { class: "label", x: `${middle}%`, y: height + top + 15, "text-anchor": "middle" }, String(row.drafts)),
      svg("text", { x: `${middle}%`, y: height + top + 31, "text-anchor": "middle" }, row.questions),
    );
  });
  return picture;
}

function rightDraftFigure(rows, k) {
  const key = (name, label) => h("li", {}, svg("svg", { class: "bars", width: 12, height: 12, "aria-hidden": "true" }, svg("rect", { class: name, width: 12, height: 12 })), label);
  return h(
    "figure",
    {},
    h("figcaption", {}, "How often the answer and the vote are right"),
    h("ul", { class: "legend" }, key("answer", "answer"), rows.some((row) => row.vote !== null) ? key("vote", "majority vote") : null),
    rightDraftBars(rows),
    h("p", { class: "quiet under" }, `how many of the ${k} drafts are right; below it, the number of such questions`),
  );
}

function copyFigure(copies) {
  const most = Math.max(...copies.map((each) => each.share)) || 1;
  const row = (each) => h("tr", {}, h("th", { scope: "row" }, `draft ${each.position}`), h("td", { class: "picture" }, svg("svg", { class: "bars", width: "100%", height: 14, "aria-hidden": "true" }, svg("rect", { class: "answer", width: `${100 * each.share / most}%`, height: 14, rx: 2 }))), h("td", { class: "number" }, show(each.text)));
  return h("figure", {}, h("figcaption", {}, "Answers that repeat a draft, by its position"), h("table", { class: "copies" }, h("tbody", {}, copies.map(row))));
}

function renderAggregation(each, open) {
  const { panel } = each;
  const figures = [each.by_right_drafts.length ? rightDraftFigure(each.by_right_drafts, each.k) : null, each.copies.length ? copyFigure(each.copies) : null].filter(Boolean);
  return h(
    "details",
    { class: "panel", open },
    h("summary", {}, h("h3", {}, show(panel.run)), h("span", { class: "quiet" }, show(panel.task))),
    h("ul", { class: "findings" }, panel.findings.map((finding) => h("li", {}, show(finding)))),
    figures.length ? h("div", { class: "figures" }, figures) : null,
    h("p", { class: "quiet" }, show(panel.remarks.join(" "))),
    h("details", { class: "data" }, h("summary", {}, plural(panel.tables.length, "table")), panel.tables.map((table) => renderTable(table, true))),
  );
}

// The run of the verdict is open.
function renderDiagnostics(all, run) {
  const chosen = Math.max(0, all.findIndex((each) => each.panel.run === run));
  return section("diagnostics", "What aggregation did", all.map((each, number) => renderAggregation(each, number === chosen)));
}
