// What several parts draw: severities as shape, colour and word together; NEWS2; trend lines.

import { el, probability, svg, visible } from "./dom.js";

// By rank, 0 to 4. A shape of its own for each, so that colour carries nothing alone.
const SHAPES = [
  null,
  { name: "circle", d: "M8 2.5a5.5 5.5 0 1 1 0 11a5.5 5.5 0 1 1 0-11z" },
  { name: "diamond", d: "M8 1L15 8L8 15L1 8z" },
  { name: "triangle", d: "M8 1.2L15.4 14.4H.6z" },
  { name: "octagon", d: "M5 .8h6L15.2 5v6L11 15.2H5L.8 11V5z" },
];

export function shape(rank) {
  const { name, d } = SHAPES[rank];
  const icon = { viewBox: "0 0 16 16", "aria-hidden": "true", "data-shape": name };
  return svg("svg", `shape rank-${rank}`, icon, svg("path", null, { d }));
}

/** A severity: its shape and its name. */
export function severity(rank, word) {
  return el("span", `tag rank-${rank}`, null, shape(rank), el("bdi", null, null, visible(word)));
}

/** NEWS2 as a number, or as the interval of an incomplete set, which never looks like a normal score. */
export function news2Badge(score) {
  if (!score) return el("span", "none", { title: "No NEWS2 known" }, "–");
  const text = score.complete ? `${score.low}` : `${score.low}–${score.high}`;
  const told = [
    score.complete ? `NEWS2 ${score.low}` : `NEWS2 ${score.low} to ${score.high}, incomplete`,
    `response: ${score.response}`,
    score.single.length ? `3 in one parameter: ${score.single.map(visible).join(", ")}` : null,
    score.missing.length ? `missing: ${score.missing.map(visible).join(", ")}` : null,
    score.stale.length ? `too old: ${score.stale.map(visible).join(", ")}` : null,
  ];
  const title = told.filter(Boolean).join("; ");
  const name = `badge response-${score.response}${score.complete ? "" : " partial"}`;
  return el("span", name, { title, role: "img", "aria-label": title }, text);
}

/** What a NEWS2 badge cannot show: that it is incomplete, or that one parameter alone scores 3. */
export function news2Note(score) {
  if (!score) return null;
  if (!score.complete) return el("small", "note", null, "incomplete");
  return score.response === "low-medium" ? el("small", "note", null, "3 in one") : null;
}

/**
 * A line of risks over time, 0 to 1, with dashed thresholds.
 *
 * points: [ms, risk], oldest first. from, to: ms at the edges. levels: [{enter, rank}].
 */
export function trendLine(points, from, to, levels, width, height) {
  const label = points.length
    ? `risk from ${probability(points[0][1])} to ${probability(points.at(-1)[1])}`
    : "no trend yet";
  const frame = { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": label };
  const x = (ms) => Math.round(10 * (2 + (width - 6) * Math.min(1, Math.max(0, (ms - from) / (to - from))))) / 10;
  const y = (risk) => Math.round(10 * (height - 3 - (height - 6) * Math.min(1, Math.max(0, risk)))) / 10;
  const shown = points.filter(([ms]) => ms >= from);
  const line = shown.map(([ms, risk]) => `${x(ms)},${y(risk)}`).join(" ");
  const end = shown.at(-1);
  const floor = height - 3;
  return svg("svg", "trend-line", frame,
    svg("line", "floor", { x1: 2, x2: width - 2, y1: floor, y2: floor }),
    ...levels.map(({ enter, rank }) => {
      const at = { x1: 2, x2: width - 2, y1: y(enter), y2: y(enter) };
      return svg("line", `threshold rank-${rank}`, at);
    }),
    shown.length > 1 && svg("polygon", "area",
      { points: `${x(shown[0][0])},${floor} ${line} ${x(end[0])},${floor}` }),
    shown.length > 1 && svg("polyline", "line", { points: line }),
    end && svg("circle", "end", { cx: x(end[0]), cy: y(end[1]), r: 2.2 }));
}

/** Thresholds that a patient's line is held against: the policy's, with those that an open alert states itself. */
export function levelsOf(row, levels) {
  const stated = row.episodes.filter((one) => one.by !== "news2" && one.threshold <= 1);
  const words = new Set(stated.map((one) => one.severity));
  return [
    ...levels.filter((one) => !words.has(one.severity)),
    ...stated.map((one) => ({ severity: one.severity, rank: one.rank, enter: one.threshold })),
  ].sort((a, b) => a.enter - b.enter);
}
