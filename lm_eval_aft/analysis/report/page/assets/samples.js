// The sample explorer: filters over a small index, search through the shards, a list, and one question at a time.

// Rows that are added to the list at once.
const PAGE = 100;
const KINDS = [
  ["all", "all", () => true],
  ["right", "right", (entry) => entry.right === true],
  ["wrong", "wrong", (entry) => entry.right === false],
  ["fixed", "fixed", (entry) => entry.fixed],
  ["broken", "broken", (entry) => entry.broken],
];

// The index comes as rows, which are small; _index_entry in write.py makes them.
function readIndex(index) {
  return index.entries.map(([run, task, doc, verdict, snippet], place) => ({
    place,
    run: index.runs[run],
    task: index.tasks[task],
    doc,
    right: verdict & 3 ? Boolean(verdict & 1) : null,
    fixed: Boolean(verdict & 4),
    broken: Boolean(verdict & 8),
    snippet,
  }));
}

function renderSamples(index) {
  if (typeof DecompressionStream === "undefined") {
    return section("samples", "Samples", h("p", {}, "This browser cannot unpack the samples; browsers since 2023 can."));
  }
  const entries = readIndex(index);
  const read = shardReader();
  const state = { run: "", task: "", kind: "all", words: "", found: entries, open: -1, search: 0 };

  const choose = (label, key, values) => {
    const options = [h("option", { value: "" }, "all"), ...values.map((value) => h("option", { value }, show(value)))];
    const select = h("select", { onchange: () => { state[key] = select.value; update(); } }, options);
    return h("label", { class: "field", hidden: values.length < 2 }, h("span", {}, label), select);
  };
  const kinds = KINDS.map(([kind, label]) => {
    const number = h("span", { class: "count" });
    const radio = h("input", { type: "radio", name: "kind", value: kind, checked: kind === "all", onchange: () => { state.kind = kind; update(); } });
    return { kind, number, node: h("label", { class: "kind " + kind }, radio, h("span", {}, label, " ", number)) };
  });
  let timer = 0;
  const box = h("input", {
    type: "search",
    placeholder: "in questions, drafts and answers",
    "aria-label": "Search",
    oninput: () => { clearTimeout(timer); timer = setTimeout(() => { state.words = box.value.trim().toLowerCase(); update(); }, 200); },
  });
  const status = h("p", { class: "status quiet", role: "status" });
  const list = h("ol", { class: "list", "aria-label": "Questions" });
  const more = h("button", { type: "button", class: "more", hidden: true, onclick: () => extend() });
  const detail = h("div", { class: "detail" }, h("p", { class: "quiet" }, "Choose a question."));
  const explorer = h("div", { class: "explorer" }, h("div", { class: "side" }, status, list, more), detail);
  list.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const buttons = [...list.querySelectorAll("button")];
    const next = buttons[buttons.indexOf(document.activeElement) + step];
    if (step && next) { event.preventDefault(); next.focus(); }
  });

  function row(entry) {
    const marks = verdicts(entry.right, entry.fixed, entry.broken);
    const where = [state.task || index.tasks.length < 2 ? "" : entry.task + " ", `#${entry.doc}`, state.run || index.runs.length < 2 ? "" : " \u00b7 " + entry.run];
    return h("li", {}, h("button", { type: "button", "data-place": entry.place, "aria-current": entry.place === state.open ? "true" : null, onclick: () => open(entry.place) }, h("span", { class: "top" }, h("span", { class: "where" }, show(where.join(""))), marks), h("span", { class: "snippet" }, show(entry.snippet))));
  }

  function extend() {
    const from = list.children.length;
    list.append(...state.found.slice(from, from + PAGE).map(row));
    const left = state.found.length - list.children.length;
    more.hidden = left <= 0;
    more.textContent = `Show ${count(Math.min(PAGE, left))} more of ${count(left)}`;
  }

  function setFound(found, message) {
    state.found = found;
    list.replaceChildren();
    extend();
    status.textContent = message || `${count(found.length)} of ${count(entries.length)} questions`;
  }

  // Filters apply at once. A search reads the shards, and stops if a newer one starts.
  async function update() {
    const search = ++state.search;
    const selected = entries.filter((entry) => (!state.run || entry.run === state.run) && (!state.task || entry.task === state.task));
    for (const { kind, number } of kinds) number.textContent = count(selected.filter(KINDS.find((each) => each[0] === kind)[2]).length);
    const wanted = selected.filter(KINDS.find((each) => each[0] === state.kind)[2]);
    if (!state.words) return setFound(wanted);
    const found = [];
    for (const [done, entry] of wanted.entries()) {
      const sample = (await read(Math.floor(entry.place / index.shard_size)))[entry.place % index.shard_size];
      if (search !== state.search) return;
      if (contains(sample, state.words)) found.push(entry);
      if (done % 500 === 499) status.textContent = `searching, ${Math.round(100 * done / wanted.length)}%`;
    }
    setFound(found);
  }

  async function open(place, scroll = true) {
    state.open = place;
    const sample = (await read(Math.floor(place / index.shard_size)))[place % index.shard_size];
    if (state.open !== place) return;
    for (const button of list.querySelectorAll("button")) {
      if (Number(button.dataset.place) === place) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
    }
    const mine = entries[place];
    const others = entries.filter((entry) => entry.task === mine.task && entry.doc === mine.doc && entry.place !== place);
    detail.replaceChildren(toolbar(place), ...renderSample(sample, others, open).flat());
    explorer.classList.add("open");
    detail.scrollTop = 0;
    history.replaceState(null, "", "#sample-" + place);
    if (scroll) detail.querySelector("h3").focus({ preventScroll: true });
    if (scroll && explorer.getBoundingClientRect().top < 0) explorer.scrollIntoView();
  }

  function toolbar(place) {
    const here = state.found.findIndex((entry) => entry.place === place);
    const step = (by, label) => {
      const next = here < 0 ? undefined : state.found[here + by];
      return h("button", { type: "button", disabled: !next, onclick: () => open(next.place) }, label);
    };
    const back = h("button", { type: "button", class: "back", onclick: () => explorer.classList.remove("open") }, "\u2190 List");
    return h("nav", { class: "steps", "aria-label": "Questions one by one" }, back, step(-1, "Previous"), step(1, "Next"));
  }

  update();
  const linked = /^#sample-(\d+)$/.exec(location.hash);
  if (linked && entries[linked[1]]) open(Number(linked[1]), false).then(() => explorer.scrollIntoView());
  const filters = h(
    "div",
    { class: "filters" },
    choose("Task", "task", index.tasks),
    choose("Run", "run", index.runs),
    h("fieldset", { class: "kinds" }, h("legend", { class: "unseen" }, "Verdict"), kinds.map((each) => each.node)),
    h("label", { class: "field search" }, h("span", {}, "Search"), box),
  );
  return section("samples", "Samples", filters, explorer);
}
