// Who held which lock when: a row for each lock, a bar for each holding. What the bars show is said in each row's label.

import { byId, count, duration, element, name, visible } from "./text.js";

let drawnAt = 0;
let drawnOf = null;

// Drawn anew when what it shows has changed, and else for the time that goes on.
export function drawTimeline(state, now) {
  const what = JSON.stringify(state.timeline);
  if (what === drawnOf && now - drawnAt < 2) return;
  drawnOf = what;
  drawnAt = now;
  const span = state.timeline_seconds, start = now - span;
  byId("timeline").replaceChildren(...state.timeline.map((row) => drawRow(row, start, now)));
  const [left, middle] = byId("scale").children;
  left.textContent = `${span / 60} min ago`;
  middle.textContent = `${span / 120} min`;
  byId("minutes").textContent = span / 60;
  byId("scale").hidden = state.timeline.length === 0;
  const more = state.timeline_locks - state.timeline.length;
  byId("timeline-note").textContent = state.timeline.length === 0
    ? "Nothing seen yet: it shows what this page's server saw since its start."
    : more > 0
      ? `The ${count(state.timeline.length)} most contended and busiest of ${count(state.timeline_locks)} locks; the filter shows others.`
      : "";
}

function drawRow(row, start, now) {
  const contended = row.waiting > 0;
  const item = element("li", contended ? "contended" : ""), track = element("div", "track");
  const last = row.bars.at(-1);
  // What the lock is about says more than a digest.
  const label = name(last?.about ? `${last.task} ${last.about}` : row.lock, "name");
  label.title = visible(row.lock);
  let held = 0, going = false;
  for (const bar of row.bars) {
    const from = Math.max(bar.began, start), to = bar.ended === null ? now : bar.ended;
    if (to < start) continue;
    held += Math.max(0, to - from);
    going = going || bar.ended === null;
    const drawn = element("div", bar.ended === null ? "bar going" : "bar");
    drawn.style.left = `${((from - start) / (now - start)) * 100}%`;
    drawn.style.width = `${(Math.max(0, to - from) / (now - start)) * 100}%`;
    drawn.title = [bar.task, bar.about, bar.task_id, bar.host].filter((one) => one).map(visible).join("\n") + `\n${duration(to - bar.began)}`;
    track.append(drawn);
  }
  track.setAttribute("role", "img");
  track.setAttribute("aria-label", `held ${count(row.holds, "time", "times")}, ${duration(held)} in all${going ? ", held now" : ""}${contended ? ", others wait for it" : ""}`);
  item.append(label, track);
  return item;
}
