// Comparisons: one table of all runs, a group of rows for each task. Verdicts and numbers are texts made in Python.

// More votes than these are shown on a click.
const MANY = 16;

const SHAPE = { run: "circle", part: "circle", vote: "diamond", bound: "hollow" };

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

function effectName(effect) {
  const remarks = effect.notes.length ? h("small", { class: "apart" }, show(effect.notes.join(" "))) : null;
  if (effect.kind === "run") return [show(effect.run), " ", verdictMark(effect.verdict), remarks];
  return [h("span", { class: "category" }, effect.kind === "part" ? "" : "against ", show(effect.name)), remarks];
}

// A phone shows the head beside the number.
function effectCell(effect, [key, label]) {
  const text = effect.texts[key];
  if (text === undefined || text === "-") return h("td", { class: "number none", role: "cell" }, "\u2013");
  if (key === "above_level_below") return h("td", { class: "outcomes", role: "cell", "data-label": label }, winBar(effect), h("span", {}, show(text.replaceAll("/", " / "))));
  return h("td", { class: "number", role: "cell", "data-label": label }, show(key === "token_ratio" ? text.replace("x ", "\u00d7\u2009") : typeset(text)));
}

function effectRow(effect, axis, columns) {
  const side = kind(effect.verdict);
  const [estimate, ...interval] = typeset(effect.texts.difference).split(" ");
  const mark = { value: effect.difference, low: effect.low, high: effect.high };
  return h(
    "tr",
    { class: effect.kind, role: "row" },
    h("th", { scope: "row", role: "rowheader" }, effectName(effect)),
    h("td", { class: "number effect " + side, role: "cell" }, h("strong", {}, show(estimate)), " ", show(interval.join(" "))),
    h("td", { class: "picture", role: "cell" }, track(axis, mark, { class: "track forest " + side }, SHAPE[effect.kind])),
    h("td", { class: "number", role: "cell", "data-label": "scores" }, show(`${typeset(effect.texts.baseline)} \u2192 ${typeset(effect.texts.score)}`)),
    columns.map((column) => effectCell(effect, column)),
  );
}

function effectGroup(group, columns, withAxis) {
  const head = h("tr", { class: "group", role: "row" }, h("th", { scope: "rowgroup", colspan: 2 }, show(group.title)), h("td", { class: "picture" }, withAxis ? [h("span", { class: "quiet" }, show(group.axis.label)), axisTexts(group.axis)] : null), h("td", { colspan: columns.length + 1 }));
  return h("tbody", { role: "rowgroup" }, head, group.effects.map((effect) => effectRow(effect, group.axis, columns)));
}

function renderEffects(effects) {
  const heads = [["run", ""], ["difference", "the run minus what it is compared with, with its interval"], ["", ""], ["scores", "of what it is compared with, then of the run"], ...effects.columns.map(([, label, title]) => [label, title])];
  const textual = (i) => i === 0 || i === 2 || effects.columns[i - 4]?.[0] === "above_level_below";
  const head = heads.map(([label, title], i) => h("th", { scope: "col", role: "columnheader", title: title || null, class: textual(i) ? null : "number" }, show(label)));
  const table = h("table", { class: "effects", role: "table" });
  const votes = effects.groups.flatMap((group) => group.effects).filter((effect) => effect.kind === "vote" || effect.kind === "bound");
  const button = votes.length > MANY ? h("button", { type: "button", class: "more", "aria-pressed": "false", onclick: () => {
    button.setAttribute("aria-pressed", String(!table.classList.toggle("brief")));
  } }, `Show ${count(votes.length)} votes of equal cost`) : null;
  if (button) table.classList.add("brief");
  const axes = effects.groups.map((group) => JSON.stringify(group.axis));
  return section(
    "comparisons",
    "Comparisons",
    button,
    h(
      "div",
      { class: "scroll", tabindex: "0", role: "region", "aria-label": "Comparisons" },
      // Groups in a row with the same axis show it once.
      fill(table, {}, [h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, head)), effects.groups.map((group, i) => effectGroup(group, effects.columns, axes[i] !== axes[i - 1]))]),
    ),
    h("ul", { class: "notes" }, effects.notes.map((note) => h("li", {}, show(note)))),
  );
}
