// The dialog that asks before a lock is released.

import { byId, duration, setText, visible } from "./text.js";

const OUTCOMES = {
  asked: "Asked. The lock is free once its holder has released it: within a third of its TTL and what the task takes to end.",
  deleted: "Deleted: the lock is free.",
  gone: "Nobody could be asked: the holder has released it by itself, or nobody renews this key. If it stays, delete it.",
};

const INTERRUPTED = "Its holder is asked to release it: with its next renewal the task is interrupted with LockLost, and the lock is free once the task has ended.";
const HOW = {
  task: INTERRUPTED,
  call: INTERRUPTED,
  process: "Its holder is a process without a task, so nothing can be interrupted: it is told that the lock is lost, and what it does then is its code's choice.",
  nobody: "Nobody renews this key, so there is nobody to ask: delete it.",
};

let chosen = null; // the holding whose release is being confirmed

export function ask(lock, owner, now) {
  chosen = { lock: lock.lock, token: owner.token, fencing_token: owner.fencing_token };
  byId("confirm-lock").textContent = visible(lock.lock);
  const who = owner.who ?? `${owner.task} (${owner.task_id}) on ${owner.host}, pid ${owner.pid}`;
  byId("confirm-owner").textContent = owner.readable
    ? `Held by ${visible(who)}, for ${duration(now - owner.since)}.`
    : "Held by a record that this version can't read.";
  byId("confirm-how").textContent = HOW[owner.kind === "held" ? owner.by ?? "task" : "nobody"];
  byId("force").checked = false;
  setText(byId("outcome"), "");
  byId("release").disabled = false;
  byId("confirm").showModal();
}

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
    byId("outcome").textContent = `The page's server can't be reached: ${error.message}`;
  }
  byId("release").disabled = false;
}

export function readyForReleases() {
  byId("cancel").addEventListener("click", () => byId("confirm").close());
  byId("release").addEventListener("click", release);
}
