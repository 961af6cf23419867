// Comparisons: one row each, with its interval on a common scale. Verdicts and numbers are texts made in Python.

const FOREST = { width: 240, height: 26, edge: 8 };

function forest(effect, reach) {
  const at = (value) => FOREST.width / 2 + (value / reach) * (FOREST.width / 2 - FOREST.edge);
  const middle = FOREST.height / 2;
  const picture = svg("svg", { viewBox: `0 0 ${FOREST.width} ${FOREST.height}`, class: "forest " + kind(effect.verdict), "aria-hidden": "true" });
  picture.append(svg("line", { class: "zero", x1: at(0), x2: at(0), y1: 0, y2: FOREST.height }));
  if (effect.low !== null && effect.high !== null) {
    picture.append(svg("line", { class: "interval", x1: at(effect.low), x2: at(effect.high), y1: middle, y2: middle }));
    for (const end of [effect.low, effect.high]) {
      picture.append(svg("line", { class: "interval", x1: at(end), x2: at(end), y1: middle - 4, y2: middle + 4 }));
    }
  }
  picture.append(svg("circle", { cx: at(effect.difference), cy: middle, r: 4.5 }));
  return picture;
}

function winBar(effect) {
  const all = effect.outcomes.reduce((sum, [, number]) => sum + number, 0) || 1;
  const picture = svg("svg", { viewBox: "0 0 100 6", preserveAspectRatio: "none", class: "bar", "aria-hidden": "true" });
  let from = 0;
  for (const [side, number] of effect.outcomes) {
    picture.append(svg("rect", { class: side, x: from, y: 0, width: 100 * number / all, height: 6 }));
    from += 100 * number / all;
  }
  return picture;
}

function effectRow(effect, reach) {
  const number = (key) => h("td", { class: "number" }, show(effect.texts[key] === "-" ? "\u2013" : typeset(effect.texts[key])));
  const [estimate, ...interval] = typeset(effect.texts.difference).split(" ");
  const named = effect.part ? [h("span", { class: "category" }, show(effect.name))] : [show(effect.name), " ", h("span", { class: "quiet" }, show(effect.metric))];
  return h(
    "tr",
    { class: effect.part ? "part" : null },
    h("th", { scope: "row" }, named, effect.notes.length ? h("small", { class: "apart" }, show(effect.notes.join(" "))) : null),
    h("td", { class: "number" }, show(`${typeset(effect.texts.baseline)} \u2192 ${typeset(effect.texts.score)}`)),
    h("td", { class: "number effect " + kind(effect.verdict) }, h("strong", {}, show(estimate)), " ", show(interval.join(" ")), h("span", { class: "unseen" }, show(` (${effect.verdict})`))),
    h("td", {}, forest(effect, reach)),
    number("p"),
    number("p_holm"),
    h("td", { class: "outcomes" }, winBar(effect), h("span", {}, show(effect.texts.above_level_below.replaceAll("/", " / ")))),
    number("token_ratio"),
    number("n"),
    number("detectable"),
  );
}

const HEADS = [
  ["task", ""],
  ["scores", "baseline, then the other run"],
  ["difference", "other minus baseline, with its interval"],
  ["", ""],
  ["p", "two-sided, paired"],
  ["p, Holm", "corrected over the tests of this run"],
  ["above / level / below", "questions on which it scored above, level with and below the baseline"],
  ["tokens", "generated tokens of the other run, a question, divided by the baseline's"],
  ["n", "pairs of questions"],
  ["detectable", "least true difference that this many questions would show, with 80% power"],
];
const TEXTUAL = [0, 3, 6];

function renderEffects(effects) {
  const groups = new Map();
  for (const effect of effects) {
    const key = JSON.stringify([effect.baseline, effect.other]);
    groups.set(key, [...(groups.get(key) || []), effect]);
  }
  const panels = [...groups.values()].map((group) => {
    const reach = (unit) => {
      // Percentages and, say, ratings from 1 to 10 need different scales.
      const alike = group.filter((e) => e.unit === unit);
      return Math.max(...alike.flatMap((e) => [e.difference, e.low ?? 0, e.high ?? 0].map(Math.abs))) || 1;
    };
    const head = HEADS.map(([label, title], i) => h("th", { scope: "col", title: title || null, class: TEXTUAL.includes(i) ? null : "number" }, label));
    return h(
      "div",
      { class: "panel" },
      h("h3", {}, show(group[0].other), h("span", { class: "quiet" }, " against "), show(group[0].baseline)),
      h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "comparison" }, h("table", { class: "effects" }, h("thead", {}, h("tr", {}, head)), h("tbody", {}, group.map((effect) => effectRow(effect, reach(effect.unit)))))),
      h("p", { class: "quiet" }, show(`Paired by question; intervals of ${group[0].level}.`)),
    );
  });
  return section("comparisons", "Comparisons", panels);
}
