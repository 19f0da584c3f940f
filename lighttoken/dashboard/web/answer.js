// ---- codec by ratio: which codec is best at which ratio?
const place = (share, scale) => `${100 * Math.min(Math.max(share / scale, 0), 1)}%`;

// The bar of a retention, with lines where the uncompressed model and the constant answer would end.
function retentionBar(cell, look, answer) {
  const track = make("div", { className: "track" });
  const add = (className, property, share) => {
    const element = make("i", { className });
    element.style[property] = place(share, answer.scale);
    track.append(element);
    return element;
  };
  add("fill", "width", cell.retention).style.background = look.colour;
  add("whole", "left", 1);
  if (answer.constant_retention != null) add("constant", "left", answer.constant_retention);
  return track;
}

const scoreText = (cell) => `${fixed(4)(cell.score)}${cell.std == null ? "" : ` ± ${fixed(4)(cell.std)}`}, n = ${cell.n}`;
const costText = (cell) => `${bytes(cell.bytes)}, ${whole(cell.seconds)} s`;

function answerCell(cell, look, answer) {
  if (!cell) return make("td");
  const retention = cell.retention_text && make("b", { textContent: cell.retention_text });
  const best = cell.best ? make("span", { className: "tag", textContent: "best" }) : "";
  const lines = [make("div", {}, retention || "", best), make("div", { textContent: scoreText(cell) })];
  if (cell.retention != null) lines.unshift(retentionBar(cell, look, answer));
  if (cell.difference) lines.push(make("div", { textContent: `Δ ${cell.difference}` }));
  if (cell.is_constant) lines.push(make("div", { className: "lost", textContent: "no better than a constant" }));
  lines.push(make("div", { className: "soft", textContent: costText(cell) }));
  return make("td", { className: cell.best ? "best" : "" }, ...lines);
}

function answerTable(answer) {
  const head = (text) => make("th", { scope: "col", textContent: text });
  const name = (...content) => make("th", { scope: "row" }, ...content);
  const mark = (className) => make("i", { className: `mark ${className}` });
  const line = (className, text, cell) => make("tr", { className: "line" }, name(mark(className), text),
    make("td", { colSpan: answer.ratios.length, textContent: cell }));
  const body = make("tbody");
  if (answer.uncompressed) body.append(line("whole", "uncompressed",
    `${scoreText(answer.uncompressed)}; ${costText(answer.uncompressed)}`));
  if (answer.constant != null) body.append(line("constant", "constant answer", fixed(4)(answer.constant)));
  for (const row of answer.rows)
    body.append(make("tr", {}, name(withLook(row, row.label.replaceAll("_", "_\u200b"))), ...row.cells.map((cell) => answerCell(cell, row.look, answer))));
  const header = make("tr", {}, head("codec"), ...answer.ratios.map((ratio) => head(`${ratioText(ratio)}x`)));
  return make("table", { className: "answer" }, make("thead", {}, header), body);
}

function addAnswers(answers) {
  for (const answer of answers) {
    const scroll = make("div", { className: "scroll", tabIndex: 0, role: "region", ariaLabel: answer.title });
    scroll.append(answerTable(answer));
    const leads = answer.leads.map((text) => make("li", { textContent: text }));
    $("#answers").append(titled(answer.title, scroll), make("ul", { className: "leads" }, ...leads));
  }
  if (!answers.length) $("#answers").append(make("p", { className: "empty", textContent: "No compressed run has a score yet." }));
}
