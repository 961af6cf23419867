// Charts as SVG, as wide as the page allows. A table below each chart has the same numbers.

const SHAPES = [
  (x, y) => svg("circle", { cx: x, cy: y, r: 4 }),
  (x, y) => svg("rect", { x: x - 3.6, y: y - 3.6, width: 7.2, height: 7.2 }),
  (x, y) => svg("path", { d: `M${x} ${y - 4.8}l4.6 8h-9.2z` }),
  (x, y) => svg("path", { d: `M${x} ${y - 5.2}l5.2 5.2l-5.2 5.2l-5.2 -5.2z` }),
];
const COLOURS = 8;
const DIRECT = 6;
// Pixels between two names, one below the other.
const LINE = 14;

function niceTicks(low, high, wanted) {
  const rough = (high - low) / Math.max(1, wanted);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough * 0.999) * power;
  const ticks = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high + step * 1e-6; tick += step) ticks.push(+tick.toPrecision(12));
  return ticks;
}

function logTicks(low, high) {
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
    for (const factor of [1, 2, 5]) ticks.push(factor * 10 ** power);
  }
  const inside = ticks.filter((tick) => tick >= low && tick <= high);
  return inside.length > 7 ? inside.filter((tick) => Math.log10(tick) % 1 === 0) : inside;
}

function range(values, padding) {
  const low = Math.min(...values);
  const high = Math.max(...values);
  const room = (high - low || Math.abs(high) || 1) * padding;
  return [low - room, high + room];
}

// The function from values to pixels of one axis, and its ticks.
function axis(values, log, from, to, wanted) {
  const [low, high] = log ? range(values.map(Math.log10), 0.06) : range(values, 0.06);
  const place = (value) => from + ((log ? Math.log10(value) : value) - low) / (high - low) * (to - from);
  const distinct = [...new Set(values)];
  // k and layers are whole numbers: their ticks are the values.
  if (!log && distinct.every(Number.isInteger) && distinct.length <= wanted) return { place, ticks: distinct, whole: true };
  const ticks = log ? logTicks(10 ** low, 10 ** high) : niceTicks(low, high, wanted);
  return { place, ticks: ticks.length > 1 ? ticks : distinct.slice(0, wanted) };
}

function drawChart(chart, width) {
  const height = Math.round(Math.min(340, Math.max(230, width * 0.56)));
  // Few curves have their names beside their last points, and a key names more of them.
  const named = chart.curves.length > 1 && chart.curves.length <= DIRECT && width >= 360;
  const longest = Math.max(...chart.curves.map((curve) => curve.name.length));
  const [left, right, top, bottom] = [46, named ? Math.min(120, 16 + 7 * longest) : 14, 22, 42];
  const points = chart.curves.flatMap((curve) => curve.points);
  const x = axis(points.map((p) => p.x), chart.log_x, left, width - right, Math.min(6, width / 80));
  const ys = points.flatMap((p) => [p.y, p.low ?? p.y, p.high ?? p.y]);
  const y = axis(ys, false, height - bottom, top, 5);
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "group", "aria-label": chart.title });
  for (const tick of y.ticks) {
    picture.append(
      svg("line", { class: "grid", x1: left, x2: width - right, y1: y.place(tick), y2: y.place(tick) }),
      svg("text", { x: left - 7, y: y.place(tick) + 4, "text-anchor": "end" }, short(tick)),
    );
  }
  for (const tick of x.ticks) {
    picture.append(svg("text", { x: x.place(tick), y: height - bottom + 18, "text-anchor": "middle" }, short(tick)));
  }
  picture.append(
    svg("line", { class: "axis", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }),
    svg("text", { class: "label", x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" }, chart.x_label + (chart.log_x ? " (log scale)" : "")),
    svg("text", { class: "label", x: 4, y: 12 }, chart.y_label + (y.place(0) > height - bottom + 1 ? " (axis cut below)" : "")),
  );
  // Pixels between curves whose points have the same x.
  const apart = x.whole ? 5 : 0;
  chart.curves.forEach((curve, number) => {
    const shift = apart * (number - (chart.curves.length - 1) / 2);
    picture.append(drawCurve(curve, number, { ...x, place: (value) => x.place(value) + shift }, y));
  });
  if (named) picture.append(...curveNames(chart, x, y, apart));
  return picture;
}

// The name of each curve beside its last point, moved down where two would touch.
function curveNames(chart, x, y, apart) {
  const ends = chart.curves.map((curve, number) => ({ curve, number, x: x.place(curve.points.at(-1).x) + apart * chart.curves.length / 2 + 9, y: y.place(curve.points.at(-1).y) + 4 }));
  ends.sort((a, b) => a.y - b.y);
  ends.forEach((end, place) => {
    const above = ends.slice(0, place).filter((other) => Math.abs(other.x - end.x) < 110).map((other) => other.y + LINE);
    end.y = Math.max(end.y, ...above);
  });
  return ends.map((end) => svg("text", { class: `name s${end.number % COLOURS}`, x: end.x, y: end.y }, show(end.curve.name)));
}

function drawCurve(curve, number, x, y) {
  const group = svg("g", { class: `series s${number % COLOURS}` });
  if (curve.points.length > 1) {
    const path = curve.points.map((p, i) => `${i ? "L" : "M"}${x.place(p.x)} ${y.place(p.y)}`).join("");
    group.append(svg("path", { class: "line", d: path, "stroke-dasharray": curve.dashed ? "5 4" : null }));
  }
  for (const p of curve.points) {
    const description = `${curve.name}${p.label ? ", " + p.label : ""}: ${p.x_text}, ${p.y_text}`;
    const mark = svg("g", { class: "mark", tabindex: "0", role: "img", "aria-label": description }, svg("title", {}, description));
    if (p.low !== null && p.high !== null) {
      mark.append(svg("line", { class: "interval", x1: x.place(p.x), x2: x.place(p.x), y1: y.place(p.low), y2: y.place(p.high) }));
    }
    mark.append(SHAPES[number % SHAPES.length](x.place(p.x), y.place(p.y)));
    group.append(mark);
  }
  return group;
}

function legend(chart) {
  const swatch = (curve, number) =>
    svg(
      "svg",
      { viewBox: "0 0 28 12", width: 28, height: 12, class: `series s${number % COLOURS}`, "aria-hidden": "true" },
      svg("path", { class: "line", d: "M1 6H27", "stroke-dasharray": curve.dashed ? "5 4" : null }),
      SHAPES[number % SHAPES.length](14, 6),
    );
  return h("ul", { class: "legend" }, chart.curves.map((curve, number) => h("li", {}, swatch(curve, number), h("span", {}, show(curve.name)))));
}

function numbers(chart) {
  const columns = ["curve", "point", chart.x_label, chart.y_label].map((label, i) => ({ label, numeric: i > 1, title: "" }));
  const cell = (text, value = null) => ({ text, value, note: "" });
  const row = (curve, p) => ({ notes: [], cells: [cell(curve.name), cell(p.label), cell(p.x_text, p.x), cell(p.y_text, p.y)] });
  const rows = chart.curves.flatMap((curve) => curve.points.map((p) => row(curve, p)));
  return h("details", { class: "data" }, h("summary", {}, "Numbers"), renderTable({ title: chart.title, columns, rows, notes: [] }, false));
}

function renderChart(chart) {
  const canvas = h("div", { class: "canvas" });
  let drawn = 0;
  new ResizeObserver(() => {
    const width = Math.floor(canvas.clientWidth);
    if (width < 40 || width === drawn) return;
    drawn = width;
    canvas.replaceChildren(drawChart(chart, width));
  }).observe(canvas);
  return h("figure", {}, h("figcaption", {}, show(chart.title)), legend(chart), canvas, numbers(chart));
}

const renderCharts = (charts) => section("curves", "Curves", h("div", { class: "charts" }, charts.map(renderChart)));
