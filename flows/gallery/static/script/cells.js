// Pictures as a set with one tab stop: choosing, moving, opening, comparing, and what is known of the chosen one.
import { $, $$, remember, say, show, site, trouble, view, withPlace } from "./page.js";
import { go } from "./trail.js";

const PICKS = "dreamgrid-compare";

export const current = () => $(".cell[aria-current]") ?? null;
export const cells = () => $$(".cells .cell");

/** Make a picture the current one, and show what is known of it. */
export function choose(cell, { focus = true } = {}) {
  if (!cell) return;
  for (const other of cells()) {
    const is = other === cell;
    other.tabIndex = is ? 0 : -1;
    is ? other.setAttribute("aria-current", "true") : other.removeAttribute("aria-current");
  }
  if (focus) cell.focus({ preventScroll: true });
  cell.scrollIntoView({ block: "nearest", inline: "nearest" });
  if (!cell.dataset.id) return;
  if (cell.closest("#film")) look(cell);
  else {
    remember({ chosen: cell.dataset.id });
    about(cell);
  }
}

let asked = null;
let pause;

/** Load what is known of a dream, once the choice rests for a moment. */
function about(cell) {
  const id = cell.dataset.id;
  aimMarks(id, cell.dataset.mark);
  clearTimeout(pause);
  asked?.abort();
  pause = setTimeout(async () => {
    const call = (asked = new AbortController());
    try {
      $("#chosen").replaceChildren(await site.about(id, call.signal));
      trouble("");
      window.htmx?.process($("#chosen"));
      document.dispatchEvent(new CustomEvent("gallery:chosen", { detail: id }));
    } catch (error) {
      if (error.name !== "AbortError") trouble("The gallery does not respond. What is on the page stays.");
    }
  }, 90);
}

/** Let the marks at the bottom of a small screen mean this dream. */
export function aimMarks(id, mark) {
  for (const bar of $$(".mark-bar [data-marks]")) {
    bar.dataset.marks = id;
    for (const button of $$("[data-mark-value]", bar)) {
      button.setAttribute("aria-pressed", String(button.dataset.markValue === mark));
    }
  }
}

/** In the loupe: put a dream of the strip into the pane that is current. */
async function look(cell) {
  const url = new URL(location.href);
  const panes = $$("#stage .pane");
  const active = Math.max(0, panes.findIndex((pane) => pane.classList.contains("on")));
  const ids = panes.map((pane) => pane.dataset.id);
  if (ids[active] === cell.dataset.id) return;
  ids[active] = cell.dataset.id;
  url.searchParams.delete("id");
  for (const id of new Set(ids)) url.searchParams.append("id", id);
  await show(url, ["stage", "what", "modes", "pager", "back", "chosen"], { replace: true, decode: 1 });
  aimMarks(cell.dataset.id, cell.dataset.mark);
}

/** Move to the next picture in a direction: by order to the sides, by place up and down. */
export function move(dx, dy) {
  const all = cells();
  const now = current() ?? all[0];
  if (!now) return;
  if (dx) return choose(all[all.indexOf(now) + dx]);
  const [x, y] = middle(now);
  let best = null;
  let least = Infinity;
  for (const cell of all) {
    const [a, b] = middle(cell);
    if ((b - y) * dy <= 20) continue;
    const distance = 3 * Math.abs(b - y) + Math.abs(a - x);
    if (distance < least) [least, best] = [distance, cell];
  }
  choose(best);
}

function middle(cell) {
  const box = (cell.firstElementChild ?? cell).getBoundingClientRect();
  return [box.x + box.width / 2, box.y + box.height / 2];
}

export function open() {
  const cell = current();
  if (cell && view() !== "loupe") go(cell.href);
}

/** Return the dreams that wait to be compared. */
function picks() {
  try {
    return JSON.parse(sessionStorage.getItem(PICKS) ?? "[]");
  } catch {
    return [];
  }
}

/** Choose the current dream for a comparison; with the second one, compare them. */
export function compare() {
  if (view() === "loupe") {
    const several = $("#stage").dataset.mode === "several";
    go(withPlace($(`#modes [data-mode="${several ? "one" : "several-2"}"]`).href).href, { beside: true });
    return;
  }
  const id = current()?.dataset.id;
  if (!id) return;
  const known = picks().filter((each) => each !== id);
  if (!known.length) {
    sessionStorage.setItem(PICKS, JSON.stringify(picks().includes(id) ? [] : [id]));
    showPicks();
    if (picks().length) say("This is A. Go to another picture and press c again");
    return;
  }
  sessionStorage.removeItem(PICKS);
  go(site.address("loupe", `mode=several&id=${known[0]}&id=${id}`));
}

/** Mark the pictures that wait to be compared with a letter. */
export function showPicks() {
  for (const old of $$(".picked")) old.remove();
  picks().forEach((id, i) => {
    const place = $(`.cells .cell[data-id="${CSS.escape(id)}"] .pic`);
    if (!place || view() === "loupe") return;
    const letter = document.createElement("span");
    letter.className = "picked";
    letter.textContent = "ABCD"[i];
    letter.title = "To be compared";
    place.append(letter);
  });
}

export function forgetPicks() {
  const had = picks().length > 0;
  sessionStorage.removeItem(PICKS);
  showPicks();
  return had;
}

/** Show the photograph in place of its dreams, or the dreams again. */
export function peek(on) {
  for (const old of $$(".peek")) old.remove();
  if (!on) return;
  const shared = $("#sheet")?.dataset.photograph;
  for (const pic of $$(".cells .cell[data-id] .pic")) {
    const box = pic.getBoundingClientRect();
    if (box.bottom < 0 || box.top > innerHeight) continue;
    const source = shared || site.photograph(pic.closest(".cell").dataset.id, true);
    if (view() === "loupe" || !source) continue;
    const image = new Image();
    image.className = "peek";
    image.alt = "";
    image.src = source;
    pic.append(image);
  }
  for (const pane of $$("#stage .pane")) {
    const layer = document.createElement("div");
    layer.className = "layer peek";
    const image = new Image();
    image.alt = "The photograph";
    image.src = site.photograph(pane.dataset.id, false);
    layer.append(image);
    pane.append(layer);
  }
}

document.addEventListener("click", (event) => {
  if (event.target.closest?.("[data-compare]")) compare();
  const link = event.target.closest?.(".mark-bar [data-open]");
  if (link && current()) link.href = current().href;
  const cell = event.target.closest?.(".cells .cell");
  if (!cell || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
  if (cell.closest("#film") || (cell !== current() && cell.dataset.id)) {
    event.preventDefault();
    choose(cell);
  }
});
document.addEventListener("focusin", (event) => {
  const cell = event.target.closest?.(".cells .cell");
  if (cell && cell !== current() && event.target.matches(":focus-visible") && !cell.closest("#film")) choose(cell);
});
document.addEventListener("gallery:shown", showPicks);
