// Tables that a click on a head sorts: numbers by value, largest first. Cells without a value come last.

function renderTable(table, caption) {
  const body = h("tbody");
  const rows = table.rows.map((row, place) => ({ row, place, node: renderRow(table.columns, row) }));
  const heads = table.columns.map((column, number) => {
    const button = h("button", { type: "button", title: column.title || null }, show(column.label.replace(" %", "\u00a0%")), h("i", { "aria-hidden": "true" }));
    const head = h("th", { scope: "col", class: column.numeric ? "number" : null, "aria-sort": "none" }, button);
    button.addEventListener("click", () => sort(number));
    return head;
  });

  function sort(number) {
    const numeric = table.columns[number].numeric;
    const now = heads[number].getAttribute("aria-sort");
    const next = now === "none" ? (numeric ? "descending" : "ascending") : now === "ascending" ? "descending" : "ascending";
    for (const head of heads) head.setAttribute("aria-sort", head === heads[number] ? next : "none");
    rows.sort((a, b) => compare(a.row.cells[number], b.row.cells[number], numeric, next) || a.place - b.place);
    body.append(...rows.map((each) => each.node));
  }

  body.append(...rows.map((each) => each.node));
  return [
    h(
      "div",
      { class: "scroll", tabindex: "0", role: "region", "aria-label": table.title },
      h("table", {}, caption ? h("caption", {}, show(table.title)) : null, h("thead", {}, h("tr", {}, heads)), body),
    ),
    table.notes.length ? h("ul", { class: "notes" }, table.notes.map((note) => h("li", {}, show(note)))) : null,
  ].filter(Boolean);
}

// Cells of at most this many characters stay on one line.
const BRIEF = 28;

function compare(a, b, numeric, direction) {
  const sign = direction === "ascending" ? 1 : -1;
  if (numeric || (a.value !== null && b.value !== null)) {
    if (a.value === null || b.value === null) return (a.value === null) - (b.value === null);
    return sign * (a.value - b.value);
  }
  return sign * a.text.localeCompare(b.text, "en", { numeric: true });
}

function renderRow(columns, row) {
  const cells = row.cells.map((cell, number) => {
    const text = cell.note
      ? h("span", { class: "noted", title: cell.note, tabindex: "0" }, show(cell.text), h("span", { class: "unseen" }, show(` (${cell.note})`)))
      : show(cell.text);
    const notes = number === 0 && row.notes.length ? h("small", { class: "apart" }, show(row.notes.join(" "))) : null;
    const kind = columns[number].numeric ? "number" : cell.text.length <= BRIEF ? "brief" : null;
    return number === 0 ? h("th", { scope: "row", class: kind }, text, notes) : h("td", { class: kind }, text);
  });
  return h("tr", { class: row.notes.length ? "apart" : null }, cells);
}
