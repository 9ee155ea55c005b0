// The scores: draws the tables of the page as charts. A click or Enter goes to the pictures of a value.
import { $, $$ } from "./page.js";
import { go } from "./trail.js";

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const charts = [];
const probe = document.createElement("span");
probe.hidden = true;
document.body.append(probe);

/** Return a colour of the page as [red, green, blue]. */
function tone(name) {
  probe.style.color = `var(${name})`;
  return getComputedStyle(probe).color.match(/[\d.]+/g).slice(0, 3).map(Number);
}

const rgb = (parts) => `rgb(${parts.map(Math.round).join(" ")})`;
const mix = (a, b, t) => a.map((each, i) => each + (b[i] - each) * t);
const short = (text, most = 20) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);
const spoken = (item) => `${item.name}: ${item.text}, ${item.dreams} ${item.dreams === "1" ? "dream" : "dreams"}`;

/** Return what all charts share. */
function options(items, titles) {
  const [ink, dim, line] = ["--ink", "--dim", "--line"].map((name) => rgb(tone(name)));
  const axis = (text) => ({ grid: { color: line }, border: { color: line }, ticks: { color: dim, maxRotation: 40 }, title: { display: Boolean(text), text, color: dim } });
  const panel = rgb(tone("--panel"));
  return {
    animation: false,
    maintainAspectRatio: false,
    layout: { padding: 4 },
    scales: { x: axis(titles[0]), y: axis(titles[1]) },
    onClick: (_, [hit]) => hit && open(items[hit.index]),
    plugins: {
      legend: { display: false },
      tooltip: {
        displayColors: false, backgroundColor: panel, titleColor: ink, bodyColor: ink, borderColor: rgb(tone("--edge")), borderWidth: 1, cornerRadius: 3,
        filter: ({ datasetIndex }) => datasetIndex === 0,
        callbacks: { title: ([hit]) => hit && items[hit.dataIndex].name, label: (hit) => `${items[hit.dataIndex].text}, ${items[hit.dataIndex].dreams} dreams` },
      },
    },
  };
}

function open(item) {
  if (item?.href) go(item.href);
}

/** Return the cells of the map; those without a dream are left out. */
function mapItems(table, { across, down }) {
  const columns = $$("thead th", table).map((each) => each.textContent);
  const rows = $$("tbody tr", table).map((each) => $("th", each).textContent);
  const items = $$("tbody tr", table).flatMap((row, y) => $$("td", row).map((cell, x) => ({
    x, y, name: `${across} ${columns[x]}, ${down} ${rows[y]}`, v: Number(cell.dataset.value), text: cell.textContent, dreams: cell.dataset.dreams, href: $("a", cell)?.href,
  }))).filter((item) => item.href);
  return { columns, rows, items };
}

function drawMap(place) {
  const { columns, rows, items } = mapItems($("table", place), place.dataset);
  $(".canvas", place).style.height = `${Math.min(900, 70 + 44 * rows.length)}px`;
  const values = items.map((item) => item.v);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const [well, ink, light] = ["--well", "--ink", "--bg"].map(tone);
  const share = (v) => (high > low ? (v - low) / (high - low) : 0.5);
  const settings = options(items, ["", ""]);
  for (const [name, labels] of [["x", columns], ["y", rows]]) {
    Object.assign(settings.scales[name], { type: "category", labels, offset: true, grid: { display: false } });
    settings.scales[name].ticks.callback = (_, i) => short(labels[i]);
  }
  settings.scales.x.position = "top";
  settings.scales.y.reverse = false; // the first row is at the top, as in the table
  const numbers = {
    id: "numbers",
    afterDatasetsDraw(chart) {
      const { ctx } = chart;
      ctx.save();
      Object.assign(ctx, { font: "12px sans-serif", textAlign: "center", textBaseline: "middle" });
      chart.getDatasetMeta(0).data.forEach((cell, i) => {
        const { x, y, width, height } = cell.getProps(["x", "y", "width", "height"], true);
        if (width < ctx.measureText(items[i].text).width + 4) return;
        ctx.fillStyle = rgb(share(items[i].v) > 0.5 ? light : ink);
        ctx.fillText(items[i].text, x + width / 2, y + height / 2);
      });
      ctx.restore();
    },
  };
  const edge = rgb(tone("--edge"));
  return {
    items,
    chart: {
      type: "matrix", options: settings, plugins: [numbers],
      data: { datasets: [{
        data: items.map(({ x, y, v }) => ({ x: columns[x], y: rows[y], v })),
        backgroundColor: items.map((item) => rgb(mix(well, ink, share(item.v)))), borderWidth: 0, hoverBorderWidth: 3, hoverBorderColor: edge,
        width: ({ chart }) => Math.max(2, (chart.chartArea?.width ?? 0) / columns.length - 3), height: ({ chart }) => Math.max(2, (chart.chartArea?.height ?? 0) / rows.length - 3),
      }] },
    },
  };
}

/** Return the rows of a table with two figures. */
const listItems = (table) => $$("tbody tr", table).map((row) => ({
  x: Number(row.dataset.x), v: Number(row.dataset.value), name: $("th", row).textContent, dreams: row.dataset.dreams, href: $("a", row)?.href,
}));

function drawCost(place) {
  const items = listItems($("table", place)).map((item) => ({ ...item, text: `${item.v.toFixed(2)} in ${item.x.toFixed(2)} s` }));
  const settings = options(items, ["seconds", place.dataset.what]);
  settings.scales.x.type = "linear";
  const front = [];
  for (const item of [...items].sort((a, b) => a.x - b.x || b.v - a.v)) if (!front.length || item.v > front.at(-1).y) front.push({ x: item.x, y: item.v });
  const ink = rgb(tone("--ink"));
  return {
    items,
    chart: { type: "scatter", options: settings, data: { datasets: [
      { data: items.map(({ x, v }) => ({ x, y: v })), borderColor: ink, backgroundColor: rgb(tone("--bg")), hoverBackgroundColor: ink, radius: 4, hoverRadius: 6, borderWidth: 1 },
      { type: "line", data: front, borderColor: rgb(tone("--edge")), borderWidth: 1, pointRadius: 0, pointHitRadius: 0, stepped: "before" },
    ] } },
  };
}

function drawDistribution(place) {
  const items = listItems($("table", place)).map((item) => ({ ...item, text: "gain" }));
  const settings = options(items, ["", ""]);
  settings.scales.x.ticks.maxTicksLimit = 6;
  settings.scales.x.grid.display = false;
  settings.scales.y.ticks.precision = 0;
  const data = { labels: items.map(({ x }) => x.toFixed(2)), datasets: [{ data: items.map(({ v }) => v), backgroundColor: rgb(tone("--dim")), hoverBackgroundColor: rgb(tone("--ink")), categoryPercentage: 1, barPercentage: 0.92, minBarLength: 0 }] };
  return { items, chart: { type: "bar", options: settings, data } };
}

/** Let arrows move over the values of a chart, and Enter open one. */
function listen(canvas, chart, items) {
  let now = -1;
  const middle = (i) => {
    const { x, y, width = 0, height = 0 } = chart.getDatasetMeta(0).data[i].getProps(["x", "y", "width", "height"], true);
    return chart.config.type === "matrix" ? [x + width / 2, y + height / 2] : [x, y];
  };
  canvas.onkeydown = (event) => {
    const way = ARROWS[event.key];
    if (event.key === "Enter" && now >= 0) open(items[now]);
    if (!way || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    let best = now < 0 ? 0 : now;
    if (now >= 0) {
      const [x, y] = middle(now);
      let least = Infinity;
      items.forEach((_, i) => {
        const [a, b] = middle(i);
        const along = (a - x) * way[0] + (b - y) * way[1];
        const aside = Math.abs((a - x) * way[1]) + Math.abs((b - y) * way[0]);
        if (along > 0.5 && along + 2 * aside < least) [least, best] = [along + 2 * aside, i];
      });
    }
    now = best;
    const active = [{ datasetIndex: 0, index: now }];
    const [x, y] = middle(now);
    chart.setActiveElements(active);
    chart.tooltip.setActiveElements(active, { x, y });
    chart.update("none");
    $("#spoken").textContent = spoken(items[now]);
  };
}

function draw() {
  for (const chart of charts.splice(0)) chart.destroy();
  for (const place of $$("[data-chart]")) {
    const canvas = $("canvas", place);
    const { items, chart } = { map: drawMap, cost: drawCost, distribution: drawDistribution }[place.dataset.chart](place);
    const drawn = new window.Chart(canvas, chart);
    charts.push(drawn);
    listen(canvas, drawn, items);
  }
}

document.addEventListener("change", (event) => {
  const form = event.target.closest?.("[data-scores]");
  if (!form) return;
  const { x, y } = form.elements;
  if (x && x.value === y.value) {
    const other = event.target === x ? y : x;
    other.value = [...event.target.options].find((option) => option.defaultSelected).value;
  }
  form.requestSubmit();
});
new MutationObserver(draw).observe(document.documentElement, { attributeFilter: ["data-theme"] });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
if ($("[data-chart]")) draw();
document.body.dataset.drawn = "";
