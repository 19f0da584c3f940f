// ---- the page
function showTheme() {
  $("#theme").textContent = isDark() ? "Light theme" : "Dark theme";
  for (const draw of charts.values()) draw();
}

function startTheme() {
  const theme = memory.get("theme", "localStorage");
  if (theme) root.dataset.theme = theme;
  $("#theme").onclick = () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    memory.set("theme", root.dataset.theme, "localStorage");
    showTheme();
  };
  systemDark.addEventListener("change", showTheme);
  showTheme();
}

// The address decides which run is open; a closed dialog gives the focus back to the link that opened it.
function followAddress(runs, palette) {
  const dialog = $("#run");
  let opener = null, shown = null;
  const follow = () => {
    const id = location.hash.startsWith("#run=") ? decodeURIComponent(location.hash.slice(5)) : null;
    const run = runs.find((other) => other.id === id);
    if (run) {
      [opener, shown] = [document.activeElement, location.hash];
      showRun(run, palette);
    } else if (dialog.open) dialog.close();
  };
  dialog.addEventListener("close", () => {
    // The event comes late: the address may name the next run already.
    if (location.hash === shown) history.replaceState(null, "", location.pathname + location.search);
    if (opener) opener.focus();
  });
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  addEventListener("hashchange", follow);
  follow();
}

// A page that reloads itself goes on where the reader was.
function restorePosition() {
  history.scrollRestoration = "manual";
  const position = memory.get("position");
  if (!position) return;
  scrollTo(0, position.y);
  document.getElementById(position.focus)?.focus({ preventScroll: true });
  memory.set("position", null);
}

function reload() {
  if (document.hidden || $("#run").open) return; // nobody looks, or a run is being read
  memory.set("position", { y: scrollY, focus: document.activeElement?.id });
  location.reload();
}

async function start() {
  const packed = Uint8Array.from(atob($("#data").textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const data = await new Response(stream).json();
  for (const section of document.querySelectorAll("section"))
    $("nav").append(make("a", { href: `#${section.id}`, textContent: $("h2", section).textContent }));
  addAnswers(data.answers);
  addPoints(data.points);
  addRuns(data.runs);
  // plotly.js stands below this script, so that the tables need not wait for it.
  if (document.readyState === "loading") await new Promise((parsed) => addEventListener("DOMContentLoaded", parsed));
  data.charts.forEach(addChart);
  restorePosition();
  followAddress(data.runs, data.palette);
  if (data.refresh) setInterval(reload, data.refresh * 1000);
  root.dataset.ready = "true";
}

startTheme();
start();
