// Marks: sent at once and in order. The page does not wait; if a mark is not stored, the page takes it back and says so.
// Marks of other tabs and other people appear after a few seconds.
import { $, $$, base, say } from "./page.js";
import { current, move } from "./cells.js";
import { onKey } from "./keys.js";

const MOST = 500; // marks of one request
const HEAR_MS = 2000;
const undo = [];
const waiting = new Map(); // marks that are not sent yet, by dream
const stored = new Map(); // of dreams whose marks are on their way: the mark that is in the store
const marked = new Map(); // when a dream was marked in this page

const text = (mark) => (mark === 0 ? "Mark removed" : mark === -1 ? "Rejected" : `Marked ${mark}`);

/** Return the dream that marks go to. */
export const target = () => current()?.dataset.id ?? $("#chosen [data-about]")?.dataset.about ?? null;

/** Return the present mark of a dream, as the page shows it. */
function markOf(id) {
  const cell = $(`.cell[data-id="${CSS.escape(id)}"]`);
  const pressed = $(`[data-marks="${CSS.escape(id)}"] [aria-pressed="true"]`);
  return Number(cell?.dataset.mark ?? pressed?.dataset.markValue ?? 0);
}

/** Show a mark everywhere in the page. */
function draw(id, mark) {
  for (const cell of $$(`.cell[data-id="${CSS.escape(id)}"]`)) {
    cell.dataset.mark = String(mark);
    const badge = $(".badge", cell);
    if (badge) badge.textContent = mark === -1 ? "×" : mark || "";
  }
  for (const button of $$(`[data-marks="${CSS.escape(id)}"] [data-mark-value]`)) {
    button.setAttribute("aria-pressed", String(Number(button.dataset.markValue) === mark));
  }
}

/** Mark a dream. */
function mark(value, { id = target(), next = false, undoing = false } = {}) {
  if (!id) return;
  if ("readOnly" in document.body.dataset) return say("The gallery was started with --read-only");
  const before = markOf(id);
  if (!undoing) undo.push([id, before]);
  if (!stored.has(id)) stored.set(id, before);
  waiting.set(id, value);
  marked.set(id, performance.now());
  draw(id, value);
  say(undoing ? "Undone" : `${text(value)}. z undoes`);
  send();
  if (next) move(1, 0);
}

function post(marks) {
  const body = new URLSearchParams();
  for (const [id, value] of marks) {
    body.append("id", id);
    body.append("mark", String(value));
  }
  return fetch(`${base()}/mark`, {
    method: "POST",
    headers: { "X-Dreamgrid-Token": $("meta[name=csrf]").content },
    body,
    keepalive: true, // also if the page is left meanwhile
  });
}

/** Send the marks that wait, together. Those that come meanwhile are sent afterwards. */
async function send() {
  if ("sending" in document.body.dataset || !waiting.size) return;
  document.body.dataset.sending = "";
  const sent = new Map([...waiting].slice(0, MOST));
  for (const id of sent.keys()) waiting.delete(id);
  const problem = await problemOf(post(sent));
  for (const [id, value] of sent) {
    if (!problem) stored.set(id, value);
    if (waiting.has(id)) continue;
    if (problem) draw(id, stored.get(id));
    stored.delete(id);
  }
  if (problem) say(`${sent.size === 1 ? "The mark was" : `${sent.size} marks were`} not stored: ${problem}`, 8000);
  delete document.body.dataset.sending;
  send();
}

/** Return why a request failed; an empty text if it did not. */
async function problemOf(request) {
  try {
    const response = await request;
    if (response.ok) return "";
    const reason = (await response.text()).trim();
    return reason.startsWith("<") ? `error ${response.status}` : reason.slice(0, 200);
  } catch {
    return "the gallery does not respond";
  }
}

// A page that is left sends what waits at once.
addEventListener("pagehide", () => {
  if (waiting.size) post(waiting).catch(() => {});
  waiting.clear();
});

/** Show marks of other tabs and other people. */
async function hear() {
  const begun = performance.now();
  try {
    const response = await fetch(`${base()}/marks?since=${document.body.dataset.marksVersion}`);
    if (response.status !== 200) return;
    const news = await response.json();
    document.body.dataset.marksVersion = news.version;
    const count = $("#favourite-count");
    if (count) count.textContent = news.favourites || "";
    const shown = new Set($$(".cell[data-id]").map((cell) => cell.dataset.id));
    for (const bar of $$("[data-marks]")) shown.add(bar.dataset.marks);
    for (const id of shown) {
      const isOurs = waiting.has(id) || stored.has(id) || (marked.get(id) ?? -1) > begun;
      if (!isOurs && (id in news.marks || news.all)) draw(id, news.marks[id] ?? 0);
    }
    document.dispatchEvent(new CustomEvent("gallery:marks", { detail: news }));
  } catch {
    // the next request that the user causes says so
  }
}

const listen = () => setTimeout(async () => {
  if (document.visibilityState === "visible") await hear();
  listen();
}, HEAR_MS);
if (base()) listen();
document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && base() && hear());

onKey("012345", (event, key) => mark(Number(key), { next: event.shiftKey }));
onKey("fF", (event) => mark(5, { next: event.shiftKey }));
onKey("xX", (event) => mark(-1, { next: event.shiftKey }));
onKey("z", () => {
  const last = undo.pop();
  if (!last) return say("There is nothing to undo");
  mark(last[1], { id: last[0], undoing: true });
});

// What is loaded of a dream may be older than a mark that is still on its way.
document.addEventListener("gallery:chosen", (event) => {
  if ($(`.cell[data-id="${CSS.escape(event.detail)}"]`)) draw(event.detail, markOf(event.detail));
});

document.addEventListener("click", (event) => {
  const button = event.target.closest?.("[data-mark-value]");
  if (!button) return;
  const value = Number(button.dataset.markValue);
  mark(button.getAttribute("aria-pressed") === "true" ? 0 : value, { id: button.closest("[data-marks]").dataset.marks });
});
