// One patient's line of the grid.

import { clock, dateTime, el, featureName, number, probability, span, unitName, visible } from "./dom.js";
import { imagingMark } from "./imaging.js";
import { levelsOf, news2Badge, news2Note, severity, trendLine } from "./marks.js";

const TREND = { width: 134, height: 30 };

// Of a cuff and an arterial line the newer pressure is shown.
const COLUMNS = [
  ["heart_rate", ["heart_rate"]],
  ["systolic_pressure", ["systolic_pressure", "systolic_pressure_invasive"]],
  ["respiratory_rate", ["respiratory_rate"]],
  ["oxygen_saturation", ["oxygen_saturation"]],
  ["fio2", ["fio2"]],
  ["temperature", ["temperature"]],
  ["gcs", ["gcs"]],
];

const SHORT = Object.assign(Object.create(null), {
  heart_rate: "HR",
  systolic_pressure: "SBP",
  systolic_pressure_invasive: "SBP line",
  diastolic_pressure: "DBP",
  diastolic_pressure_invasive: "DBP line",
  mean_pressure: "MAP",
  mean_pressure_invasive: "MAP line",
  respiratory_rate: "RR",
  temperature: "Temp",
  supplemental_oxygen: "O₂",
  consciousness: "ACVPU",
  mechanical_ventilation: "Ventilated",
  urine_output: "Urine",
});

/** Times on the page that age. */
export class Ages {
  constructor(staleMs) {
    this.staleMs = staleMs;
    this.entries = [];
  }

  /** An element whose text is the age of `ms`; where there is one, `marked` is marked once that is too old. */
  add(name, ms, marked) {
    const node = el("small", name);
    this.entries.push({ node, ms, marked, text: null, stale: null });
    return node;
  }

  /** Write ages as of `reference`. */
  tick(reference) {
    for (const entry of this.entries) {
      const age = reference - entry.ms;
      const stale = entry.marked !== undefined && age >= this.staleMs;
      const text = stale ? `stale ${span(age)}` : span(age);
      if (text !== entry.text) entry.node.textContent = entry.text = text;
      if (stale !== entry.stale) entry.marked?.classList.toggle("stale", entry.stale = stale);
    }
  }
}

/** The line's element, empty: `draw` fills it. */
export function emptyRow(id) {
  return el("div", "row", { role: "row", id, "aria-selected": "false" });
}

/** Fill a line; returns the ages in it. */
export function draw(node, row, context) {
  const ages = new Ages(context.facts.stale_s * 1000);
  const cell = (name, ...children) => el("div", name, { role: "gridcell" }, ...children);
  const fresh = context.isNew(row);
  node.className = `row rank-${row.rank}${fresh ? " fresh" : ""}${context.isActive(row) ? " active" : ""}`;
  node.replaceChildren(
    cell("severity", ...alerts(row, fresh, ages), imagingMark(row.imaging, ages)),
    cell("patient", el("bdi", null, { title: visible(row.patient) }, visible(row.patient)),
      row.care_unit && el("small", "unit", null, el("bdi", null, null, visible(row.care_unit)))),
    cell("why", ...row.episodes.filter((one) => one.why.length).slice(0, 2).map(why)),
    cell("risk", ...risk(row)),
    cell("trend", trendLine(row.trend, context.reference - context.facts.history_s * 1000, context.reference,
      levelsOf(row, context.facts.levels), TREND.width, TREND.height)),
    cell("news2", news2Badge(row.news2), news2Note(row.news2)),
    ...COLUMNS.map(([name, features]) => vital(cell(`vital ${name}`), row, features, ages)),
    seen(cell("seen"), row, ages),
  );
  ages.tick(context.reference);
  return ages;
}

function alerts(row, fresh, ages) {
  if (!row.episodes.length) return [el("span", "none", null, "no alert")];
  const [first] = row.episodes;
  return [
    el("div", "first", null, severity(first.rank, first.severity), fresh && el("span", "new", null, "new"),
      first.said && el("span", "said", null, first.said)),
    el("div", "since", null, ...row.episodes.map((one) =>
      el("span", null, { title: `raised ${dateTime(one.raised_at)}${one.said ? `, ${one.said}` : ""}` }, `${author(one)} `, ages.add(null, one.raised_at)))),
  ];
}

function author(one) {
  return one.by === "news2" ? "NEWS2" : visible(one.by);
}

/** What weighs most in an alert, in one line. */
function why(one) {
  const parts = one.why.map((reason) => el("span", "reason", null,
    SHORT[reason.feature] ?? featureName(reason.feature),
    reason.value === null ? null : ` ${number(reason.value)}`,
    el("b", null, null, ` ${reason.adds < 0 ? "−" : "+"}${Math.abs(reason.adds).toFixed(reason.value === null ? 0 : 2)}`)));
  return el("div", null, null, el("span", "author", null, `${author(one)}: `), ...parts);
}

function risk(row) {
  if (row.risk === null) return [el("span", "none", null, "–")];
  const spread = row.uncertainty === null ? null : el("small", null, null, `±${row.uncertainty.toFixed(2)}`);
  return [el("strong", null, null, probability(row.risk)), spread];
}

function vital(cell, row, features, ages) {
  const known = row.vitals.filter((one) => features.includes(one.feature));
  if (!known.length) {
    cell.append(el("span", "none", { title: "not measured" }, "–"));
    return cell;
  }
  const one = known.reduce((best, other) => ((other.at ?? 0) > (best.at ?? 0) ? other : best));
  const line = one.feature.endsWith("_invasive") ? " (arterial line)" : "";
  cell.title = `${number(one.value)} ${unitName(one.unit)}${line}`.trim();
  cell.append(el("span", "value", null, number(one.value)));
  if (one.at !== null) cell.append(ages.add("age", one.at, cell));
  return cell;
}

function seen(cell, row, ages) {
  if (!row.seen) return cell;
  cell.append(el("span", "value", null, clock(row.seen)));
  cell.append(ages.add("age", row.seen, cell));
  return cell;
}
