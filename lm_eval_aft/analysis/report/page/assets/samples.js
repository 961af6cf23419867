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
  return index.entries.map(([run, task, category, doc, grade, rightDrafts, changed, snippet], place) => ({
    place,
    run: index.runs[run],
    task: index.tasks[task],
    category: index.categories[category],
    doc,
    right: grade & 3 ? Boolean(grade & 1) : null,
    fixed: Boolean(grade & 4),
    broken: Boolean(grade & 8),
    rightDrafts,
    changed,
    snippet,
  }));
}

// The values of a field as options; none if there is no choice.
function options(entries, key, label) {
  const values = [...new Set(entries.map((entry) => entry[key]))].filter((value) => value !== null && value !== "");
  if (values.every((value) => typeof value === "number")) values.sort((a, b) => a - b);
  return values.length > 1 ? values.map((value) => [String(value), label(value)]) : [];
}

const FILTERS = [
  ["Task", "task", (value) => value],
  ["Run", "run", (value) => value],
  ["Category", "category", (value) => value],
  ["Right drafts", "rightDrafts", (value) => String(value)],
  ["Answer changed in", "changed", (value) => (value ? `layer ${value}` : "no layer")],
];

function renderSamples(index, featured) {
  if (typeof DecompressionStream === "undefined") {
    return section("samples", "Samples", h("p", {}, "This browser cannot unpack the samples; browsers since 2023 can."));
  }
  const entries = readIndex(index);
  const readShard = shardReader();
  const readSample = async (place) => (await readShard(Math.floor(place / index.shard_size)))[place % index.shard_size];
  const state = { values: {}, kind: "all", words: "", found: entries, first: 0, last: 0, open: -1, search: 0 };
  const view = { diff: false, all: false, facts: false, samples: null, set: change };

  // Draws the question again in another way. The button that was pressed keeps the focus.
  async function change(name, value) {
    view[name] = value;
    await open(state.open, false);
    detail.querySelector(`[data-toggle="${name}"]`)?.focus();
  }

  const selects = FILTERS.map(([label, key, name]) => {
    const choices = options(entries, key, name);
    const select = h("select", { onchange: () => { state.values[key] = select.value; update(); } }, h("option", { value: "" }, "all"), choices.map(([value, text]) => h("option", { value }, show(text))));
    return { key, select, node: h("label", { class: "field", hidden: !choices.length }, h("span", {}, label), select) };
  });
  const kinds = KINDS.map(([kind, label]) => {
    const number = h("span", { class: "count" });
    const radio = h("input", { type: "radio", name: "kind", value: kind, checked: kind === "all", onchange: () => { state.kind = kind; update(); } });
    return { kind, number, radio, node: h("label", { class: "kind " + kind }, radio, h("span", {}, label, " ", number)) };
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
  const earlier = h("button", { type: "button", class: "more", hidden: true, onclick: () => extend(-PAGE) });
  const more = h("button", { type: "button", class: "more", hidden: true, onclick: () => extend(PAGE) });
  const side = h("div", { class: "side" }, status, earlier, list, more);
  const detail = h("div", { class: "detail" }, h("p", { class: "quiet" }, "Choose a question."));
  const explorer = h("div", { class: "explorer" }, side, detail);
  list.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const buttons = [...list.querySelectorAll("button")];
    const next = buttons[buttons.indexOf(document.activeElement) + step];
    if (step && next) { event.preventDefault(); next.focus(); }
  });

  function row(entry) {
    const marks = gradeBadges(entry.right, entry.fixed, entry.broken);
    const where = [state.values.task || index.tasks.length < 2 ? "" : entry.task + " ", `#${entry.doc}`, state.values.run || index.runs.length < 2 ? "" : " \u00b7 " + entry.run];
    return h("li", {}, h("button", { type: "button", "data-place": entry.place, "aria-current": entry.place === state.open ? "true" : null, onclick: () => open(entry.place) }, h("span", { class: "top" }, h("span", { class: "where" }, show(where.join(""))), marks), h("span", { class: "snippet" }, show(entry.snippet))));
  }

  // Rows ``first`` to ``last`` of what was found are in the list.
  function extend(by) {
    if (by < 0) {
      const from = Math.max(0, state.first + by);
      list.prepend(...state.found.slice(from, state.first).map(row));
      state.first = from;
    } else {
      list.append(...state.found.slice(state.last, state.last + by).map(row));
      state.last = Math.min(state.found.length, state.last + by);
    }
    const [before, after] = [state.first, state.found.length - state.last];
    for (const [button, left, words] of [[earlier, before, "earlier"], [more, after, "more"]]) {
      button.hidden = !left;
      button.textContent = `Show ${count(Math.min(PAGE, left))} ${words} of ${count(left)}`;
    }
  }

  function listFrom(first) {
    state.first = state.last = first;
    list.replaceChildren();
    extend(PAGE);
  }

  function setFound(found) {
    state.found = found;
    listFrom(0);
    status.textContent = `${count(found.length)} of ${count(entries.length)} samples`;
  }

  // Filters apply at once. A search reads the shards, and stops if a newer one starts.
  async function update() {
    const search = ++state.search;
    const chosen = Object.entries(state.values).filter(([, value]) => value);
    const selected = entries.filter((entry) => chosen.every(([key, value]) => String(entry[key]) === value));
    for (const { kind, number } of kinds) number.textContent = count(selected.filter(KINDS.find((each) => each[0] === kind)[2]).length);
    const wanted = selected.filter(KINDS.find((each) => each[0] === state.kind)[2]);
    if (!state.words) return setFound(wanted);
    const found = [];
    for (const [done, entry] of wanted.entries()) {
      const sample = await readSample(entry.place);
      if (search !== state.search) return;
      if (contains(sample, state.words)) found.push(entry);
      if (done % 500 === 499) status.textContent = `searching, ${Math.round(100 * done / wanted.length)}%`;
    }
    setFound(found);
  }

  // Sets the filters, and shows what they find.
  function filter(values) {
    state.values = values;
    state.kind = "all";
    state.words = box.value = "";
    for (const { key, select } of selects) select.value = values[key] || "";
    kinds[0].radio.checked = true;
    update();
  }

  // Marks the open question in the list, and scrolls the list to it.
  function mark(place) {
    if (!state.found.some((entry) => entry.place === place)) filter({});
    const number = state.found.findIndex((entry) => entry.place === place);
    if (number === state.last) extend(PAGE);
    if (number < state.first || number >= state.last) listFrom(Math.max(0, number - PAGE / 2));
    for (const button of list.querySelectorAll("[aria-current]")) button.removeAttribute("aria-current");
    const button = list.children[number - state.first].firstChild;
    button.setAttribute("aria-current", "true");
    const [top, bottom] = [button.offsetTop, button.offsetTop + button.offsetHeight];
    if (top < side.scrollTop || bottom > side.scrollTop + side.clientHeight) side.scrollTop = top - side.clientHeight / 3;
  }

  // Shows a question. A question that the user chose gets the focus and the address.
  async function open(place, chosen = true) {
    const moved = state.open !== place;
    state.open = place;
    const sample = await readSample(place);
    const mine = entries[place];
    const others = entries.filter((entry) => entry.task === mine.task && entry.doc === mine.doc && entry.place !== place);
    const all = [mine, ...others].sort((a, b) => a.place - b.place);
    const samples = view.all && others.length ? await Promise.all(all.map(async (entry) => ({ place: entry.place, sample: await readSample(entry.place) }))) : null;
    if (state.open !== place) return;
    view.samples = samples;
    mark(place);
    detail.replaceChildren(toolbar(place, others.length), ...renderSample(sample, others, open, view));
    detail.classList.toggle("technical", view.facts);
    if (moved) detail.scrollTop = 0;
    // Milliseconds since the browser began to open the page, for the first question shown.
    document.documentElement.dataset.shown ??= Math.round(performance.now());
    if (!chosen) return;
    explorer.classList.add("open");
    history.replaceState(null, "", "#sample-" + place);
    detail.querySelector("h3").focus({ preventScroll: true });
    if (explorer.getBoundingClientRect().top < 0) explorer.scrollIntoView();
  }

  const next = (by) => {
    const here = state.found.findIndex((entry) => entry.place === state.open);
    return here < 0 ? undefined : state.found[here + by];
  };

  function toolbar(place, others) {
    const step = (by, label, key) => h("button", { type: "button", disabled: !next(by), title: `key ${key}`, onclick: () => open(next(by).place) }, label);
    const toggle = (name, label) => h("button", { type: "button", class: "toggle", "data-toggle": name, "aria-pressed": String(view[name]), onclick: () => view.set(name, !view[name]) }, label);
    const back = h("button", { type: "button", class: "back", onclick: () => explorer.classList.remove("open") }, "\u2190 List");
    return h("nav", { class: "steps", "aria-label": "Questions one by one" }, back, step(-1, "Previous", "k"), step(1, "Next", "j"), toggle("facts", "Seeds and tokens"), others ? toggle("all", "All runs side by side") : null);
  }

  // Keys work where nothing else takes them: on the page itself and inside the explorer.
  document.addEventListener("keydown", (event) => {
    const active = document.activeElement;
    const elsewhere = active && active !== document.body && !active.closest("#samples");
    if (event.ctrlKey || event.metaKey || event.altKey || elsewhere || active?.matches("input, select, textarea")) return;
    const step = { j: 1, k: -1 }[event.key];
    if (event.key === "/") { event.preventDefault(); box.focus(); box.scrollIntoView({ block: "nearest" }); }
    else if (step && state.open < 0 && state.found.length) open(state.found[0].place);
    else if (step && next(step)) { event.preventDefault(); open(next(step).place); }
  });

  function follow() {
    const linked = /^#sample-(\d+)$/.exec(location.hash);
    if (!linked || !entries[linked[1]]) return false;
    open(Number(linked[1])).then(() => explorer.scrollIntoView());
    return true;
  }

  addEventListener("hashchange", follow);
  filter(featured === null || index.runs.length < 2 ? {} : { run: entries[featured].run });
  if (!follow() && featured !== null) open(featured, false);
  const filters = h(
    "div",
    { class: "filters" },
    selects.map((each) => each.node),
    h("fieldset", { class: "kinds" }, h("legend", { class: "unseen" }, "Grade"), kinds.map((each) => each.node)),
    h("label", { class: "field search" }, h("span", {}, "Search"), box),
  );
  const keys = h("p", { class: "quiet keys" }, h("kbd", {}, "j"), " next, ", h("kbd", {}, "k"), " previous, ", h("kbd", {}, "/"), " search. Fixed: right, and the majority vote of the drafts is wrong. Broken: the reverse.");
  return section("samples", "Samples", filters, explorer, keys);
}
