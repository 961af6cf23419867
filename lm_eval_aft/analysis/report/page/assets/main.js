// Builds the page from the data that is embedded in it. A part without data is left out.

function main() {
  const data = JSON.parse(document.getElementById("data").textContent);
  const parts = [
    data.leaderboard && section("leaderboard", data.leaderboard.title || "Leaderboard", renderTable(data.leaderboard, false)),
    data.charts.length && renderCharts(data.charts),
    data.effects.length && renderEffects(data.effects),
    data.diagnostics.length && renderDiagnostics(data.diagnostics),
    data.index.entries.length && renderSamples(data.index),
  ].filter(Boolean);
  const links = parts.map((part) => h("li", {}, h("a", { href: "#" + part.id }, part.querySelector("h2").textContent)));
  document.querySelector("header.page").append(
    h("h1", {}, show(data.title)),
    data.made ? h("p", { class: "quiet" }, show(data.made)) : "",
    ...data.notes.map((note) => h("p", {}, show(note))),
  );
  if (links.length > 1) document.querySelector("main").before(h("nav", { class: "parts", "aria-label": "Parts of the page" }, h("ul", {}, links)));
  document.querySelector("main").append(...parts);
  const target = /^#[a-z]+$/.test(location.hash) && document.getElementById(location.hash.slice(1));
  if (target) target.scrollIntoView();
  // Milliseconds since the browser began to open the page.
  document.documentElement.dataset.ready = Math.round(performance.now());
}

main();
