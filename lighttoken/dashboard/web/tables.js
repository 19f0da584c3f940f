// ---- tables that sort by a click on a header
// A column has a name and a value(row); perhaps a text(value) or a cell(row) to show; `number` aligns it on the right,
// `falling` sorts it from the largest first, `minor` hides it on a phone.
const collator = new Intl.Collator("en", { numeric: true });

// Numbers sort as numbers and texts as texts. Missing values come last in both directions.
function compare(a, b, falling) {
  if (a == null || b == null) return (a == null) - (b == null);
  const order = typeof a === "number" && typeof b === "number" ? a - b : collator.compare(a, b);
  return falling ? -order : order;
}

// Fills a table; returns the function that shows the rows that pass the filter, and returns their number.
function sortable(table, columns, rows, { key, start, filter = () => true, prepare = () => {} }) {
  let order = memory.get(key) || start;
  const className = (column) => `${column.number ? "number " : ""}${column.minor ? "minor" : ""}`;
  const headers = columns.map((column) => {
    const button = make("button", { type: "button", textContent: column.name });
    button.onclick = () => {
      const falling = order.name === column.name ? !order.falling : Boolean(column.falling);
      order = { name: column.name, falling };
      memory.set(key, order);
      show();
    };
    return make("th", { scope: "col", className: className(column) }, button);
  });
  const body = make("tbody");
  table.replaceChildren(make("thead", {}, make("tr", {}, ...headers)), body);

  const elements = new Map(); // row -> its element
  function elementOf(row) {
    if (!elements.has(row)) {
      const element = make("tr");
      for (const column of columns) {
        const value = column.value(row);
        const content = column.cell ? column.cell(row) : column.text ? column.text(value) : value ?? "";
        element.append(make("td", { className: className(column) }, content));
      }
      prepare(element, row);
      elements.set(row, element);
    }
    return elements.get(row);
  }

  function show() {
    const by = columns.find((column) => column.name === order.name) || columns[0];
    columns.forEach((column, i) => {
      headers[i].ariaSort = column !== by ? "none" : order.falling ? "descending" : "ascending";
    });
    const sorted = rows.filter(filter).map((row) => [by.value(row), row]);
    sorted.sort(([a], [b]) => compare(a, b, order.falling));
    body.replaceChildren(...sorted.map(([, row]) => elementOf(row)));
    return sorted.length;
  }
  return show;
}

// A label behind the line and the marker that its row has in the charts.
const withLook = (row, label) => make("span", { className: "look" }, swatch(row.look), label);

function addPoints(points) {
  const columns = [
    { name: "task", value: (row) => row.task },
    { name: "model", value: (row) => row.model, minor: true },
    { name: "codec", value: (row) => row.label, cell: (row) => withLook(row, row.label) },
    { name: "ratio", value: (row) => row.ratio, text: fixed(1), number: true },
    { name: "score", value: (row) => row.score, number: true, falling: true,
      cell: (row) => fixed(4)(row.score) + (row.std == null ? "" : ` ± ${fixed(4)(row.std)}`) },
    { name: "retention", value: (row) => row.retention, number: true, falling: true, cell: (row) => row.retention_text },
    { name: "n", value: (row) => row.n, number: true },
  ];
  sortable($("#points"), columns, points, { key: "points", start: { name: "task", falling: false } })();
}

const runUrl = (run) => `#run=${encodeURIComponent(run.id)}`;

function statusCell(run) {
  const status = make("span", { className: run.status }, run.status);
  if (!run.error) return status;
  return make("span", {}, status, make("div", { className: "reason", title: run.error, textContent: run.error }));
}

function folderCell(run) {
  return run.link ? make("a", { href: run.link, title: run.folder }, "open") : make("span", { title: run.folder }, "–");
}

const RUN_COLUMNS = [
  { name: "run", value: (run) => `${run.task} ${run.label} ${run.ratio_asked ?? 0}`,
    cell: (run) => make("span", {}, make("a", { href: runUrl(run) }, withLook(run, `${run.task}, ${run.label}`)),
      make("div", { className: "soft", textContent: run.recipe })) },
  { name: "target ratio", value: (run) => run.ratio_asked, text: ratioText, number: true },
  { name: "score", value: (run) => run.score, text: fixed(4), number: true, falling: true },
  { name: "retention", value: (run) => run.retention, text: fixed(3), number: true, falling: true },
  { name: "seed", value: (run) => run.seed, number: true },
  { name: "status", value: (run) => run.status, cell: statusCell },
  { name: "ratio", value: (run) => run.ratio, text: ratioText, number: true, minor: true },
  { name: "nmse", value: (run) => run.nmse, text: fixed(3), number: true, minor: true },
  { name: "bytes", value: (run) => run.ratio && run.artifact_bytes, text: bytes, number: true, minor: true },
  { name: "seconds", value: (run) => run.total_seconds, text: whole, number: true, minor: true },
  { name: "model", value: (run) => run.model, minor: true },
  { name: "started", value: (run) => run.started, minor: true,
    cell: (run) => String(run.started).slice(0, 16).replace("T", " ") },
  { name: "folder", value: (run) => run.id, cell: folderCell, minor: true },
];

function addRuns(runs) {
  const words = (run) => [run.task, run.label, run.recipe, run.codec, run.model, run.status, run.id, run.error,
    `seed${run.seed}`, `${run.ratio_asked}x`].join(" ").toLowerCase();
  const texts = new Map(runs.map((run) => [run, words(run)]));
  const selects = { status: $("#filter-status"), task: $("#filter-task"), codec: $("#filter-codec") };
  const earlier = memory.get("filters") || {};
  for (const [name, select] of Object.entries(selects)) {
    const values = [...new Set(runs.map((run) => String(run[name])))].sort();
    select.append(new Option("all", ""), ...values.map((value) => new Option(value, value)));
    select.value = values.includes(earlier[name]) ? earlier[name] : "";
  }
  $("#filter").value = earlier.words || "";
  const filter = (run) => $("#filter").value.toLowerCase().split(/\s+/).every((word) => texts.get(run).includes(word))
    && Object.entries(selects).every(([name, select]) => !select.value || String(run[name]) === select.value);
  const prepare = (element, run) => {
    element.onclick = (event) => {
      if (!event.target.closest("a") && !String(getSelection())) location.hash = runUrl(run);
    };
  };
  const start = { name: "started", falling: true };
  const show = sortable($("#table"), RUN_COLUMNS, runs, { key: "runs", start, filter, prepare });
  const refresh = () => {
    const values = Object.entries(selects).map(([name, select]) => [name, select.value]);
    memory.set("filters", { words: $("#filter").value, ...Object.fromEntries(values) });
    $("#count").textContent = `${show()} of ${runs.length} runs`;
  };
  for (const input of [$("#filter"), ...Object.values(selects)]) input.oninput = refresh;
  refresh();
}
