// Elements and text. Text enters the page as text nodes and attributes alone: nothing is ever parsed as HTML, and
// the page's Content-Security-Policy makes the browser refuse where it were.

const SVG = "http://www.w3.org/2000/svg";

/** An element with a class, attributes and children; children that are null or false are left out. */
export function el(tag, name, attributes, ...children) {
  return filled(document.createElement(tag), name, attributes, children);
}

/** The same in SVG. */
export function svg(tag, name, attributes, ...children) {
  return filled(document.createElementNS(SVG, tag), name, attributes, children);
}

function filled(node, name, attributes, children) {
  if (name) node.setAttribute("class", name);
  for (const [key, value] of Object.entries(attributes ?? {})) {
    if (value !== null && value !== undefined) node.setAttribute(key, value);
  }
  node.append(...given(children));
  return node;
}

/** Children without those that are null or false: the document would write these out as words. */
export function given(children) {
  return children.filter((child) => child !== null && child !== undefined && child !== false);
}

// Characters that show nothing or turn the text around: two identifiers that differ in one must not look alike.
const UNSEEN = /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Cn}\p{Zl}\p{Zp}\u115f\u1160\u3164\uffa0]/gu;

/** Text with every invisible character written out, such as [U+202E]. */
export function visible(text) {
  const code = (c) => `[U+${c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}]`;
  return String(text).replace(UNSEEN, code);
}

const NAMES = {
  heart_rate: "Heart rate",
  systolic_pressure: "Systolic pressure",
  systolic_pressure_invasive: "Systolic pressure (line)",
  respiratory_rate: "Respiratory rate",
  oxygen_saturation: "SpO₂",
  supplemental_oxygen: "Supplemental oxygen",
  fio2: "FiO₂",
  temperature: "Temperature",
  gcs: "GCS",
  consciousness: "Consciousness",
  arterial_ph: "Arterial pH",
  arterial_pco2: "Arterial pCO₂",
  arterial_po2: "Arterial pO₂",
  ast: "AST",
  alt: "ALT",
  icu_type: "ICU type",
};

/** A feature's name for readers. */
export function featureName(feature) {
  if (Object.hasOwn(NAMES, feature)) return NAMES[feature];
  const words = visible(feature).replaceAll("_", " ");
  return words.charAt(0).toUpperCase() + words.slice(1);
}

const UNITS = { 1: "", "mm[Hg]": "mmHg", Cel: "°C", a: "years", "10*3/uL": "10³/µL" };

/** A UCUM unit as it is printed. */
export function unitName(unit) {
  return Object.hasOwn(UNITS, unit) ? UNITS[unit] : visible(unit);
}

/** A value in at most four characters where that says enough. */
export function number(value) {
  if (!Number.isFinite(value)) return "?";
  const size = Math.abs(value);
  if (size >= 1e6 || (size > 0 && size < 1e-3)) return value.toExponential(1);
  return String(Number(value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : 2)));
}

/** A probability with two decimals; 1.00 and 0.00 are never claimed of what is less or more. */
export function probability(risk) {
  if (risk > 0 && risk < 0.005) return "<0.01";
  if (risk < 1 && risk >= 0.995) return ">0.99";
  return risk.toFixed(2);
}

/** A time span in its greatest unit: 5 s, 12 min, 3 h, 2 d. */
export function span(ms) {
  const s = Math.max(0, Math.floor(ms / 1000));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  if (s < 172800) return `${Math.floor(s / 3600)} h`;
  return `${Math.floor(s / 86400).toLocaleString("en")} d`;
}

const two = (n) => String(n).padStart(2, "0");

/** 14:05 in the reader's time zone. */
export function clock(ms) {
  const t = new Date(ms);
  return `${two(t.getHours())}:${two(t.getMinutes())}`;
}

/** 14:05:09 in the reader's time zone. */
export function clockSeconds(ms) {
  return `${clock(ms)}:${two(new Date(ms).getSeconds())}`;
}

/** 2026-01-31 14:05 in the reader's time zone. */
export function dateTime(ms) {
  const t = new Date(ms);
  return `${t.getFullYear()}-${two(t.getMonth() + 1)}-${two(t.getDate())} ${clock(ms)}`;
}
