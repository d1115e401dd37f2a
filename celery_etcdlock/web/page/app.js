// The page of locks: draws the state that the server sends over one event stream, and asks for releases.
// Everything that comes from tasks is put in as text, never as HTML.
"use strict";

const byId = (id) => document.getElementById(id);
let state = null;
let skew = 0; // seconds that the server's clock is ahead of this one
let chosen = null; // the owner whose release is being confirmed

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function duration(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const two = (number) => String(number).padStart(2, "0");
  if (whole < 60) return `${whole}s`;
  if (whole < 3600) return `${Math.floor(whole / 60)}m${two(whole % 60)}s`;
  if (whole < 86400) return `${Math.floor(whole / 3600)}h${two(Math.floor((whole % 3600) / 60))}m`;
  return `${Math.floor(whole / 86400)}d${two(Math.floor((whole % 86400) / 3600))}h`;
}

const now = () => Date.now() / 1000 + skew;

function cell(row, label, text, className) {
  const made = element("td", className, text);
  if (label) made.dataset.label = label;
  row.append(made);
  return made;
}

function drawOwner(lock, owner) {
  const row = element("tr");
  row.dataset.lock = lock.lock;
  cell(row, "", lock.lock, "lock");
  const who = cell(row, "", owner.readable ? owner.task : "a record that this version can't read");
  if (owner.readable) who.append(element("small", "", owner.task_id + (owner.retries ? `, retry ${owner.retries}` : "")));
  cell(row, "on", owner.readable ? `${owner.host}:${owner.pid}` : "–");
  const age = cell(row, "for", "", "number age");
  if (owner.readable) age.dataset.since = owner.since;
  cell(row, "TTL", owner.ttl_seconds === null ? "–" : duration(owner.ttl_seconds), "number");
  const waiting = cell(row, "waiting", lock.waiting ? String(lock.waiting) : "–", "number");
  if (lock.waiting) waiting.title = lock.waiters.map((waiter) => waiter.task_id).join("\n");
  const button = element("button", "", "Release…");
  button.addEventListener("click", () => ask(lock, owner));
  cell(row, "", undefined).append(button);
  return row;
}

function drawTable() {
  const wanted = byId("filter").value.trim().toLowerCase();
  const rows = [];
  for (const lock of state.locks) {
    for (const owner of lock.owners) {
      const text = [lock.lock, owner.task, owner.task_id, owner.host].join(" ").toLowerCase();
      if (text.includes(wanted)) rows.push(drawOwner(lock, owner));
    }
  }
  byId("locks").tBodies[0].replaceChildren(...rows);
  byId("locks").hidden = rows.length === 0;
  byId("nothing").hidden = rows.length > 0;
  byId("nothing").textContent =
    state.held === null ? "Nobody knows which locks are held: the lock store hasn't answered yet."
    : state.held ? "No lock matches the filter."
    : state.used === false ? "No locks held. This prefix was never used: is it the right app, prefix and endpoint?"
    : "No locks held.";
  drawAges();
}

function drawAges() {
  for (const age of document.querySelectorAll(".age[data-since]")) age.textContent = duration(now() - age.dataset.since);
}

function beatRow(entry) {
  const row = element("tr");
  const ago = (seconds) => (seconds >= 0 ? `in ${duration(seconds)}` : `overdue ${duration(-seconds)}`);
  cell(row, "", entry.entry, "entry");
  cell(row, "", entry.task);
  cell(row, "", entry.schedule);
  cell(row, "last", entry.last === null ? "–" : `${duration(now() - entry.last)} ago`, "number");
  cell(row, "next", entry.next === null ? "–" : ago(entry.next - now()), "number");
  cell(row, "runs", String(entry.count), "number");
  return row;
}

function drawBeats() {
  const drawn = [];
  for (const beat of state.beats) {
    const where = (one) => (one.readable ? `${one.host}:${one.pid}` : "somebody unreadable");
    const standby = beat.standing_by.length ? `standing by: ${beat.standing_by.map(where).join(", ")}` : "nobody stands by";
    const atWork = beat.at_work
      ? `${where(beat.at_work)} is at work${beat.since === null ? "" : ` for ${duration(now() - beat.since)}`}`
      : "no beat is at work, nothing is scheduled";
    const table = element("table"), head = element("tr"), body = element("tbody");
    for (const title of ["Entry", "Task", "Schedule", "Last", "Next", "Runs"]) head.append(element("th", "", title));
    const top = element("thead");
    top.append(head);
    body.append(...beat.entries.map(beatRow));
    table.append(top, body);
    drawn.push(element("p", "beat", `${beat.name}: ${atWork}; ${standby}; ${beat.takeovers} takeovers before`), table);
  }
  byId("beat-list").replaceChildren(...drawn);
  byId("beats").hidden = drawn.length === 0;
}

function drawTimeline() {
  const span = state.timeline_seconds, end = now(), start = end - span;
  const rows = new Map();
  for (const bar of state.timeline) {
    if (!rows.has(bar.lock)) rows.set(bar.lock, []);
    rows.get(bar.lock).push(bar);
  }
  const drawn = [];
  for (const name of [...rows.keys()].sort().slice(0, 60)) {
    const row = element("div", "row"), track = element("div", "track");
    const label = element("div", "name", name);
    label.title = name;
    for (const bar of rows.get(name)) {
      const from = Math.max(bar.began, start), to = bar.ended === null ? end : bar.ended;
      if (to < start) continue;
      const drawnBar = element("div", bar.ended === null ? "bar going" : "bar");
      drawnBar.style.left = `${((from - start) / span) * 100}%`;
      drawnBar.style.width = `${(Math.max(0, to - from) / span) * 100}%`;
      drawnBar.title = `${bar.task} ${bar.task_id}\n${bar.host}\n${duration(to - bar.began)}`;
      track.append(drawnBar);
    }
    row.append(label, track);
    drawn.push(row);
  }
  const scale = element("div", "row"), ticks = element("div", "scale");
  ticks.append(element("span", "", `${span / 60} min ago`), element("span", "", `${span / 120}`), element("span", "", "now"));
  scale.append(element("div"), ticks);
  byId("timeline").replaceChildren(...drawn, scale);
  byId("minutes").textContent = span / 60;
}

function draw() {
  byId("held").textContent = state.held === null ? "–" : state.held;
  byId("waiting").textContent = state.waiting === null ? "–" : state.waiting;
  byId("conflicts").textContent = state.conflicts_per_minute === null ? "–" : state.conflicts_per_minute;
  byId("workers").textContent = state.workers === null ? "–" : state.workers;
  tell(state.error === null ? "live" : `etcd: ${state.error}`, state.error !== null);
  drawTable();
  drawBeats();
  drawTimeline();
}

function tell(text, bad) {
  byId("status").textContent = text;
  byId("status").classList.toggle("bad", bad);
}

function ask(lock, owner) {
  chosen = { lock: lock.lock, token: owner.token, fencing_token: owner.fencing_token };
  byId("confirm-lock").textContent = lock.lock;
  byId("confirm-owner").textContent = owner.readable
    ? `held by task ${owner.task_id} (${owner.task}) on ${owner.host}, pid ${owner.pid}, for ${duration(now() - owner.since)}`
    : "";
  byId("force").checked = false;
  byId("outcome").textContent = "";
  byId("release").disabled = false;
  byId("confirm").showModal();
}

const OUTCOMES = {
  asked: "Asked. The lock is gone from the list once its holder has let go, within a third of its TTL and what the task takes to end.",
  deleted: "Deleted: the lock is free.",
  gone: "Nobody could be asked: the holder let go by itself, or nobody renews this key. If it stays, delete it.",
};

async function release() {
  byId("release").disabled = true;
  try {
    const answer = await fetch("api/release", {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-Etcdlock-Release": "1" },
      body: JSON.stringify({ ...chosen, force: byId("force").checked }),
    });
    byId("outcome").textContent = answer.ok ? OUTCOMES[(await answer.json()).outcome] : await answer.text();
  } catch (error) {
    byId("outcome").textContent = `The server can't be reached: ${error.message}`;
  }
  byId("release").disabled = false;
}

byId("cancel").addEventListener("click", () => byId("confirm").close());
byId("release").addEventListener("click", release);
byId("filter").addEventListener("input", () => state && drawTable());
setInterval(() => { if (state) drawAges(); }, 1000);
setInterval(() => { if (state) drawTimeline(); }, 5000);
setInterval(() => { if (state) drawBeats(); }, 1000);

const events = new EventSource("api/events");
events.onmessage = (message) => {
  state = JSON.parse(message.data);
  skew = state.now - Date.now() / 1000;
  draw();
};
events.onerror = () => tell("the server can't be reached; trying again", true);
