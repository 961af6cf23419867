// One question: its messages, the drafts side by side, each layer, the answer; or its answers in all runs.

const badge = (kind, text) => h("span", { class: "badge " + kind }, text);
const rightBadge = (right) => (right === null ? null : right ? badge("right", "\u2713 right") : badge("wrong", "\u2717 wrong"));

function gradeBadges(right, fixed, broken) {
  return [rightBadge(right), fixed ? badge("right", "fixed") : null, broken ? badge("wrong", "broken") : null].filter(Boolean);
}

const fact = (label, value) => (value ? [h("dt", {}, label), h("dd", {}, show(clip(value, 1000)))] : []);
const spoken = (text) => text.spoken ?? text.text;

function finish(text) {
  return text.finish_reason === "stop" ? "ended by itself" : text.finish_reason === "length" ? "cut" : text.finish_reason ? show(text.finish_reason) : null;
}

// The answer that was found in a text. One that is most of the text says nothing new.
function found(text) {
  if (text.answer === null || text.answer.length > 0.7 * spoken(text).trim().length) return null;
  return h("p", { class: "found" }, h("span", { class: "quiet" }, "answer found: "), show(clip(text.answer, 100)));
}

// A part of a text that is made when it is opened, since it may be long.
function fold(label, make) {
  const details = h("details", { class: "fold" }, h("summary", {}, label));
  details.addEventListener("toggle", () => { if (details.open && details.children.length === 1) details.append(...[make()].flat()); });
  return details;
}

function textCard(text, title, source, body) {
  const copied = text.copies.length ? badge("copy", `copies ${source} ${text.copies.map((place) => place + 1).join(", ")}`) : null;
  const facts = [
    text.generated_tokens === null ? null : plural(text.generated_tokens, "token"),
    finish(text),
    text.seed ? h("span", { class: "seed" }, "seed ", show(text.seed)) : null,
  ].filter(Boolean);
  return h(
    "article",
    { class: "card" },
    h("header", {}, h("h5", {}, title), rightBadge(text.right), copied, text.finish_reason === "length" ? badge("cut", "cut at the token limit") : null),
    body || textBox(spoken(text), title),
    text.spoken === null ? null : fold("With its reasoning", () => textBox(text.text, title + " with its reasoning")),
    found(text),
    facts.length ? h("footer", {}, facts.flatMap((each, i) => (i ? [" \u00b7 ", each] : [each]))) : null,
  );
}

// The answer, or what it changed in the draft that it resembles most.
function answerCard(sample, text, source, view) {
  const draft = text.nearest === null ? null : sample.texts.find((each) => each.layer === 0 && each.index === text.nearest);
  if (!draft || spoken(draft) === spoken(text)) return textCard(text, "Answer", source);
  const name = `draft ${draft.index + 1}`;
  const body = view.diff ? diffBox(spoken(draft), spoken(text), `changes from ${name}`) : null;
  const button = h("button", { type: "button", class: "more", "data-toggle": "diff", "aria-pressed": String(view.diff), onclick: () => view.set("diff", !view.diff) }, view.diff ? "Show the answer alone" : `Show changes from ${name}, which it resembles most`);
  const card = textCard(text, "Answer", source, body);
  card.querySelector("header").after(button);
  return card;
}

function layers(sample, view) {
  const last = Math.max(...sample.texts.map((text) => text.layer));
  const sections = [];
  for (let layer = 0; layer <= last; layer++) {
    const texts = sample.texts.filter((text) => text.layer === layer);
    // A question whose drafts agree may skip layers.
    if (!texts.length) continue;
    // A last layer of several texts is no answer: the choices were scored after it.
    const answer = layer === last && texts.length === 1;
    const heading = answer ? "Answer" : layer === 0 ? `Drafts (${texts.length})` : `Layer ${layer} (${texts.length})`;
    const kind = layer === 0 ? "Draft" : `Layer ${layer}, text`;
    const source = layer === 1 ? "draft" : "text";
    const cards = texts.map((text) => (answer ? answerCard(sample, text, source, view) : textCard(text, `${kind} ${text.index + 1}`, source)));
    const prompt = layer && sample.prompts[layer - 1];
    const read = prompt ? fold("What it read: the system message", () => textBox(prompt, `system message of layer ${layer}`)) : null;
    if (answer && sample.choice) sections.push(h("section", { class: "layer" }, h("h4", {}, "Choice"), h("div", { class: "card" }, textBox(sample.choice, "choice"))));
    sections.push(h("section", { class: "layer" + (answer ? " answer" : "") }, h("h4", {}, heading), h("div", { class: "cards" }, cards), read));
  }
  return sections;
}

function messages(sample) {
  const turn = (message) => h("div", { class: "message" }, h("h5", {}, show(message.role)), textBox(message.text, message.role));
  const earlier = sample.messages.slice(0, -1);
  const last = sample.messages.at(-1);
  return h(
    "section",
    { class: "layer" },
    h("h4", {}, "Question"),
    h("div", { class: "card" }, textBox(last ? last.text : sample.question, "question")),
    earlier.length ? fold(`${plural(earlier.length, "earlier message")} (examples, system)`, () => earlier.map(turn)) : null,
    sample.rendered ? fold("Prompt of a draft, as the model got it", () => textBox(sample.rendered, "prompt of a draft")) : null,
  );
}

const draftsRight = (sample) => (sample.right_drafts === null ? "" : `${sample.right_drafts} of ${sample.texts.filter((text) => text.layer === 0).length}`);

// The answers of all runs to one question, side by side.
function allRuns(samples, open) {
  const card = ({ place, sample }) => {
    const text = sample.texts.at(-1);
    const name = h("button", { type: "button", class: "link", onclick: () => open(place) }, show(sample.run));
    return h(
      "article",
      { class: "card" },
      h("header", {}, h("h5", {}, name), gradeBadges(sample.right, sample.fixed, sample.broken)),
      sample.right_drafts === null ? null : h("p", { class: "quiet" }, `${draftsRight(sample)} drafts right`),
      textBox(text ? spoken(text) : sample.answer, sample.run),
      text ? found(text) : null,
    );
  };
  return h("section", { class: "layer" }, h("h4", {}, `Answers of all runs (${samples.length})`), h("div", { class: "cards" }, samples.map(card)));
}

function renderSample(sample, others, open, view) {
  const written = sample.texts.length ? sample.texts.at(-1).text : "";
  const twins = others.map((other) =>
    h("button", { type: "button", class: "link", onclick: () => open(other.place) }, show(other.run), " ", gradeBadges(other.right, false, false)),
  );
  const extra = (sample.repeat ? `, repeat ${sample.repeat + 1}` : "") + (sample.turn ? `, turn ${sample.turn + 1}` : "");
  const own = () => [
    sample.texts.length ? layers(sample, view) : null,
    sample.answer === written || sample.answer === spoken(sample.texts.at(-1) || { text: written, spoken: null }) ? null : h("section", { class: "layer" }, h("h4", {}, "What was scored"), h("div", { class: "card" }, textBox(sample.answer, "what was scored"))),
  ];
  return [
    h("header", { class: "sample" }, h("h3", { tabindex: "-1" }, show(`${sample.task} #${sample.doc_id}${extra}`)), gradeBadges(sample.right, sample.fixed, sample.broken)),
    h("dl", { class: "facts" }, fact("run", sample.run), fact("gold answer", sample.gold), fact("score", sample.score), fact("right drafts", draftsRight(sample)), fact("category", sample.category)),
    twins.length && !view.samples ? h("p", { class: "twins" }, h("span", { class: "quiet" }, "The same question in "), twins) : null,
    messages(sample),
    view.samples ? allRuns(view.samples, open) : own(),
  ].flat(2).filter(Boolean);
}
