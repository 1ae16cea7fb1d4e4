// The plots, in the page's colours, each drawn when it comes into view; and the table of configurations.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const drawn = new Set();

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined && text !== null) made.textContent = text;  // never markup: a user's words stay words
  if (className) made.className = className;
  return made;
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function draw(place) {
  const plot = data.plots[place.dataset.plot];
  const [ink, line] = [colour("--ink"), colour("--line")];
  const layout = structuredClone(plot.layout);
  const axes = Object.keys(layout).filter((name) => /^[xy]axis/.test(name));
  for (const name of new Set([...axes, "xaxis", "yaxis"])) {
    layout[name] = { ...layout[name], gridcolor: line, zerolinecolor: line, linecolor: line };
  }
  const narrow = place.clientWidth < 600;
  Object.assign(layout, {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: ink, size: narrow ? 11 : 12 },
    margin: { l: narrow ? 48 : 64, r: 16, t: 16, b: 56 },
    legend: { ...layout.legend, orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom" },
  });
  if (layout.height) place.style.minHeight = `${layout.height}px`;
  const traces = structuredClone(plot.data);
  for (const trace of traces) {  // colours that can be told from light and from dark
    for (const part of [trace.marker, trace.line]) {
      if (Array.isArray(part?.color)) Object.assign(part, { colorscale: data.scale, reversescale: false });
    }
  }
  if (narrow) {  // there is no room beside it
    for (const trace of traces) if (trace.marker && trace.marker.showscale) trace.marker.showscale = false;
  }
  Plotly.react(place, traces, layout, { displaylogo: false, responsive: true, plotlyServerURL: "" });
  drawn.add(place);
}

const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    seen.unobserve(entry.target);
    draw(entry.target);
  }
}, { rootMargin: "400px" });
for (const place of document.querySelectorAll(".plot")) seen.observe(place);
dark.addEventListener("change", () => drawn.forEach(draw));

const [head, body] = [document.querySelector("#table thead"), document.querySelector("#table tbody")];
const rows = data.rows.map((row) => {
  const tr = element("tr");
  row.cells.forEach((value, at) => {
    const kind = data.columns[at].number ? "number" : at === 1 ? row.state : "long";
    const td = element("td", at === 0 ? undefined : shown(value), kind);
    if (at === 0) {
      const button = element("button", `#${String(value).padStart(2, "0")}`);
      button.setAttribute("aria-expanded", "false");
      button.addEventListener("click", () => toggle(row, tr, button));
      td.append(button);
    }
    tr.append(td);
  });
  return { row, tr, text: [`#${String(row.cells[0]).padStart(2, "0")}`, ...row.cells.slice(1), row.error ?? ""].join(" ").toLowerCase() };
});

function shown(value) {
  if (value === null) return "";
  return typeof value === "number" && !Number.isInteger(value) ? Number(value.toPrecision(6)).toString() : String(value);
}

function toggle(row, tr, button) {
  const open = button.getAttribute("aria-expanded") === "true";
  button.setAttribute("aria-expanded", String(!open));
  if (open) return tr.nextSibling.remove();
  const detail = element("tr", undefined, "detail");
  const td = element("td");
  td.colSpan = data.columns.length;
  td.append(element("strong", row.name));
  if (row.error) td.append(element("p", row.error, "failed"));
  td.append(element("p", `A resume starts from ${row.latest ?? "the beginning"}; the best weights are in ${row.best ?? "no checkpoint yet"}.`));
  const table = element("table");
  for (const line of [data.segmentColumns, ...row.segments]) {
    const made = element("tr");
    for (const cell of line) made.append(element(line === data.segmentColumns ? "th" : "td", cell));
    table.append(made);
  }
  td.append(table);
  detail.append(td);
  tr.after(detail);
}

let [sorted, ascending] = [null, true];
function sort(at) {
  ascending = sorted === at ? !ascending : true;
  sorted = at;
  [...head.querySelectorAll("th")].forEach((th, place) => {
    if (place === at) th.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    else th.removeAttribute("aria-sort");
  });
  const sign = ascending ? 1 : -1;
  rows.sort((left, right) => {
    const [a, b] = [left.row.cells[at], right.row.cells[at]];
    if (a === null || b === null) return (a === null) - (b === null);  // what is not there comes last
    return sign * (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
  });
  list();
}

const [find, state, count] = ["find", "state", "shown"].map((id) => document.getElementById(id));
function list() {
  const words = find.value.toLowerCase().split(/\s+/);
  const found = rows.filter(({ row, text }) =>
    (!state.value || row.state === state.value) && words.every((word) => text.includes(word)));
  for (const button of body.querySelectorAll("[aria-expanded=true]")) button.setAttribute("aria-expanded", "false");
  body.replaceChildren(...found.map(({ tr }) => tr));
  count.textContent = `${found.length} of ${data.total}`;
}

const header = element("tr");
data.columns.forEach((column, at) => {
  const th = element("th");
  th.scope = "col";
  const button = element("button", column.name);
  button.addEventListener("click", () => sort(at));
  th.append(button);
  header.append(th);
});
head.append(header);
for (const name of [...new Set(data.rows.map((row) => row.state))].sort()) state.append(new Option(name, name));
find.addEventListener("input", list);
state.addEventListener("change", list);
document.getElementById("filters").addEventListener("submit", (event) => event.preventDefault());
list();
