// The panel of one patient: what every alert rests on.

import { dateTime, el, featureName, given, number, probability, span, svg, unitName, visible } from "./dom.js";
import { imaging } from "./imaging.js";
import { levelsOf, news2Badge, severity, trendLine } from "./marks.js";

const LEAST = 0.0005; // a contribution below it is drawn as none

/** Fill the panel. detail: what the board tells of the patient; context: facts and reference time. */
export function drawDetails(panel, detail, context, close) {
  const { row, alerts, closed } = detail;
  const name = visible(row.patient);
  panel.setAttribute("aria-label", `Patient ${name}`);
  const button = el("button", "close", { type: "button", "aria-label": "Close (Escape)" }, "×");
  button.addEventListener("click", close);
  const top = panel.scrollTop;
  panel.replaceChildren(...given([
    el("div", "details-head", null, el("h2", null, null, el("bdi", null, null, name)), button),
    headline(row),
    trend(row, context),
    ...alerts.map((alert) => episode(alert, row)),
    alerts.length === 0 && el("p", "muted", null, "No open alert."),
    imaging(detail, context),
    bedside(row, context),
    news2(row, alerts),
    history(closed),
  ]));
  panel.scrollTop = top;
}

/** Fill the panel while its patient is not known any more. */
export function drawGone(panel, patient, close) {
  const button = el("button", "close", { type: "button", "aria-label": "Close (Escape)" }, "×");
  button.addEventListener("click", close);
  panel.replaceChildren(
    el("div", "details-head", null, el("h2", null, null, el("bdi", null, null, visible(patient))), button),
    el("p", "muted", null, "This patient is not on the page any more: nothing has come for long."));
}

function headline(row) {
  const fact = (label, ...value) => el("div", null, null, el("dt", null, null, label), el("dd", null, null, ...value));
  const spread = row.uncertainty === null ? null : el("small", null, null, ` ±${row.uncertainty.toFixed(2)}`);
  return el("dl", "headline", null,
    fact("Risk", row.risk === null ? "–" : probability(row.risk), row.risk === null ? null : spread),
    fact("NEWS2", news2Badge(row.news2)),
    row.care_unit && fact("Unit", el("bdi", null, null, visible(row.care_unit))),
    fact("Last data", row.seen ? dateTime(row.seen) : "–"));
}

function trend(row, context) {
  const hours = context.facts.history_s / 3600;
  const from = context.reference - context.facts.history_s * 1000;
  const levels = levelsOf(row, context.facts.levels);
  return el("figure", "trend-figure", null,
    trendLine(row.trend, from, context.reference, levels, 400, 96),
    el("figcaption", "muted", null, el("span", "edge", null, `−${number(hours)} h`),
      el("span", null, null, levels.map((l) => `${visible(l.severity)} ${number(l.enter)}`).join(" · ")),
      el("span", null, null, "now")));
}

function episode(alert, row) {
  const own = alert.model.name === "news2";
  const open = row.episodes.find((one) => one.id === alert.episode && one.by === alert.model.name);
  const said = own
    ? `${pointsOf(alert)}, threshold ${number(alert.threshold)}`
    : `risk ${probability(alert.risk)}, threshold ${number(alert.threshold)}` +
      (alert.uncertainty === null ? "" : `, uncertainty ±${alert.uncertainty.toFixed(2)}`);
  return el("section", `episode rank-${open?.rank ?? 0}`, { "aria-label": `Alert ${visible(alert.severity)}` },
    el("h3", null, null, severity(open?.rank ?? 3, alert.severity),
      el("span", null, null, own ? "NEWS2" : visible(alert.model.name)),
      el("span", "muted", null, `${visible(alert.transition)} ${dateTime(Date.parse(alert.time))}`),
      open?.said && el("span", "said", null, open.said)),
    el("p", null, null, said),
    own ? points(alert) : contributions(alert),
    own ? null : forecast(alert),
    own || !alert.missing.length ? null
      : el("p", "muted", null, `Never measured in the window: ${alert.missing.map(featureName).join(", ")}.`),
    provenance(alert));
}

/** Inputs by how much they change the risk, as bars to both sides of zero. */
function contributions(alert) {
  const weight = (one) => Math.abs(one.contribution ?? 0);
  const inputs = [...alert.inputs].sort((a, b) => weight(b) - weight(a));
  if (!inputs.length) return null;
  const most = Math.max(weight(inputs[0]), 0.05);
  const rows = inputs.map((one) => el("tr", null, null,
    el("th", null, { scope: "row" }, featureName(one.feature)),
    el("td", "number", null, `${number(one.value)} `, el("small", null, null, unitName(one.unit))),
    el("td", "number", null, one.age_s === null ? "–" : span(one.age_s * 1000)),
    el("td", "weight-cell", null, weightBar(one.contribution, most)),
    el("td", "number", null, signed(one.contribution))));
  const table = (some) => el("table", "basis", null,
    el("thead", null, null, el("tr", null, null,
      ...["Input", "Value", "Age then", "", "Adds"].map((t) => el("th", null, { scope: "col" }, t)))),
    el("tbody", null, null, ...some));
  const rest = rows.slice(8);
  return el("div", null, null, table(rows.slice(0, 8)),
    rest.length ? el("details", null, null,
      el("summary", null, null, `${rest.length} more inputs`), table(rest)) : null);
}

/** Points of an alert of NEWS2's own: of an incomplete set also the most, or the least would look like the score. */
function pointsOf(alert) {
  const most = alert.news2 && !alert.news2.complete ? alert.news2.high : null;
  return most === null ? `${number(alert.points)} points` : `${number(alert.points)} to ${most} points (incomplete)`;
}

/** Parameters that gave an alert of NEWS2's own its points. */
function points(alert) {
  const scoring = (alert.news2?.parts ?? []).filter((part) => part.low > 0);
  const shown = scoring.map((part) => `${featureName(part.parameter)} ${part.low}`);
  return shown.length ? el("p", "muted", null, `${shown.join(", ")}.`) : null;
}

function weightBar(contribution, most) {
  const width = 80;
  const reach = Math.round((width / 2) * Math.min(1, Math.abs(contribution ?? 0) / most));
  const up = (contribution ?? 0) >= 0;
  return svg("svg", "weight", { viewBox: `0 0 ${width} 10`, width, height: 10, "aria-hidden": "true" },
    svg("line", "floor", { x1: width / 2, x2: width / 2, y1: 0, y2: 10 }),
    svg("rect", up ? "raises" : "lowers", { x: up ? width / 2 : width / 2 - reach, y: 1.5, width: reach, height: 7 }));
}

function signed(contribution) {
  if (contribution === null) return "?";
  if (Math.abs(contribution) < LEAST) return "0";
  return `${contribution > 0 ? "+" : "−"}${Math.abs(contribution).toFixed(Math.abs(contribution) < 0.01 ? 3 : 2)}`;
}

/** The age of a measurement, marked where it is too old. */
function aged(time, context) {
  if (!time) return el("td", "number muted", null, "–");
  const ms = Date.parse(time);
  const age = context.reference - ms;
  const stale = age >= context.facts.stale_s * 1000;
  return el("td", stale ? "number stale" : "number", { title: dateTime(ms) }, stale ? `stale ${span(age)}` : span(age));
}

function forecast(alert) {
  if (!alert.forecast.length) return null;
  const points = alert.forecast.map((p) =>
    `${featureName(p.feature)} ${number(p.last)} → ${number(p.value)} ${unitName(p.unit)}`.trim());
  return el("p", "muted", null, `Expected in ${span(alert.forecast[0].horizon_s * 1000)}: ${points.join("; ")}.`);
}

function provenance(alert) {
  const { model, source } = alert;
  const facts = [
    ["Outcome", alert.outcome],
    ["Raised", dateTime(Date.parse(alert.raised_at))],
    ["Expires unless scored", dateTime(Date.parse(alert.expires_at))],
    ["Model", `${model.name} version ${model.version} on ${alert.backend}`],
    ["Digest", model.digest.slice(0, 16)],
    ["Policy", `version ${alert.policy_version}`],
    ["Sequence", String(alert.sequence)],
    ["Alert", alert.id],
    ["Record", `${source.topic}/${source.partition}/${source.offset}`],
  ];
  return el("details", "provenance", null, el("summary", null, null, "Where this comes from"),
    el("dl", null, null, ...facts.flatMap(([label, value]) =>
      [el("dt", null, null, label), el("dd", null, null, visible(value))])));
}

function bedside(row, context) {
  if (!row.vitals.length) return null;
  return el("section", null, { "aria-label": "Bedside signs" }, el("h3", null, null, "Bedside signs"),
    el("table", null, null,
      el("thead", null, null, el("tr", null, null,
        ...["Sign", "Value", "Measured", "Age"].map((t) => el("th", null, { scope: "col" }, t)))),
      el("tbody", null, null, ...row.vitals.map((one) => el("tr", null, null,
        el("th", null, { scope: "row" }, featureName(one.feature)),
        el("td", "number", null, `${number(one.value)} `, el("small", null, null, unitName(one.unit))),
        el("td", "number", null, one.at === null ? "–" : dateTime(one.at)),
        aged(one.at === null ? null : new Date(one.at).toISOString(), context))))));
}

function news2(row, alerts) {
  const score = row.news2;
  if (!score) return null;
  const why = (part) => {
    if (score.stale.includes(part.parameter)) return "too old";
    return part.missing ? "missing" : "";
  };
  const beside = alerts.find((alert) => alert.qsofa && alert.mews);
  const range = (total) => (total.low === total.high ? `${total.low}` : `${total.low}–${total.high}`);
  return el("section", null, { "aria-label": "NEWS2" },
    el("h3", null, null, "NEWS2 ", news2Badge(score),
      el("span", "muted", null, `response ${score.response}; SpO₂ scale ${score.scale}`)),
    el("table", null, null, el("tbody", null, null, ...score.parts.map((part) => el("tr", null, null,
      el("th", null, { scope: "row" }, featureName(part.parameter)),
      el("td", "number", null, range(part)),
      el("td", part.missing ? "stale" : "", null, why(part)))))),
    beside ? el("p", "muted", null,
      `At the last alert: qSOFA ${range(beside.qsofa)}, MEWS ${range(beside.mews)}.`) : null);
}

function history(closed) {
  if (!closed.length) return null;
  return el("section", null, { "aria-label": "Ended alerts" }, el("h3", null, null, "Ended alerts"),
    el("ul", null, null, ...closed.map((one) => el("li", null, null,
      `${one.by === "news2" ? "NEWS2" : visible(one.by)} ${visible(one.severity)}, raised ${dateTime(one.raised_at)}, ` +
      `${visible(one.transition)} ${dateTime(one.at)}`))));
}
