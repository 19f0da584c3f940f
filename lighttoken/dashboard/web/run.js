// ---- the dialog of one run
const titled = (title, content) => make("div", {}, make("h3", { textContent: title }), content);
const rowsOf = (rows) => make("table", {}, make("tbody", {}, ...rows));

// A table of names and values, without the missing values.
function pairs(entries, text = (value) => value) {
  const present = Object.entries(entries || {}).filter(([, value]) => value != null && value !== "");
  return rowsOf(present.map(([name, value]) =>
    make("tr", {}, make("td", { textContent: name }), make("td", {}, value instanceof Node ? value : String(text(value))))));
}

function bytesByPart(parts) {
  const total = parts.reduce((sum, [, size]) => sum + size, 0);
  return rowsOf(parts.map(([name, size]) => {
    const percent = 100 * size / total, bar = make("div", { className: "bar" });
    bar.style.width = `${percent}%`;
    const number = (text) => make("td", { className: "number", textContent: text });
    return make("tr", {}, make("td", { textContent: name }), number(whole(size)), number(`${percent.toFixed(1)} %`),
      make("td", {}, bar));
  }));
}

// The panel that a curve belongs to, and its label there.
function panelOf(name) {
  const stage = name.match(/^stage(\d+)\/(.*)$/);
  if (stage) return [`stages: ${stage[2].replaceAll("_", " ")}`, `stage ${stage[1]}`];
  if (name.endsWith("/loss")) return ["loss", name];
  if (name.startsWith("lr-")) return ["learning rate", name];
  return [`scores: ${name.split("/").pop().replaceAll("_", " ")}`, name];
}

function curvePanels(curves, palette) {
  const panels = new Map();
  for (const [name, curve] of Object.entries(curves)) {
    const [title, label] = panelOf(name);
    const panel = panels.get(title) || { title, x_label: "step", y_label: title.replace(/^\w+: /, ""), series: [] };
    panels.set(title, panel);
    panel.series.push({
      label,
      x: curve.map(([step]) => step),
      y: curve.map(([, value]) => value),
      colour: palette[panel.series.length % palette.length],
      marker: curve.length < 12 ? "circle" : null,
      dash: "solid",
      width: 2,
    });
  }
  return [...panels.values()];
}

function curveGrid(panels) {
  const grid = make("div", { className: "panels" });
  for (const panel of panels) {
    const holder = make("div");
    grid.append(holder);
    addPanel(holder, panel);
    const items = panel.series.map((series) => make("span", {}, swatch(series), ` ${series.label}`));
    if (items.length > 1) holder.append(make("div", { className: "legend" }, ...items));
  }
  return grid;
}

function facts(run) {
  return pairs({
    status: make("span", { className: run.status }, run.status),
    model: run.model,
    recipe: run.recipe,
    score: shortNumber(run.score),
    retention: shortNumber(run.retention),
    ratio: ratioText(run.ratio),
    table: change(run.table_bytes, run.ratio && run.artifact_bytes),
    "whole model": change(run.model_bytes, run.stored_bytes),
    started: run.started,
    commit: run.git_commit,
    folder: run.link ? make("a", { href: run.link, textContent: run.folder }) : run.folder,
    artifact: run.artifact && `${run.artifact}${run.artifact_reused ? " (reused)" : ""}`,
  });
}

function runBody(run, palette) {
  const body = make("div", { className: "body" });
  const row = (...columns) => body.append(make("div", { className: "pair" }, ...columns));
  const add = (heading, content) => body.append(titled(heading, content));
  if (run.error) add("Error", make("div", { className: "error", textContent: run.error }));
  const seconds = pairs({ ...run.seconds, total: run.total_seconds }, (value) => +value.toFixed(1));
  const metrics = pairs(run.metrics, shortNumber);
  row(titled("Run", facts(run)), make("div", {}, titled("Metrics", metrics), titled("Seconds", seconds)));
  const parts = Object.entries(run.bytes_by_part).filter(([, size]) => size > 0).sort((a, b) => b[1] - a[1]);
  if (parts.length) add("Bytes by part of the artifact", bytesByPart(parts));
  const panels = curvePanels(run.curves, palette);
  add("Curves", panels.length ? curveGrid(panels)
    : make("p", { className: "empty", textContent: "There is no metrics.csv in the folder; logger=csv writes it." }));
  const memories = { "peak memory": bytes(run.peak_memory_bytes), "peak GPU memory": bytes(run.peak_gpu_memory_bytes) };
  const hardware = pairs({ ...run.hardware, ...memories }, shortNumber);
  const compression = pairs(run.compression, shortNumber);
  row(titled("Compression", compression), titled("Hardware", hardware), titled("Versions", pairs(run.versions)));
  add("Config", pairs(run.config));
  return body;
}

function showRun(run, palette) {
  const dialog = $("#run");
  const close = make("button", { type: "button", textContent: "Close", onclick: () => dialog.close() });
  const ratio = run.ratio_asked ? ` at ${ratioText(run.ratio_asked)}x` : "";
  const title = make("h2", { id: "run-title", textContent: `${run.task}, ${run.label}${ratio}, seed ${run.seed}` });
  for (const element of charts.keys()) if (dialog.contains(element)) charts.delete(element);
  dialog.replaceChildren(make("div", { className: "top" }, title, close), runBody(run, palette));
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
  close.focus();
}
