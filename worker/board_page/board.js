// The ward page: rows by severity, kept as the board's events tell it.
//
// Rows are drawn a few milliseconds at a time, those on the screen first; the order is mended at most once a
// second. So a thousand patients neither freeze the page nor make it jump.

import { drawDetails, drawGone } from "./details.js";
import { el, probability, visible } from "./dom.js";
import { shape } from "./marks.js";
import { showState } from "./notices.js";
import { draw, emptyRow } from "./rows.js";
import { Stream } from "./stream.js";

const FRAME_MS = 8; // of drawing in one frame of 16
const ORDER_MS = 1000;
const FRESH_MS = 60000; // how long a new alert is called new
const TOLD = 3; // new alerts that are read out by name at once

const by = (id) => document.getElementById(id);
const grid = by("grid");
const body = by("rows");
const details = by("details");
const search = by("search");

const patients = new Map(); // identifier -> {row, node, ages, rank...}
const dirty = new Set();
const known = new Map(); // episode of a model -> sequence that was told
const freshUntil = new Map(); // identifier -> ms
let facts = { boot: "", quiet_s: 120, stale_s: 21600, history_s: 86400, levels: [], token: false };
let feed = null;
let offset = 0; // the board's clock less ours
let lineUp = false;
let lineSince = Date.now();
let order = [];
let orderedAt = 0;
let ids = 0;
let active = null; // identifier
let opened = null; // identifier
let severityFilter = "all";
let drawing = false;
let detailsDue = false;
let started = false; // whether the ward as it was at first is known; nothing of that is news

const now = () => Date.now() + offset;

/** What ages are held against: the feed's newest event time, going on with the clock since it came. */
function reference() {
  return feed && feed.event !== null ? feed.event + Math.max(0, now() - feed.event_at) : now();
}

const context = {
  get facts() { return facts; },
  reference: 0,
  isNew: (row) => (freshUntil.get(row.patient) ?? 0) > now(),
  isActive: (row) => row.patient === active,
};

// --- what the board tells

function onEvent(kind, data) {
  feed = data.feed;
  offset = feed.now - Date.now();
  if (kind === "ward") takeWard(data);
  else takeChange(data);
  showFeed();
  schedule();
}

function takeWard(data) {
  facts = data.facts;
  by("sign-out").hidden = !facts.token;
  by("trend-head").textContent = `Last ${Math.round(facts.history_s / 3600)} h`;
  const here = new Set(data.rows.map((row) => row.patient));
  for (const patient of [...patients.keys()]) if (!here.has(patient)) remove(patient);
  takeRows(data.rows, started && !feed.loading);
  started = !feed.loading;
}

function takeChange(data) {
  const gone = new Set(data.gone);
  if (gone.size) {
    for (const [patient, entry] of [...patients]) if (gone.has(entry.row.key)) remove(patient);
  }
  takeRows(data.rows, started);
  started ||= !feed.loading;
}

function takeRows(rows, tell) {
  const news = [];
  for (const row of rows) {
    let entry = patients.get(row.patient);
    if (!entry) {
      entry = { row, node: emptyRow(`row-${(ids += 1)}`), ages: null };
      entry.node.entry = entry;
      patients.set(row.patient, entry);
      // A board that was started anew tells of the patient in the panel when it has read so far back.
      if (row.patient === opened && active === null) setActive(opened);
    }
    entry.row = row;
    dirty.add(entry);
    news.push(...newAlerts(row));
    if (row.patient === opened) detailsDue = true;
  }
  if (tell && news.length) announce(news);
}

/** Alerts of a row that were raised or went up since they were told last. */
function newAlerts(row) {
  const found = [];
  for (const one of row.episodes) {
    const name = `${one.by} ${one.id}`;
    const before = known.get(name);
    known.set(name, one.rank);
    if (before === undefined || one.rank > before) found.push({ row, one });
  }
  return found;
}

/** Of an incomplete NEWS2 also what it may have at most, or the least would sound like the score. */
function most(row, one) {
  const score = row.news2;
  return score && !score.complete && score.high > one.level ? ` to ${score.high}` : "";
}

function announce(news) {
  for (const { row } of news) freshUntil.set(row.patient, now() + FRESH_MS);
  const gravest = [...news].sort((a, b) => b.one.rank - a.one.rank);
  const lines = gravest.slice(0, TOLD).map(({ row, one }) =>
    `${visible(one.severity)} alert, patient ${visible(row.patient)}, ` +
    (one.by === "news2" ? `NEWS2 ${one.level}${most(row, one)} points` : `risk ${probability(one.level)}`));
  if (news.length > TOLD) lines.push(`and ${news.length - TOLD} more`);
  by("announce").replaceChildren(...lines.map((line) => el("p", null, null, line)));
  orderedAt = 0; // a new alert does not wait for its place
}

function remove(patient) {
  const entry = patients.get(patient);
  entry.node.remove();
  patients.delete(patient);
  dirty.delete(entry);
  freshUntil.delete(patient);
  order = order.filter((one) => one !== entry);
  for (const one of entry.row.episodes) known.delete(`${one.by} ${one.id}`);
  if (active === patient) active = null;
  if (opened === patient) detailsDue = true;
}

// --- drawing

function schedule() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(frame);
}

function frame() {
  drawing = false;
  const ends = performance.now() + FRAME_MS;
  context.reference = reference();
  if (performance.now() - orderedAt >= ORDER_MS) arrange();
  drawSome([...dirty].filter(onScreen), ends);
  drawSome(dirty, ends);
  if (detailsDue) {
    detailsDue = false;
    loadDetails();
  }
  if (dirty.size) schedule();
}

function drawSome(entries, ends) {
  for (const entry of entries) {
    if (performance.now() > ends) return;
    dirty.delete(entry);
    entry.ages = draw(entry.node, entry.row, context);
  }
}

function onScreen(entry) {
  const box = entry.node.getBoundingClientRect();
  return entry.node.isConnected && box.bottom > 0 && box.top < innerHeight;
}

function compare(a, b) {
  return b.row.rank - a.row.rank || (b.row.risk ?? -1) - (a.row.risk ?? -1) ||
    (b.row.news2?.low ?? -1) - (a.row.news2?.low ?? -1) || (a.row.patient < b.row.patient ? -1 : 1);
}

/** Put rows in their order and show those that the filters let through, moving as few as can be. */
function arrange() {
  orderedAt = performance.now();
  order = [...patients.values()].sort(compare);
  let place = body.firstChild;
  for (const { node } of order) {
    if (node === place) place = place.nextSibling;
    else if (place !== null && place.nextSibling === node) place = node.nextSibling; // `place` is what moves, later
    else body.insertBefore(node, place);
  }
  filter();
}

function filter() {
  const text = search.value.trim().toLowerCase();
  let shown = 0;
  for (const { row, node } of order) {
    const fits = (severityFilter === "all" || severityFilter === String(row.rank)) &&
      (!text || `${visible(row.patient)} ${visible(row.care_unit ?? "")}`.toLowerCase().includes(text));
    if (node.hidden === fits) node.hidden = !fits;
    shown += fits;
  }
  showCounts();
  const empty = by("empty");
  empty.hidden = shown > 0;
  empty.textContent = order.length ? "No patient fits the filter."
    : feed?.loading ? "Reading what came before …" : "No patient yet: nothing has come on the topics.";
  by("summary").textContent = shown === order.length ? `${order.length.toLocaleString("en")} patients`
    : `${shown.toLocaleString("en")} of ${order.length.toLocaleString("en")} patients`;
  if (active === null || patients.get(active)?.node.hidden) setActive(null);
}

// --- header and notices

const CHIPS = [["all", "All"], ["4", "Critical"], ["3", "High"], ["2", "Medium"], ["1", "Low"], ["0", "No alert"]];
const chips = new Map();
for (const [value, label] of CHIPS) {
  const count = el("b", null, null, "0");
  const rank = Number(value);
  const chip = el("button", "chip", { type: "button", "aria-pressed": String(value === "all") },
    rank > 0 && shape(rank), el("span", null, null, label), count);
  chip.addEventListener("click", () => {
    severityFilter = value;
    for (const [other, one] of chips) one.chip.setAttribute("aria-pressed", String(other === value));
    filter();
  });
  chips.set(value, { chip, count });
  by("severities").append(chip);
}

function showCounts() {
  const counts = new Map(CHIPS.map(([value]) => [value, 0]));
  counts.set("all", order.length);
  for (const { row } of order) counts.set(String(row.rank), counts.get(String(row.rank)) + 1);
  for (const [value, { chip, count }] of chips) {
    count.textContent = counts.get(value).toLocaleString("en");
    // Few policies have these words; an empty one would only take place.
    if (value === "4" || value === "1") chip.hidden = counts.get(value) === 0 && severityFilter !== value;
  }
}

function showFeed() {
  showState({ feed, facts, lineUp, lineSince, offset });
}

function onState(up) {
  if (up === lineUp) return;
  lineUp = up;
  lineSince = Date.now();
  showFeed();
}

setInterval(() => {
  context.reference = reference();
  if (facts.boot) showFeed();
  for (const [patient, until] of freshUntil) {
    if (until <= now()) {
      freshUntil.delete(patient);
      if (patients.has(patient)) dirty.add(patients.get(patient));
    }
  }
  if (performance.now() - orderedAt >= ORDER_MS && order.length !== patients.size) schedule();
  if (dirty.size || orderedAt === 0) schedule();
}, 1000);

setInterval(() => {
  for (const entry of patients.values()) entry.ages?.tick(context.reference);
  if (opened !== null) detailsDue = true;
  schedule();
}, 5000);

// --- the panel

async function loadDetails() {
  if (opened === null) return;
  const patient = opened;
  const entry = patients.get(patient);
  if (!entry) {
    drawGone(details, patient, closeDetails);
    return;
  }
  try {
    const answer = await fetch(`/api/patients/${entry.row.key}`, { cache: "no-store" });
    if (!answer.ok || opened !== patient) return;
    const detail = await answer.json();
    if (opened === patient && !details.contains(openDisclosure())) drawDetails(details, detail, context, closeDetails);
  } catch {
    // the connection's state is told above; the panel keeps what it shows
  }
}

/** A disclosure that the reader has open or focused: the panel is not drawn again under their hands. */
function openDisclosure() {
  return details.querySelector("details[open]") ?? (details.contains(document.activeElement) &&
    document.activeElement.tagName === "SUMMARY" ? document.activeElement : null);
}

function openDetails(patient) {
  opened = patient;
  details.replaceChildren();
  details.hidden = false;
  document.body.classList.add("with-details");
  loadDetails().then(() => details.focus());
}

function closeDetails() {
  opened = null;
  details.hidden = true;
  document.body.classList.remove("with-details");
  grid.focus();
}

// --- keyboard and mouse

function setActive(patient) {
  if (active !== null && patients.has(active)) {
    const { node } = patients.get(active);
    node.classList.remove("active");
    node.setAttribute("aria-selected", "false");
  }
  active = patient;
  if (patient === null) {
    grid.removeAttribute("aria-activedescendant");
    return;
  }
  const { node } = patients.get(patient);
  node.classList.add("active");
  node.setAttribute("aria-selected", "true");
  grid.setAttribute("aria-activedescendant", node.id);
  node.scrollIntoView({ block: "nearest" });
}

function move(step) {
  const shown = order.filter(({ node }) => !node.hidden);
  if (!shown.length) return;
  const at = shown.findIndex(({ row }) => row.patient === active);
  const to = at < 0 ? 0 : Math.min(Math.max(at + step, 0), shown.length - 1);
  setActive(shown[to].row.patient);
  if (opened !== null) openDetails(active);
}

const MOVES = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity };

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target === search) {
    onSearchKey(event);
  } else if (event.key === "/") {
    event.preventDefault();
    search.focus();
    search.select();
  } else if (event.key === "Escape") {
    if (opened !== null) closeDetails();
  } else if (event.key === "Enter" && document.activeElement === grid && active !== null) {
    openDetails(active);
  } else if (event.key in MOVES && !(details.contains(event.target) && event.key.length > 1)) {
    // In the panel arrows scroll it; j and k go to the next patient.
    event.preventDefault();
    move(MOVES[event.key]);
    if (opened === null) grid.focus({ preventScroll: true });
  }
});

function onSearchKey(event) {
  if (event.key === "Escape") {
    search.value = "";
    filter();
    grid.focus();
  } else if (event.key === "Enter" || event.key === "ArrowDown") {
    event.preventDefault();
    grid.focus();
    setActive(null);
    move(1);
  }
}

search.addEventListener("input", filter);

body.addEventListener("click", (event) => {
  const node = event.target.closest(".row");
  if (!node || String(getSelection())) return; // text is being selected
  setActive(node.entry.row.patient);
  openDetails(active);
});

new Stream(onEvent, onState);
grid.focus({ preventScroll: true });
