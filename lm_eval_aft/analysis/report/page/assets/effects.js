// Comparisons: one row each, with its interval on a common scale.

const FOREST = { width: 240, height: 26, edge: 8 };

function forest(effect, reach) {
  const at = (value) => FOREST.width / 2 + (value * effect.scale / reach) * (FOREST.width / 2 - FOREST.edge);
  const middle = FOREST.height / 2;
  const picture = svg("svg", { viewBox: `0 0 ${FOREST.width} ${FOREST.height}`, class: "forest " + direction(effect), "aria-hidden": "true" });
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

// Better or worse only if the interval excludes zero and the metric has a better side.
function direction(effect) {
  if (effect.higher_is_better === null) return "level";
  if (effect.low === null || effect.high === null || (effect.low <= 0 && effect.high >= 0)) return "level";
  return effect.difference > 0 === effect.higher_is_better ? "better" : "worse";
}

function winBar(effect) {
  const all = effect.wins + effect.ties + effect.losses || 1;
  const picture = svg("svg", { viewBox: "0 0 100 6", preserveAspectRatio: "none", class: "bar", "aria-hidden": "true" });
  const [above, below] = effect.higher_is_better === null ? ["level", "level"] : effect.higher_is_better ? ["better", "worse"] : ["worse", "better"];
  let from = 0;
  for (const [kind, number] of [[above, effect.wins], ["level", effect.ties], [below, effect.losses]]) {
    picture.append(svg("rect", { class: kind, x: from, y: 0, width: 100 * number / all, height: 6 }));
    from += 100 * number / all;
  }
  return picture;
}

function pValue(p) {
  if (p === null) return "\u2013";
  return p >= 0.001 ? p.toFixed(3) : p === 0 ? "0" : p.toExponential(0).replace("-", "\u2212");
}

const digits = (effect) => (effect.scale === 100 ? 1 : 2);

function effectRow(effect, reach) {
  const points = (value) => signed(value * effect.scale, digits(effect));
  const score = (value) => (value * effect.scale).toFixed(digits(effect));
  const ends = effect.low === null || effect.high === null ? "" : ` [${points(effect.low)}, ${points(effect.high)}]`;
  const level = effect.higher_is_better === null ? "neither better nor worse" : "no clear difference";
  const words = { better: "better", worse: "worse", level }[direction(effect)];
  const named = effect.category ? [h("span", { class: "category" }, show(effect.category))] : [show(effect.task), " ", h("span", { class: "quiet" }, show(effect.metric))];
  return h(
    "tr",
    { class: effect.category ? "part" : null },
    h("th", { scope: "row" }, named, effect.notes.length ? h("small", { class: "apart" }, show(effect.notes.join(" "))) : null),
    h("td", { class: "number" }, `${score(effect.baseline_score)} \u2192 ${score(effect.other_score)}`),
    h("td", { class: "number effect " + direction(effect) }, h("strong", {}, points(effect.difference)), ends, h("span", { class: "unseen" }, ` (${words})`)),
    h("td", {}, forest(effect, reach)),
    h("td", { class: "number" }, pValue(effect.p_value)),
    h("td", { class: "number" }, pValue(effect.p_holm)),
    h("td", { class: "outcomes" }, winBar(effect), h("span", {}, `${count(effect.wins)} / ${count(effect.ties)} / ${count(effect.losses)}`)),
    h("td", { class: "number", title: effect.cost_unit }, effect.cost_ratio === null ? "\u2013" : `\u00d7${+effect.cost_ratio.toPrecision(3)}`),
    h("td", { class: "number" }, count(effect.n)),
    h("td", { class: "number" }, effect.detectable === null ? "\u2013" : score(effect.detectable)),
  );
}

const HEADS = [
  ["task", ""],
  ["scores", "baseline, then the other run"],
  ["difference", "other minus baseline, with its interval"],
  ["", ""],
  ["p", "two-sided, paired"],
  ["p, Holm", "corrected over the tasks"],
  ["above / level / below", "questions on which it scored above, level with and below the baseline"],
  ["cost", "of the other run, a question, divided by the baseline's"],
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
    const reach = (scale) => {
      // Percentages and, say, ratings from 1 to 10 need different scales.
      const alike = group.filter((e) => e.scale === scale);
      return Math.max(...alike.flatMap((e) => [e.difference, e.low ?? 0, e.high ?? 0].map((value) => Math.abs(value * scale)))) || 1;
    };
    const head = HEADS.map(([label, title], i) => h("th", { scope: "col", title: title || null, class: TEXTUAL.includes(i) ? null : "number" }, label));
    const level = +(100 * group[0].level).toPrecision(6);
    const units = [...new Set(group.filter((e) => e.cost_ratio !== null).map((e) => e.cost_unit))].join(", ");
    return h(
      "div",
      { class: "panel" },
      h("h3", {}, show(group[0].other), h("span", { class: "quiet" }, " against "), show(group[0].baseline)),
      h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "comparison" }, h("table", { class: "effects" }, h("thead", {}, h("tr", {}, head)), h("tbody", {}, group.map((effect) => effectRow(effect, reach(effect.scale)))))),
      h("p", { class: "quiet" }, `Paired by question; intervals of ${level}%.`, units ? show(` Cost counts ${units} a question.`) : ""),
    );
  });
  return section("comparisons", "Comparisons", panels);
}
