// Findings of pictures: the mark in a line, and the section of the panel.

import { dateTime, el, probability, span, svg, visible } from "./dom.js";

const FILMS = new Set(["CR", "DX", "RG", "DR"]);
const CHESTS = new Set(["CHEST", "THORAX"]);
const LISTED = 8; // classes; more are folded

/** What kind of picture it was, in a word or two. */
function kind(modality, bodyPart) {
  if (FILMS.has(modality.toUpperCase()) && CHESTS.has(bodyPart.toUpperCase())) return "CXR";
  return [modality, bodyPart].filter(Boolean).map(visible).join(" ") || "Image";
}

/** A flag word as it is read. */
function words(flag) {
  return visible(flag).replaceAll(/[_-]+/g, " ");
}

function doubts(count) {
  return `${count} quality ${count === 1 ? "flag" : "flags"}`;
}

/** The newest picture's finding in one line; null where there is none. */
export function imagingMark(one, ages) {
  if (!one) return null;
  const name = kind(one.modality, one.body_part);
  const outcome = visible(one.outcome);
  const told = `${name} of ${dateTime(one.at)}: ${outcome}, probability ${probability(one.risk)}`;
  return el("div", one.doubts ? "imaging doubtful" : "imaging",
    { title: one.doubts ? `${told}; ${doubts(one.doubts)}` : told },
    el("span", "film", null, name, one.doubts > 0 && "?"),
    el("b", null, null, probability(one.risk)),
    el("bdi", null, null, outcome),
    one.doubts > 0 && el("span", "unseen", null, `, ${doubts(one.doubts)}`),
    ages.add("imaging-age", one.at));
}

let drawn = new Map(); // address and board -> picture, so that a panel drawn again neither flickers nor asks again

/** The section of the panel; null where nothing is known. */
export function imaging(detail, context) {
  const before = drawn;
  drawn = new Map();
  if (!detail.findings.length) return null;
  return el("section", null, { "aria-label": "Imaging" }, el("h3", null, null, "Imaging"),
    ...detail.findings.map((one) => finding(one, detail.row.key, context, before)));
}

function finding({ number, picture, finding: one }, key, context, before) {
  const name = kind(one.modality, one.body_part);
  const ms = Date.parse(one.time);
  const title = `${name}: ${visible(one.outcome)} ${probability(one.risk)}`;
  const view = one.view && `view ${visible(one.view)}`;
  const map = picture && activation(`/api/patients/${key}/findings/${number}.png`, title, ms, context, before);
  return el("article", "finding", { "aria-label": `Finding ${title}` },
    el("h4", null, null, `${name}: `, el("bdi", null, null, visible(one.outcome)), " ",
      el("strong", null, null, probability(one.risk))),
    el("p", "muted", null, [`Taken ${dateTime(ms)}, ${span(context.reference - ms)} ago`, view]
      .filter(Boolean).join("; ")),
    one.quality.length > 0 && el("p", "doubts", null, el("b", null, null, "Doubtful picture: "),
      one.quality.map(words).join(", ")),
    el("div", map ? "beside" : null, null, map, classes(one)),
    provenance(one));
}

function activation(address, title, ms, context, before) {
  const name = `${context.facts.boot} ${address}`;
  const picture = before.get(name) ?? el("img", null, {
    src: address, alt: `Where the model looked: its activation over the picture of ${dateTime(ms)}, ${title}`,
  });
  drawn.set(name, picture);
  return el("figure", "activation", null, picture, el("figcaption", "muted", null, "Where the model looked"));
}

/** Probabilities, the greatest first; classes that make up the outcome are named so. */
function classes(one) {
  const sorted = [...one.classes].sort((a, b) => b.probability - a.probability);
  const rows = sorted.map(({ name, probability: p }) => el("tr", null, null,
    el("th", null, { scope: "row" }, el("bdi", null, null, visible(name)),
      one.findings.includes(name) && el("small", "counted", null, "in risk")),
    el("td", "weight-cell", null, bar(p, one.findings.includes(name))),
    el("td", "number", null, probability(p))));
  const table = (some) => el("table", "classes", null,
    el("thead", null, null, el("tr", null, null,
      el("th", null, { scope: "col" }, "Class"), el("th", "weight-cell", { scope: "col" }),
      el("th", "number", { scope: "col" }, "Probability"))),
    el("tbody", null, null, ...some));
  const rest = rows.slice(LISTED);
  return el("div", null, null, table(rows.slice(0, LISTED)),
    rest.length > 0 && el("details", null, null, el("summary", null, null, `${rest.length} more classes`), table(rest)));
}

function bar(p, counted) {
  const width = 52;
  return svg("svg", "weight", { viewBox: `0 0 ${width} 10`, width, height: 10, "aria-hidden": "true" },
    svg("line", "floor", { x1: 0, x2: width, y1: 9.5, y2: 9.5 }),
    svg("rect", counted ? "raises" : "lowers", { x: 0, y: 1.5, width: Math.round(width * p), height: 7 }));
}

function provenance(one) {
  const { model, source } = one;
  const facts = [
    ["Digest", model.digest.slice(0, 16)],
    ["Backend", one.backend],
    ["Picture's SHA-256", one.image_sha256.slice(0, 16)],
    ["Finding", one.id],
    ["Record", `${source.topic}/${source.partition}/${source.offset}`],
  ];
  return el("details", "provenance", null,
    el("summary", null, null, "Model ", el("bdi", null, null, visible(model.name)), ` version ${model.version}`),
    el("dl", null, null, ...facts.flatMap(([label, value]) =>
      [el("dt", null, null, label), el("dd", null, null, visible(value))])));
}
