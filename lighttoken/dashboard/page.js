"use strict";
// Everything from a record reaches the page through textContent or, in charts, with its markup escaped.

const $ = (selector, at = document) => at.querySelector(selector);
const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};
const escaped = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const fixed = (digits) => (value) => (value == null ? "" : value.toFixed(digits));
const whole = (value) => (value == null ? "" : Math.round(value).toLocaleString("en-US"));
const bytes = (value) =>
  value == null ? "" : value >= 1e5 ? `${(value / 1e6).toFixed(2)} MB` : `${(value / 1e3).toFixed(1)} kB`;
const change = (before, after) => (before && after ? `${bytes(before)} → ${bytes(after)}` : bytes(before || null));
const collator = new Intl.Collator("en", { numeric: true });
const ratioText = (value) => (value == null ? "" : String(+value.toFixed(2)));

// What survives a reload; a browser may forbid it on pages from disk.
const memory = {
  get: (name, store = sessionStorage) => { try { return JSON.parse(store.getItem(`lighttoken.${name}`)); } catch { return null; } },
  set: (name, value, store = sessionStorage) => { try { store.setItem(`lighttoken.${name}`, JSON.stringify(value)); } catch { /* forgotten */ } },
};

// ---- theme
const root = document.documentElement;
const systemDark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : systemDark.matches);
const chosen = (() => { try { return memory.get("theme", localStorage); } catch { return null; } })();
if (chosen) root.dataset.theme = chosen;
function showTheme() {
  $("#theme").textContent = isDark() ? "Light theme" : "Dark theme";
  for (const each of drawn.values()) each();
}
$("#theme").onclick = () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  try { memory.set("theme", root.dataset.theme, localStorage); } catch { /* forgotten */ }
  showTheme();
};
systemDark.addEventListener("change", showTheme);

// ---- charts
const drawn = new Map(); // element -> draw again
const hidden = new Set(memory.get("hidden") || []); // labels switched off in the legends
const colourOf = (colour) => (colour === "ink" ? (isDark() ? "#e6e9ee" : "#1b1f24") : colour);

function trace(series) {
  const colour = colourOf(series.colour);
  return {
    type: "scatter",
    name: escaped(series.label),
    x: series.x,
    y: series.y,
    visible: !hidden.has(series.label),
    mode: [series.width && "lines", series.marker && "markers"].filter(Boolean).join("+"),
    line: { color: colour, width: series.width, dash: series.dash },
    marker: { color: colour, symbol: series.marker || "circle", size: series.marker === "star-open" ? 13 : 8 },
    error_y: series.error ? { type: "data", array: series.error.map((each) => each || 0), thickness: 1.2, width: 3 } : undefined,
    text: series.x.map((_, i) => escaped((series.notes || [])[i] || "")),
    hovertemplate: `<b>${escaped(series.label)}</b><br>%{x:.4~g}: %{y:.4~g}<br>%{text}<extra></extra>`,
  };
}

function axis(label, logarithmic, ticks) {
  const line = isDark() ? "#333a44" : "#d8dee4";
  const told = { title: { text: escaped(label), standoff: 8 }, type: logarithmic ? "log" : "linear", gridcolor: line,
    linecolor: line, zeroline: false, automargin: true };
  if (ticks) Object.assign(told, { tickvals: ticks, ticktext: ticks.map((each) => String(+each.toFixed(1))) });
  else if (logarithmic) Object.assign(told, { nticks: 6, tickformat: "~g" });
  return told;
}

function plot(element, panel) {
  const ink = colourOf("ink");
  const layout = {
    title: { text: escaped(panel.title), font: { size: 13 }, x: 0.5, y: 0.97, yanchor: "top" },
    font: { family: "system-ui, sans-serif", size: 12, color: ink },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    margin: { l: 55, r: 15, t: panel.title ? 36 : 14, b: 45 },
    showlegend: false,
    hovermode: "closest",
    hoverlabel: { bgcolor: isDark() ? "#1d2229" : "#ffffff", font: { color: ink } },
    xaxis: axis(panel.x_label, panel.log_x, panel.x_ticks),
    yaxis: axis(panel.y_label, panel.log_y),
    dragmode: false, // a finger scrolls the page
  };
  const draw = () => Plotly.react(element, panel.series.map(trace), layout, { displayModeBar: false, responsive: true });
  return draw();
}

const onSight = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    onSight.unobserve(target);
    drawn.set(target, () => plot(target, target.panel));
    drawn.get(target)();
  }
}, { rootMargin: "200px" });

function addPanel(parent, panel) {
  const names = panel.series.map((each) => each.label).join(", ");
  const element = make("div", { className: "panel", panel });
  element.setAttribute("role", "img");
  element.setAttribute("aria-label", `${panel.title}: ${panel.y_label} against ${panel.x_label}; ${names}`);
  parent.append(element);
  onSight.observe(element);
}

const SHAPES = { circle: "M13 2.5a3.5 3.5 0 1 0 .01 0z", square: "M9.5 2.5h7v7h-7z", "triangle-up": "M13 1.5l4.5 8h-9z",
  diamond: "M13 1l4.5 5l-4.5 5l-4.5-5z", "star-open": "M13 0l1.6 4.1 4.4.3-3.4 2.8 1.1 4.3L13 9.1 9.3 11.5l1.1-4.3L7 4.4l4.4-.3z" };
function swatch(series) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const add = (name, attributes) => {
    const part = document.createElementNS(svg.namespaceURI, name);
    for (const [key, value] of Object.entries(attributes)) part.setAttribute(key, value);
    svg.append(part);
  };
  svg.setAttribute("viewBox", "0 0 26 12");
  svg.setAttribute("aria-hidden", "true");
  const colour = series.colour === "ink" ? "currentColor" : series.colour;
  const dashes = { dash: "6 3", dot: "2 2" }[series.dash];
  if (series.width) add("path", { d: "M0 6h26", stroke: colour, "stroke-width": series.width, ...(dashes && { "stroke-dasharray": dashes }) });
  if (series.marker) add("path", { d: SHAPES[series.marker], fill: series.marker === "star-open" ? "none" : colour, stroke: colour });
  return svg;
}

function addLegend(parent, panels) {
  const seen = new Map();
  for (const series of panels.flatMap((panel) => panel.series)) if (!seen.has(series.label)) seen.set(series.label, series);
  for (const [label, series] of seen) {
    const button = make("button", { type: "button", title: "Show or hide in all charts" }, swatch(series), label);
    button.dataset.label = label;
    button.setAttribute("aria-pressed", !hidden.has(label));
    button.onclick = () => {
      if (!hidden.delete(label)) hidden.add(label);
      memory.set("hidden", [...hidden]);
      for (const other of document.querySelectorAll(".legend button"))
        if (other.dataset.label === label) other.setAttribute("aria-pressed", !hidden.has(label));
      for (const [element, draw] of drawn) if (element.panel.series.some((each) => each.label === label)) draw();
    };
    parent.append(button);
  }
}

function addChart(chart) {
  const section = document.getElementById(chart.name);
  if (!chart.panels.length) return;
  addLegend($(".legend", section), chart.panels);
  for (const panel of chart.panels) addPanel($(".panels", section), panel);
}

// ---- tables: columns are { name, value, text, minor, cell }; numbers sort as numbers, what is missing comes last
function sortable(table, columns, rows, { key, start, row: makeRow, keep = () => true }) {
  let order = memory.get(key) || start;
  const head = make("tr");
  for (const column of columns) {
    const button = make("button", { type: "button", textContent: column.name });
    button.onclick = () => {
      const falling = order.name === column.name ? !order.falling : Boolean(column.falling);
      order = { name: column.name, falling };
      memory.set(key, order);
      show();
    };
    const cell = make("th", { scope: "col", className: `${column.number ? "number " : ""}${column.minor ? "minor" : ""}` }, button);
    head.append(cell);
    column.head = cell;
  }
  const body = make("tbody");
  table.replaceChildren(make("thead", {}, head), body);
  const elements = new Map();
  function show() {
    const by = columns.find((column) => column.name === order.name) || columns[0];
    for (const column of columns)
      column.head.setAttribute("aria-sort", column !== by ? "none" : order.falling ? "descending" : "ascending");
    const sorted = rows.filter(keep).map((row) => [by.value(row), row]);
    sorted.sort(([a], [b]) => {
      if (a == null || b == null) return (a == null) - (b == null);
      const least = typeof a === "number" && typeof b === "number" ? a - b : collator.compare(a, b);
      return order.falling ? -least : least;
    });
    for (const [, row] of sorted) if (!elements.has(row)) elements.set(row, makeTableRow(row));
    body.replaceChildren(...sorted.map(([, row]) => elements.get(row)));
    return sorted.length;
  }
  function makeTableRow(row) {
    const element = make("tr");
    for (const column of columns) {
      const cell = make("td", { className: `${column.number ? "number " : ""}${column.minor ? "minor" : ""}` });
      cell.append(column.cell ? column.cell(row) : (column.text || ((value) => value ?? ""))(column.value(row)));
      element.append(cell);
    }
    if (makeRow) makeRow(element, row);
    return element;
  }
  return show;
}

const withDot = (row, label) => make("span", {}, Object.assign(make("span", { className: "dot" }),
  { style: `background:${row.colour === "ink" ? "var(--ink)" : row.colour}` }), label);

function addPoints(points) {
  const columns = [
    { name: "task", value: (row) => row.task },
    { name: "model", value: (row) => row.model, minor: true },
    { name: "codec", value: (row) => row.label, cell: (row) => withDot(row, row.label) },
    { name: "ratio", value: (row) => row.ratio, text: fixed(1), number: true },
    { name: "score", number: true, falling: true, value: (row) => row.score,
      cell: (row) => fixed(4)(row.score) + (row.std == null ? "" : ` ± ${fixed(4)(row.std)}`) },
    { name: "retention", number: true, falling: true, value: (row) => row.retention, cell: (row) => row.retention_text },
    { name: "n", value: (row) => row.n, number: true },
  ];
  sortable($("#points"), columns, points, { key: "points", start: { name: "task", falling: false } })();
}

// ---- the table of runs
const runUrl = (run) => `#run=${encodeURIComponent(run.id)}`;

function addRuns(runs) {
  const status = (run) => {
    const cell = make("span", { className: run.status }, run.status);
    return run.error ? make("span", {}, cell, make("div", { className: "reason", title: run.error, textContent: run.error })) : cell;
  };
  const columns = [
    { name: "run", value: (run) => `${run.task} ${run.label} ${run.ratio_asked ?? 0}`,
      cell: (run) => make("a", { href: runUrl(run) }, withDot(run, `${run.task}, ${run.label}`)) },
    { name: "asked", value: (run) => run.ratio_asked, text: ratioText, number: true },
    { name: "score", value: (run) => run.score, text: fixed(4), number: true, falling: true },
    { name: "retention", value: (run) => run.retention, text: fixed(3), number: true, falling: true },
    { name: "seed", value: (run) => run.seed, number: true },
    { name: "status", value: (run) => run.status, cell: status },
    { name: "ratio", value: (run) => run.ratio, text: ratioText, number: true, minor: true },
    { name: "nmse", value: (run) => run.nmse, text: fixed(3), number: true, minor: true },
    { name: "bytes", value: (run) => run.ratio && run.artifact_bytes, text: bytes, number: true, minor: true },
    { name: "seconds", value: (run) => run.total_seconds, text: whole, number: true, minor: true },
    { name: "model", value: (run) => run.model, minor: true },
    { name: "started", value: (run) => run.started, cell: (run) => String(run.started).slice(0, 16).replace("T", " "), minor: true },
    { name: "folder", value: (run) => run.id, minor: true,
      cell: (run) => run.link ? make("a", { href: run.link, title: run.folder }, "open") : make("span", { title: run.folder }, "–") },
  ];
  const text = new Map(runs.map((run) =>
    [run, [run.task, run.label, run.codec, run.model, run.status, run.id, run.error, `seed${run.seed}`, `${run.ratio_asked}x`].join(" ").toLowerCase()]));
  const filters = { status: $("#filter-status"), task: $("#filter-task"), codec: $("#filter-codec") };
  const kept = memory.get("filters") || {};
  for (const [name, select] of Object.entries(filters)) {
    const values = [...new Set(runs.map((run) => String(run[name])))].sort();
    select.append(make("option", { value: "", textContent: "all" }), ...values.map((value) => make("option", { value, textContent: value })));
    select.value = values.includes(kept[name]) ? kept[name] : "";
  }
  $("#filter").value = kept.words || "";
  const keep = (run) => $("#filter").value.toLowerCase().split(/\s+/).every((word) => text.get(run).includes(word))
    && Object.entries(filters).every(([name, select]) => !select.value || String(run[name]) === select.value);
  const row = (element, run) => {
    element.onclick = (event) => { if (!event.target.closest("a") && !String(getSelection())) location.hash = runUrl(run); };
  };
  const show = sortable($("#table"), columns, runs, { key: "runs", start: { name: "started", falling: true }, keep, row });
  const refresh = () => {
    memory.set("filters", { words: $("#filter").value, ...Object.fromEntries(Object.entries(filters).map(([name, select]) => [name, select.value])) });
    $("#count").textContent = `${show()} of ${runs.length} runs`;
  };
  $("#filter").oninput = refresh;
  for (const select of Object.values(filters)) select.onchange = refresh;
  refresh();
}

// ---- one run
function pairs(entries) {
  const rows = entries.filter(([, value]) => value != null && value !== "").map(([name, value]) =>
    make("tr", {}, make("td", { textContent: name }), make("td", {}, value instanceof Node ? value : String(value))));
  return make("table", {}, make("tbody", {}, ...rows));
}
const titled = (title, content) => make("div", {}, make("h3", { textContent: title }), content);
const objectPairs = (object, text = (value) => value) => pairs(Object.entries(object || {}).map(([name, value]) => [name, text(value)]));
const shortNumber = (value) => (typeof value === "number" ? +value.toPrecision(5) : value);

function curvePanels(curves) {
  const palette = ["#2e86c8", "#d55e00", "#009e73", "#cc6699", "#8c7ae6", "#999933", "#e69f00", "#7f8c99"];
  const groups = new Map();
  for (const [name, curve] of Object.entries(curves)) {
    const stage = name.match(/^stage(\d+)\/(.*)$/);
    const group = stage ? `stages: ${stage[2].replaceAll("_", " ")}` : name.endsWith("/loss") ? "loss"
      : name.startsWith("lr-") ? "learning rate" : `scores: ${name.split("/").pop().replaceAll("_", " ")}`;
    if (!groups.has(group)) groups.set(group, []);
    groups.get(group).push([stage ? `stage ${stage[1]}` : name, curve]);
  }
  return [...groups].map(([title, members]) => ({
    title, x_label: "step", y_label: title.replace(/^\w+: /, ""), log_x: false, log_y: false,
    series: members.map(([label, curve], i) => ({
      label, x: curve.map(([step]) => step), y: curve.map(([, value]) => value), colour: palette[i % palette.length],
      marker: curve.length < 12 ? "circle" : null, dash: "solid", width: 2,
    })),
  }));
}

function showRun(run) {
  const dialog = $("#run");
  const close = make("button", { type: "button", textContent: "Close", onclick: () => dialog.close() });
  const title = make("h2", { id: "run-title", textContent: `${run.task}, ${run.label}${run.ratio_asked ? ` at ${ratioText(run.ratio_asked)}x` : ""}, seed ${run.seed}` });
  const body = make("div", { className: "body" });
  const where = run.link ? make("a", { href: run.link, textContent: run.folder }) : run.folder;
  const add = (heading, content) => body.append(titled(heading, content));
  if (run.error) add("Error", make("div", { className: "error", textContent: run.error }));
  const facts = titled("Run", pairs([
    ["status", make("span", { className: run.status }, run.status)], ["model", run.model], ["score", shortNumber(run.score)],
    ["retention", shortNumber(run.retention)], ["ratio", ratioText(run.ratio)],
    ["table", change(run.table_bytes, run.ratio && run.artifact_bytes)], ["whole model", change(run.model_bytes, run.stored_bytes)],
    ["started", run.started], ["commit", run.git_commit], ["folder", where],
    ["artifact", run.artifact && `${run.artifact}${run.artifact_reused ? " (reused)" : ""}`],
  ]));
  const right = make("div", {}, titled("Metrics", objectPairs(run.metrics, shortNumber)),
    titled("Seconds", objectPairs({ ...run.seconds, total: run.total_seconds }, (value) => +value.toFixed(1))));
  body.append(make("div", { className: "pair" }, facts, right));
  const parts = Object.entries(run.bytes_by_part).filter(([, size]) => size > 0).sort((a, b) => b[1] - a[1]);
  if (parts.length) {
    const total = parts.reduce((sum, [, size]) => sum + size, 0);
    add("Bytes by part of the artifact", make("table", {}, make("tbody", {}, ...parts.map(([name, size]) =>
      make("tr", {}, make("td", { textContent: name }), make("td", { className: "number", textContent: whole(size) }),
        make("td", { className: "number", textContent: `${(100 * size / total).toFixed(1)} %` }),
        make("td", {}, Object.assign(make("div", { className: "bar" }), { style: `width:${100 * size / total}%` })))))));
  }
  const panels = curvePanels(run.curves);
  if (panels.length) {
    const grid = make("div", { className: "panels" });
    add("Curves", grid);
    for (const panel of panels) {
      const holder = make("div");
      const legend = make("div", { className: "legend" });
      grid.append(holder);
      addPanel(holder, panel);
      if (panel.series.length > 1) {
        for (const series of panel.series) legend.append(make("span", {}, swatch(series), ` ${series.label}`));
        holder.append(legend);
      }
    }
  } else add("Curves", make("p", { className: "empty", textContent: "No metrics.csv in the folder (logger=csv writes it)." }));
  const left = [["Compression", run.compression], ["Hardware", { ...run.hardware, "peak memory": bytes(run.peak_memory_bytes), "peak GPU memory": bytes(run.peak_gpu_memory_bytes) }], ["Versions", run.versions]];
  body.append(make("div", { className: "pair" }, ...left.map(([heading, told]) => titled(heading, objectPairs(told, shortNumber)))));
  add("Config", objectPairs(run.config));
  for (const element of drawn.keys()) if (dialog.contains(element)) drawn.delete(element);
  dialog.replaceChildren(make("div", { className: "top" }, title, close), body);
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
  close.focus();
}

let opener = null;
function followHash(runs) {
  const id = location.hash.startsWith("#run=") ? decodeURIComponent(location.hash.slice(5)) : null;
  const run = runs.find((each) => each.id === id);
  if (run) { opener = document.activeElement; showRun(run); } else if ($("#run").open) $("#run").close();
}

// ---- the page
async function start() {
  const packed = Uint8Array.from(atob($("#data").textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const data = await new Response(stream).json();
  for (const section of document.querySelectorAll("section"))
    $("nav").append(make("a", { href: `#${section.id}`, textContent: $("h2", section).textContent }));
  addPoints(data.points);
  addRuns(data.runs);
  if (document.readyState === "loading") await new Promise((parsed) => addEventListener("DOMContentLoaded", parsed));
  data.charts.forEach(addChart); // plotly.js stands below this script, so that the tables need not wait for it
  showTheme();
  const dialog = $("#run");
  dialog.addEventListener("close", () => {
    if (location.hash.startsWith("#run=")) history.replaceState(null, "", location.pathname + location.search);
    if (opener) opener.focus();
  });
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  addEventListener("hashchange", () => followHash(data.runs));
  history.scrollRestoration = "manual";
  const place = memory.get("place");
  if (place) {
    scrollTo(0, place.y);
    if (place.focus) document.getElementById(place.focus)?.focus({ preventScroll: true });
    memory.set("place", null);
  }
  followHash(data.runs);
  if (data.refresh) setInterval(() => {
    if (document.hidden || dialog.open) return; // a run that is being read is left alone
    memory.set("place", { y: scrollY, focus: document.activeElement?.id });
    location.reload();
  }, data.refresh * 1000);
  root.dataset.ready = "true";
}
start();
