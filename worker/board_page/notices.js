// What the header and the notices say of the line to the board, the broker and the feed.

import { clockSeconds, dateTime, el, span, visible } from "./dom.js";

const FAR_MS = 600000; // event time that is farther from the clock is told

const at = (id) => document.getElementById(id);
const shownText = new Map();

function setText(node, text) {
  if (shownText.get(node) !== text) {
    shownText.set(node, text);
    node.textContent = text;
  }
}

/**
 * Show how current the page is.
 *
 * feed: as the board told it last, null before. facts: of the board. lineUp, lineSince: whether the board is heard,
 * and since when that holds, by this browser's clock. offset: the board's clock less ours, in ms.
 */
export function showState({ feed, facts, lineUp, lineSince, offset }) {
  const now = Date.now() + offset;
  const quiet = feed && feed.last !== null ? now - feed.last : null;
  const silent = quiet !== null && quiet > facts.quiet_s * 1000;
  const state = !lineUp ? "lost" : !feed ? "wait" : !feed.kafka_up ? "lost" : feed.loading || silent ? "wait" : "live";
  at("link").dataset.state = state;
  setText(at("link-state"), !lineUp ? "Not connected" : !feed ? "Connecting" : !feed.kafka_up ? "No broker"
    : feed.loading ? "Reading back" : silent ? "No data" : "Live");
  setText(at("link-detail"), !lineUp ? `since ${clockSeconds(lineSince)}`
    : quiet === null ? "" : `last record ${quiet < 5000 ? "now" : `${span(quiet)} ago`}`);
  const notices = [];
  if (!lineUp) {
    notices.push(["grave", `The page has lost the board since ${clockSeconds(lineSince)}. What it shows may be out of date.`]);
  } else if (feed && !feed.kafka_up) {
    notices.push(["grave", `The broker does not answer since ${clockSeconds(feed.kafka_since - offset)}. What is shown may be out of date.`]);
  } else if (silent) {
    notices.push(["grave", `No data for ${Math.floor(quiet / 1000).toLocaleString("en")} s, since ${clockSeconds(feed.last - offset)}. Nothing here is newer.`]);
  }
  if (feed?.loading && feed.kafka_up) {
    notices.push(["grave", "Reading what came before: what is shown is not current yet."]);
  }
  if (feed && !feed.loading) notices.push(...topicNotices(feed));
  if (feed && feed.event !== null) {
    const behind = feed.event_at - feed.event;
    if (Math.abs(behind) > FAR_MS) {
      notices.push(["mild", `Measurements are ${span(Math.abs(behind))} ${behind > 0 ? "behind" : "ahead of"} the clock; ` +
        `ages count from the feed's newest, ${dateTime(feed.event)}.`]);
    }
  }
  // Seconds count up in sight; what is read out changes only with the state.
  setText(at("announce-state"), at("link-state").textContent);
  const text = notices.map(([kind, line]) => `${kind}|${line}`).join("\n");
  if (shownText.get(at("notices")) === text) return;
  shownText.set(at("notices"), text);
  at("notices").replaceChildren(...notices.map(([kind, line]) => el("p", kind, null, line)));
}

function topicNotices(feed) {
  const found = [];
  if (!feed.alerts.exists) found.push(["grave", `Topic ${visible(feed.alerts.name)} does not exist, or may not be read: no alert can be shown.`]);
  const scores = visible(feed.scores.name), alertsAlone = "only patients with alerts are shown, as their last alert left them. " +
    "Unless RISKSTREAM_PUBLISH_SCORES=true is set on the workers, none will come.";
  if (!feed.scores.exists) {
    found.push(["mild", `Topic ${scores} does not exist, or may not be read: ${alertsAlone}`]);
  } else if (feed.scores.taken === 0 && feed.alerts.taken > 0) {
    // Not set, or set and only NEWS2 or findings have raised alerts so far: both look the same from here.
    found.push(["mild", `No scores have come on ${scores}: ${alertsAlone}`]);
  } else if (feed.scores.taken === 0) {
    found.push(["mild", `Nothing has come yet, neither on ${scores} nor on ${visible(feed.alerts.name)}.`]);
  }
  if (feed.full) found.push(["grave", "There are more patients than RISKSTREAM_BOARD_PATIENTS: those heard of longest ago are left out."]);
  if (feed.unreadable) found.push(["mild", `${feed.unreadable.toLocaleString("en")} records could not be read and were left out.`]);
  return found;
}
