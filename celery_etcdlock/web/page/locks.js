// The table of locks. A holding keeps its rows for as long as it is shown, so that the focus, a selection and opened
// details outlive the updates that come several times a second.

import { cell, part } from "./table.js";
import { atTime, byId, count, duration, element, name, setText, visible } from "./text.js";

const KINDS = {
  claim: "queued: taken when the task was called",
  handover: "between two runs of its task",
  "least hold": "kept for its least time",
  window: "kept until it expires",
};

// In the place of an owner, for a lock that is free while messages come back for it.
const NOBODY = { readable: false, nobody: true, token: "", fencing_token: 0, ttl_seconds: null, lease: "" };

const shown = new Map(); // key of a holding -> its tbody and what changes in it

function make(lock, owner, number, ask) {
  const body = part("tbody", "rowgroup"), row = part("tr", "row"), detail = part("tr", "row", "detail");
  detail.id = `detail-${number}`;
  detail.hidden = true;
  const opener = element("button", "opener");
  opener.type = "button";
  opener.setAttribute("aria-expanded", "false");
  opener.setAttribute("aria-controls", detail.id);
  opener.append(name(lock.lock));
  opener.title = visible(lock.lock);
  cell(row, "", "lock").append(opener);
  const parts = { body, row, detail, opener };
  parts.about = element("small", "about");
  opener.parentNode.append(parts.about);
  parts.task = cell(row, "task", "task");
  parts.where = cell(row, "on", "where");
  parts.age = cell(row, "for", "number age");
  parts.ttl = cell(row, "TTL", "number ttl");
  const waiting = cell(row, "waiting", "number waiting");
  parts.waiting = element("span");
  parts.retrying = element("small");
  parts.joining = element("small");
  waiting.append(parts.waiting, " ", parts.retrying, " ", parts.joining);
  const button = element("button", "", "Release…");
  button.type = "button";
  button.hidden = owner === NOBODY;
  cell(row, "", "button").append(button);
  const all = cell(detail);
  all.colSpan = 7;
  parts.facts = element("dl");
  parts.line = element("div", "line");
  all.append(parts.facts, parts.line);
  opener.addEventListener("click", () => {
    detail.hidden = !detail.hidden;
    opener.setAttribute("aria-expanded", String(!detail.hidden));
  });
  button.addEventListener("click", () => ask(parts.lock, parts.owner));
  button.setAttribute("aria-label", `Release ${visible(lock.lock)}${owner.readable ? `, held by ${visible(owner.task)}` : ""}`);
  body.append(row, detail);
  return parts;
}

export function whereOf(one) {
  return one.readable ? `${visible(one.host)}:${one.pid}` : "–";
}

function idOf(one) {
  if (!one.readable) return "–";
  if (one.task_id === null) return "none: held by a process, not by a task";
  const retry = one.retries ? `, retry ${one.retries}` : "";
  return visible(one.task_id) + retry;
}

function update(parts, lock, owner, now) {
  Object.assign(parts, { lock, owner });
  const others = lock.retrying + lock.joining;
  parts.row.classList.toggle("contended", lock.waiting + others > 0);
  setText(parts.about, owner.about ? visible(owner.about) : "");
  const idle = KINDS[owner.kind];
  parts.row.classList.toggle("idle", idle !== undefined);
  const kind = idle ?? (owner.by === "process" ? "a process, not a task" : "");
  const task = owner.readable ? visible(owner.task) : owner.nobody ? "free: nobody holds it now" : "a record that this version can't read";
  if (parts.task.dataset.shown !== `${task} ${kind}`) {
    parts.task.dataset.shown = `${task} ${kind}`;
    parts.task.replaceChildren(element("bdi", "", task));
    parts.task.title = task;
    if (kind) parts.task.append(element("small", "", kind));
  }
  setText(parts.where, whereOf(owner));
  parts.where.title = whereOf(owner);
  setText(parts.ttl, owner.ttl_seconds === null ? "–" : duration(owner.ttl_seconds));
  setText(parts.waiting, lock.waiting ? count(lock.waiting) : others ? "" : "–");
  setText(parts.retrying, lock.retrying ? `${count(lock.retrying)} retrying` : "");
  setText(parts.joining, lock.joining ? `${count(lock.joining)} joining` : "");
  drawAge(parts, now);
  drawFacts(parts, lock, owner);
}

function drawFacts(parts, lock, owner) {
  const facts = [["lock", visible(lock.lock)]];
  if (owner.readable) {
    facts.push(["task", visible(owner.task)], ["task id", idOf(owner)], ["on", `${visible(owner.host)}, pid ${owner.pid}`]);
    if (owner.about) facts.push(["arguments", visible(owner.about)]);
    facts.push(["since", atTime(owner.since)]);
    if (KINDS[owner.kind]) facts.push(["state", KINDS[owner.kind]]);
    if (owner.until) facts.push(["until", atTime(owner.until)]);
    if (owner.limit > 1) facts.push(["may hold it at once", count(owner.limit)]);
  }
  if (!owner.nobody) facts.push(["fencing token", String(owner.fencing_token)], ["lease", owner.lease]);
  if (lock.retrying) facts.push(["retrying", count(lock.retrying, "message comes back", "messages come back") + " for the lock"]);
  if (lock.joining) facts.push(["joining", count(lock.joining, "message waits", "messages wait") + " for the result of its task"]);
  const more = lock.waiting - lock.waiters.length;
  const text = JSON.stringify([facts, lock.waiters, more]);
  if (parts.factsText === text) return;
  parts.factsText = text;
  parts.facts.replaceChildren(...facts.map(([title, value]) => {
    const pair = element("div");
    const said = element("dd");
    said.append(element("bdi", "", value));
    pair.append(element("dt", "", title), said);
    return pair;
  }));
  const list = element("ol");
  for (const waiter of lock.waiters) {
    const item = element("li");
    if (waiter.readable) item.append(name(waiter.task_id ?? waiter.task), ` on ${whereOf(waiter)}, since ${atTime(waiter.since)}`);
    else item.append("a record that this version can't read");
    list.append(item);
  }
  parts.line.replaceChildren(...(lock.waiting ? [element("p", "", "waiting, in order:"), list] : []));
  if (more > 0) parts.line.append(element("p", "", `and ${count(more)} more`));
}

function drawAge(parts, now) {
  setText(parts.age, parts.owner.readable ? duration(now - parts.owner.since) : "–");
}

export function drawAges(now) {
  for (const parts of shown.values()) drawAge(parts, now);
}

let made = 0;

export function drawLocks(state, now, ask) {
  const table = byId("locks");
  const wanted = new Map();
  for (const lock of state.locks) {
    for (const owner of lock.owners.length ? lock.owners : [NOBODY]) {
      const key = JSON.stringify([lock.lock, owner.token, owner.fencing_token]);
      const parts = shown.get(key) ?? make(lock, owner, made++, ask);
      update(parts, lock, owner, now);
      wanted.set(key, parts);
    }
  }
  const focused = document.activeElement;
  for (const [key, parts] of shown) if (!wanted.has(key)) parts.body.remove();
  shown.clear();
  let before = table.tHead;
  for (const [key, parts] of wanted) {
    shown.set(key, parts);
    if (before.nextElementSibling !== parts.body) before.after(parts.body);
    before = parts.body;
  }
  table.hidden = shown.size === 0;
  restoreFocus(focused, table);
}

// A row that moved has lost the focus; one that is gone leaves it at the table's heading, not at the top of the page.
function restoreFocus(focused, table) {
  if (document.activeElement === focused || document.querySelector("dialog[open]")) return;
  if (table.contains(focused)) focused.focus({ preventScroll: true });
  else if (!focused.isConnected) byId("locks-heading").focus({ preventScroll: true });
}
