// The beats, who is at work, and each entry's last and next tick.

import { whereOf } from "./locks.js";
import { cell, part } from "./table.js";
import { byId, count, duration, element, name, setText, visible } from "./text.js";

let drawnOf = null;

export function drawBeats(state, now) {
  const what = JSON.stringify(state.beats);
  if (what !== drawnOf) {
    drawnOf = what;
    byId("beat-list").replaceChildren(...state.beats.flatMap(drawBeat));
    byId("beats").hidden = byId("to-beats").hidden = state.beats.length === 0;
  }
  drawBeatTimes(now);
}

export function drawBeatTimes(now) {
  for (const one of document.querySelectorAll("#beat-list [data-ago]")) setText(one, `${duration(now - one.dataset.ago)} ago`);
  for (const one of document.querySelectorAll("#beat-list [data-for]")) setText(one, duration(now - one.dataset.for));
  for (const one of document.querySelectorAll("#beat-list [data-due]")) {
    const left = one.dataset.due - now;
    setText(one, left >= 0 ? `in ${duration(left)}` : `overdue ${duration(-left)}`);
    one.classList.toggle("bad", left < -60);
  }
}

function drawEntry(entry) {
  const row = part("tr", "row");
  cell(row, "", "entry").append(name(entry.entry));
  cell(row, "task", "", visible(entry.task));
  cell(row, "", "", visible(entry.schedule));
  const last = cell(row, "last", "number", "–"), next = cell(row, "next", "number", "–");
  if (entry.last !== null) last.dataset.ago = entry.last;
  if (entry.next !== null) next.dataset.due = entry.next;
  cell(row, "runs", "number", count(entry.count));
  return row;
}

function drawBeat(beat) {
  const where = (one) => (one.readable ? whereOf(one) : "a process that this version can't read");
  const line = element("p", "beat", `${visible(beat.name)}: `);
  if (beat.at_work) {
    line.append(`${where(beat.at_work)} is at work`);
    if (beat.since !== null) {
      const since = element("span");
      since.dataset.for = beat.since;
      line.append(" for ", since);
    }
  } else line.append("no beat is at work, nothing is scheduled");
  const standby = beat.standing_by.length ? `standing by: ${beat.standing_by.map(where).join(", ")}` : "nobody stands by";
  line.append(`; ${standby}; ${count(beat.takeovers, "takeover", "takeovers")} before`);
  const table = byId("beat-table").content.firstElementChild.cloneNode(true);
  table.setAttribute("aria-label", `Entries of ${visible(beat.name)}`);
  table.tBodies[0].append(...beat.entries.map(drawEntry));
  return [line, table];
}
