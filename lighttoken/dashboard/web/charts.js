// ---- charts and their legends
const charts = new Map(); // element -> the function that draws its chart
const hidden = new Set(memory.get("hidden") || []); // labels that are switched off in the legends

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
    marker: { color: colour, symbol: series.marker || "circle", size: series.marker === "star-open" ? 13 : 9 },
    ...(series.error && { error_y: { type: "data", array: series.error.map((error) => error || 0), thickness: 1.2, width: 3 } }),
    text: series.x.map((_, i) => escaped((series.notes || [])[i] || "")),
    hovertemplate: `<b>${escaped(series.label)}</b><br>%{x:.4~g}: %{y:.4~g}<br>%{text}<extra></extra>`,
  };
}

function axis(label, logarithmic, ticks) {
  const line = isDark() ? "#333a44" : "#d8dee4";
  return {
    title: { text: escaped(label), standoff: 8 },
    type: logarithmic ? "log" : "linear",
    gridcolor: line,
    linecolor: line,
    zeroline: false,
    automargin: true,
    ...(ticks ? { tickvals: ticks, ticktext: ticks.map((tick) => String(+tick.toFixed(1))) }
      : logarithmic ? { nticks: 6, tickformat: "~g" } : {}),
  };
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
  Plotly.react(element, panel.series.map(trace), layout, { displayModeBar: false, responsive: true });
}

// A chart is drawn when it comes into sight.
const onSight = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    onSight.unobserve(target);
    charts.set(target, () => plot(target, target.panel));
    charts.get(target)();
  }
}, { rootMargin: "200px" });

// On paper all charts are drawn, and their pictures are scaled to the width of the page.
function drawForPrint(starts) {
  printing = starts;
  for (const element of document.querySelectorAll("main .panel")) {
    onSight.unobserve(element);
    charts.set(element, () => plot(element, element.panel));
    charts.get(element)();
    for (const picture of element.querySelectorAll(".main-svg")) {
      const size = `0 0 ${picture.getAttribute("width")} ${picture.getAttribute("height")}`;
      if (starts) picture.setAttribute("viewBox", size);
      else picture.removeAttribute("viewBox");
    }
  }
}
addEventListener("beforeprint", () => drawForPrint(true));
addEventListener("afterprint", () => drawForPrint(false));

function addPanel(parent, panel) {
  const element = make("div", { className: "panel", panel, role: "img" });
  const labels = panel.series.map((series) => series.label).join(", ");
  element.ariaLabel = `${panel.title}: ${panel.y_label} against ${panel.x_label}; ${labels}`;
  parent.append(element);
  onSight.observe(element);
}

const SHAPES = {
  circle: "M13 2.5a3.5 3.5 0 1 0 .01 0z",
  square: "M9.5 2.5h7v7h-7z",
  "triangle-up": "M13 1.5l4.5 8h-9z",
  diamond: "M13 1l4.5 5l-4.5 5l-4.5-5z",
  "triangle-down": "M13 10.5l4.5-8h-9z",
  cross: "M11.5 1.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z",
  pentagon: "M13 1.3l4.7 3.5-1.8 5.6h-5.8l-1.8-5.6z",
  x: "M10 1l3 3 3-3 2 2-3 3 3 3-2 2-3-3-3 3-2-2 3-3-3-3z",
  "star-open": "M13 0l1.6 4.1 4.4.3-3.4 2.8 1.1 4.3L13 9.1 9.3 11.5l1.1-4.3L7 4.4l4.4-.3z",
};

// The line and the marker of a series, for legends.
function swatch(series) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const set = (element, attributes) => {
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  };
  const path = (attributes) => svg.append(set(document.createElementNS(svg.namespaceURI, "path"), attributes));
  const stroke = series.colour === "ink" ? "currentColor" : series.colour;
  const dashes = { dash: "6 3", dot: "2 2" }[series.dash] || "none";
  set(svg, { viewBox: "0 0 26 12", "aria-hidden": "true" });
  if (series.width) path({ d: "M0 6h26", stroke, "stroke-width": series.width, "stroke-dasharray": dashes });
  if (series.marker) path({ d: SHAPES[series.marker], fill: series.marker === "star-open" ? "none" : stroke, stroke });
  return svg;
}

function addLegend(parent, panels) {
  const labels = new Map();
  for (const series of panels.flatMap((panel) => panel.series))
    if (!labels.has(series.label)) labels.set(series.label, series);
  for (const [label, series] of labels) {
    const button = make("button", { type: "button", title: "Show or hide in all charts" }, swatch(series), label);
    button.dataset.label = label;
    button.ariaPressed = !hidden.has(label);
    button.onclick = () => {
      if (!hidden.delete(label)) hidden.add(label);
      memory.set("hidden", [...hidden]);
      for (const other of document.querySelectorAll(".legend button"))
        if (other.dataset.label === label) other.ariaPressed = !hidden.has(label);
      for (const [element, draw] of charts) if (element.panel.series.some((other) => other.label === label)) draw();
    };
    parent.append(button);
  }
}

function addChart(chart) {
  if (!chart.panels.length) return;
  const section = document.getElementById(chart.name);
  addLegend($(".legend", section), chart.panels);
  for (const panel of chart.panels) addPanel($(".panels", section), panel);
}
