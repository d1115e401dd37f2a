// The page of locks: one event stream brings the state of what this browser looks at, and each part draws its own.
// What is looked at (filter, order, page) is in the page's address, so that a reload and a link keep it.

import { drawBeats, drawBeatTimes } from "./beats.js";
import { drawAges, drawLocks } from "./locks.js";
import { ask, readyForReleases } from "./release.js";
import { atTime, byId, count, figure, setText, visible } from "./text.js";
import { drawTimeline } from "./timeline.js";

const FILTER_PAUSE = 250; // milliseconds after the last key
const PHONE = matchMedia("(max-width: 48rem)");

let state = null;
let skew = 0; // seconds that the server's clock is ahead of this one
let paused = false;
let events = null;
let toAnnounce = false; // the user asked for another view: say what it found
const view = viewOfAddress();

const now = () => Date.now() / 1000 + skew;

function viewOfAddress() {
  const given = new URLSearchParams(location.search);
  const sort = byId("sort");
  byId("filter").value = given.get("filter") ?? "";
  sort.value = given.get("sort") ?? "contended";
  if (!sort.value) sort.value = "contended";
  const page = Number(given.get("page"));
  return { filter: byId("filter").value, sort: sort.value, page: Number.isInteger(page) && page > 0 && page < 1e8 ? page : 1 };
}

function look(changed) {
  Object.assign(view, changed);
  toAnnounce = true;
  const query = new URLSearchParams();
  if (view.filter) query.set("filter", view.filter);
  if (view.sort !== "contended") query.set("sort", view.sort);
  if (view.page > 1) query.set("page", view.page);
  history.replaceState(null, "", `${query}` ? `?${query}` : location.pathname);
  showPaused(false);
  listen();
}

function listen() {
  if (events) events.close();
  const query = new URLSearchParams({ ...view, size: PHONE.matches ? 10 : 20 });
  events = new EventSource(`api/events?${query}`);
  events.onmessage = (message) => {
    state = JSON.parse(message.data);
    skew = state.now - Date.now() / 1000;
    draw();
  };
  events.onerror = () => tell("the page's server can't be reached; trying again", true);
}

function tell(text, bad) {
  setText(byId("status"), text);
  byId("status").classList.toggle("bad", bad);
}

function draw() {
  const { error, seen_at: seenAt, about } = state;
  const known = seenAt !== null;
  if (error) tell(`${about.store} can't be reached`, true);
  else tell(paused ? "paused" : known ? "live" : `connecting to ${about.store}…`, false);
  drawBanner(error, seenAt, about);
  drawAbout(about);
  if (paused) return;
  setText(byId("held"), figure(state.held));
  setText(byId("waiting"), figure(state.waiting));
  const others = [[state.retrying, "retrying"], [state.joining, "joining"]].filter(([number]) => number);
  setText(byId("waiting-others"), others.map(([number, how]) => `${count(number)} ${how}`).join(", "));
  setText(byId("conflicts"), figure(state.conflicts_per_minute));
  setText(byId("workers"), figure(state.workers));
  drawLocks(state, now(), (lock, owner) => ask(lock, owner, now()));
  drawNothing(known, about);
  drawPager();
  drawTimeline(state, now());
  drawBeats(state, now());
}

function drawAbout(about) {
  const of = about.app ? `of ${visible(about.app)}` : "";
  setText(byId("app"), of);
  setText(byId("where"), about.prefix ? `${visible(about.prefix)} on ${about.endpoints.map(visible).join(", ")}` : "");
  const figures = state.held === null ? "" : `${count(state.held)} held, ${count(state.waiting + state.retrying + state.joining)} waiting · `;
  const title = `${figures}Locks ${of}`.trim();
  if (document.title !== title) document.title = title;
}

// Said once when it begins; the time since then is not said anew each second.
function drawBanner(error, seenAt, about) {
  const stale = byId("stale");
  stale.hidden = !error;
  if (!error) return setText(stale, "");
  const what = seenAt === null
    ? `${about.store} hasn't answered since this page's server started, so nobody knows here what is locked.`
    : `${about.store} can't be reached. Below is what was held at ${atTime(seenAt)}.`;
  setText(stale, `${what} ${error}`);
}

function drawNothing(known, about) {
  const nothing = byId("nothing");
  nothing.hidden = known && state.matching > 0;
  if (!known) setText(nothing, state.error ? `Not known: ${about.store} can't be reached.` : "Not known yet: waiting for the first answer.");
  else if (state.listed) setText(nothing, `None of ${count(state.listed, "lock matches", "locks match")} the filter.`);
  else {
    const unused = state.used === false ? " No worker was ever started with this prefix, and nothing is stored there: are app, prefix and endpoints the right ones?" : "";
    setText(nothing, (about.prefix ? `No locks held under ${visible(about.prefix)}.` : "No locks held.") + unused);
  }
}

function drawPager() {
  const { matching, page, size, listed } = state;
  const first = (page - 1) * size + 1, last = Math.min(page * size, matching);
  byId("pager").hidden = !matching || matching <= size;
  const of = matching === listed ? count(listed) : `${count(matching)} that match, of ${count(listed)}`;
  const range = `${count(first)}–${count(last)} of ${of}`;
  setText(byId("range"), range);
  for (const [id, off] of [["previous", page <= 1], ["next", last >= matching]]) byId(id).setAttribute("aria-disabled", off);
  view.page = page;
  if (!toAnnounce) return;
  toAnnounce = false;
  setText(byId("announce"), matching ? `Locks ${range}` : byId("nothing").textContent);
}

function showPaused(wanted) {
  paused = wanted;
  byId("pause").setAttribute("aria-pressed", paused);
}

function turn(button, by) {
  if (byId(button).getAttribute("aria-disabled") !== "true") look({ page: view.page + by });
}

let typing = null;
byId("filter").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(() => look({ filter: byId("filter").value.trim(), page: 1 }), FILTER_PAUSE);
});
byId("sort").addEventListener("change", () => look({ sort: byId("sort").value, page: 1 }));
byId("controls").addEventListener("submit", (event) => event.preventDefault());
byId("previous").addEventListener("click", () => turn("previous", -1));
byId("next").addEventListener("click", () => turn("next", 1));
byId("pause").addEventListener("click", () => {
  showPaused(!paused);
  if (state) draw();
});
PHONE.addEventListener("change", listen);
readyForReleases();
setInterval(() => {
  if (!state || paused) return;
  drawAges(now());
  drawBeatTimes(now());
}, 1000);
setInterval(() => { if (state && !paused) drawTimeline(state, now()); }, 5000);
listen();
