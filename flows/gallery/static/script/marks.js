// Marks: sent at once and in order. The page does not wait; if a mark is not stored, the page takes it back and says so.
import { $, $$, base, say } from "./page.js";
import { current, move } from "./cells.js";

const undo = [];
const waiting = new Set();
let queue = Promise.resolve();

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
export function mark(value, { id = target(), next = false, undoing = false } = {}) {
  if (!id) return;
  if ("readOnly" in document.body.dataset) return say("The gallery was started with --read-only");
  const before = markOf(id);
  if (!undoing) undo.push([id, before]);
  draw(id, value);
  say(undoing ? "Undone" : `${text(value)}. z undoes`);
  const given = { id, value, before };
  waiting.add(given);
  queue = queue.then(() => waiting.delete(given) && send(given));
  if (next) move(1, 0);
}

const post = ({ id, value }) => fetch(`${base()}/mark`, {
  method: "POST",
  headers: { "X-Dreamgrid-Token": $("meta[name=csrf]").content },
  body: new URLSearchParams({ id, mark: String(value) }),
  keepalive: true, // also if the page is left meanwhile
});

async function send({ id, value, before }) {
  let problem = "the gallery does not respond";
  try {
    const response = await post({ id, value });
    if (response.ok) return;
    problem = (await response.text()).slice(0, 120);
    if (problem.startsWith("<")) problem = `error ${response.status}`;
  } catch {
    // the message says it
  }
  if (markOf(id) === value) draw(id, before);
  say(`The mark was not stored: ${problem}`);
}

// A page that is left sends what waits at once: the last mark of each dream.
addEventListener("pagehide", () => {
  const last = new Map([...waiting].map((given) => [given.id, given]));
  waiting.clear();
  for (const given of last.values()) post(given).catch(() => {});
});

export function undoMark() {
  const last = undo.pop();
  if (!last) return say("There is nothing to undo");
  mark(last[1], { id: last[0], undoing: true });
}

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
