// Builds the page from the data that is embedded in it. A part without data is left out.

function main() {
  const data = JSON.parse(document.getElementById("data").textContent);
  const parts = [
    (data.headlines.length || data.strips.length) && renderOverview(data),
    data.leaderboard && section("leaderboard", data.leaderboard.title || "Leaderboard", renderTable(data.leaderboard, false)),
    data.models && section("models", data.models.title, renderTable(data.models, false)),
    data.drafts && section("drafts", data.drafts.title, renderTable(data.drafts, false)),
    data.effects && renderEffects(data.effects),
    data.diagnostics.length && renderDiagnostics(data.diagnostics, data.headlines[0]?.run),
    data.index.entries.length && renderSamples(data.index, data.featured),
    data.charts.length && renderCharts(data.charts),
    data.runs.length && renderRuns(data),
  ].filter(Boolean);
  const links = parts.map((part) => h("li", {}, h("a", { href: "#" + part.id }, part.querySelector("h2").textContent)));
  document.querySelector("header.page").append(h("h1", {}, show(data.title)), data.made ? h("p", { class: "quiet" }, show(data.made)) : "");
  if (links.length > 1) document.querySelector("main").before(h("nav", { class: "parts", "aria-label": "Parts of the page" }, h("ul", {}, links)));
  document.querySelector("main").append(...parts);
  const target = /^#[a-z]+$/.test(location.hash) && document.getElementById(location.hash.slice(1));
  if (target) target.scrollIntoView();
  // Milliseconds since the browser began to open the page.
  document.documentElement.dataset.ready = Math.round(performance.now());
}

main();
