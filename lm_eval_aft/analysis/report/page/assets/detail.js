// One question: its messages, the drafts side by side, each layer, the answer.

const badge = (kind, text) => h("span", { class: "badge " + kind }, text);

function verdicts(right, fixed, broken) {
  return [
    right === null ? null : right ? badge("right", "\u2713 right") : badge("wrong", "\u2717 wrong"),
    fixed ? badge("right", "fixed") : null,
    broken ? badge("wrong", "broken") : null,
  ].filter(Boolean);
}

const fact = (label, value) => (value ? [h("dt", {}, label), h("dd", {}, show(clip(value, 1000)))] : []);

function finish(text) {
  if (text.finish_reason === "length") return badge("cut", "cut at the token limit");
  return text.finish_reason === "stop" ? "ended by itself" : text.finish_reason ? show(text.finish_reason) : null;
}

function textCard(text, title, source) {
  const copied = text.copies.length
    ? badge("copy", `copies ${source} ${text.copies.map((place) => place + 1).join(", ")}`)
    : null;
  const judged = text.right === null ? null : text.right ? badge("right", "\u2713 right") : badge("wrong", "\u2717 wrong");
  const facts = [
    text.generated_tokens === null ? null : plural(text.generated_tokens, "token"),
    finish(text),
    text.seed ? h("span", { class: "seed" }, "seed ", show(text.seed)) : null,
  ].filter(Boolean);
  return h(
    "article",
    { class: "card" },
    h("header", {}, h("h5", {}, title), judged, copied, text.answer === null ? null : h("span", { class: "found", title: "the answer found in this text" }, "= ", show(clip(text.answer, 100)))),
    textBox(text.text, title),
    facts.length ? h("footer", {}, facts.flatMap((each, i) => (i ? [" \u00b7 ", each] : [each]))) : null,
  );
}

function layers(sample) {
  const last = Math.max(...sample.texts.map((text) => text.layer));
  const sections = [];
  for (let layer = 0; layer <= last; layer++) {
    const texts = sample.texts.filter((text) => text.layer === layer);
    // A last layer of several texts is no answer: the choices were scored after it.
    const answer = layer === last && texts.length === 1;
    const heading = answer ? "Answer" : layer === 0 ? `Drafts (${texts.length})` : `Layer ${layer} (${texts.length})`;
    const kind = answer ? "Answer" : layer === 0 ? "Draft" : `Layer ${layer}, text`;
    const source = layer === 1 ? "draft" : "text";
    const cards = texts.map((text) => textCard(text, answer ? kind : `${kind} ${text.index + 1}`, source));
    sections.push(h("section", { class: "layer" + (answer ? " answer" : "") }, h("h4", {}, heading), h("div", { class: "cards" }, cards)));
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
    earlier.length ? h("details", {}, h("summary", {}, `${plural(earlier.length, "earlier message")} (examples, system)`), earlier.map(turn)) : null,
    h("div", { class: "card" }, textBox(last ? last.text : sample.question, "question")),
  );
}

function renderSample(sample, others, open) {
  const written = sample.texts.length ? sample.texts.at(-1).text : "";
  const twins = others.map((other) =>
    h("button", { type: "button", class: "link", onclick: () => open(other.place) }, show(other.run), " ", verdicts(other.right, false, false)),
  );
  const extra = (sample.repeat ? `, repeat ${sample.repeat + 1}` : "") + (sample.turn ? `, turn ${sample.turn + 1}` : "");
  return [
    h("header", { class: "sample" }, h("h3", { tabindex: "-1" }, show(`${sample.task} #${sample.doc_id}${extra}`)), verdicts(sample.right, sample.fixed, sample.broken)),
    h("dl", { class: "facts" }, fact("run", sample.run), fact("gold answer", sample.gold), fact("score", sample.score)),
    twins.length ? h("p", { class: "twins" }, h("span", { class: "quiet" }, "The same question in "), twins) : null,
    messages(sample),
    sample.texts.length ? layers(sample) : null,
    sample.answer === written ? null : h("section", { class: "layer" }, h("h4", {}, "What was scored"), h("div", { class: "card" }, textBox(sample.answer, "what was scored"))),
  ].filter(Boolean);
}
