// The loupe: all panes share zoom and position; the slider between photograph and dream; which pane is current.
import { $, $$, address, remember, show, withPlace } from "./page.js";
import { aimMarks } from "./cells.js";

const MOST = 32;
const STEP = 60;
const place = { z: 1, x: 0, y: 0 };
const fingers = new Map();

/** Return how much 1:1 enlarges the picture that fits into the first pane: one pixel of the dream on one of the screen. */
function natural() {
  const pane = $("#stage .pane");
  const box = pane.getBoundingClientRect();
  const fit = Math.min(box.width / (Number(pane.dataset.width) || 1), box.height / (Number(pane.dataset.height) || 1));
  return 1 / (fit * devicePixelRatio);
}

function draw() {
  const stage = $("#stage");
  const box = $("#stage .pane").getBoundingClientRect();
  const reach = Math.max(0, place.z - 1) / 2 + 0.25;
  place.x = Math.max(-reach * box.width, Math.min(reach * box.width, place.x));
  place.y = Math.max(-reach * box.height, Math.min(reach * box.height, place.y));
  if (place.z === 1) place.x = place.y = 0;
  stage.style.setProperty("--z", place.z);
  stage.style.setProperty("--x", `${place.x}px`);
  stage.style.setProperty("--y", `${place.y}px`);
  const one = natural();
  stage.classList.toggle("sharp", place.z > 1 && place.z >= 3.99 * one);
  for (const button of $$("#zoom [data-zoom]")) {
    const value = button.dataset.zoom === "fit" ? 1 : Number(button.dataset.zoom) * one;
    button.setAttribute("aria-pressed", String(Math.abs(value - place.z) < 0.01));
  }
}

let later;

/** Zoom so that the point (x, y), from the middle of a pane, stays where it is. */
export function zoomTo(z, x = 0, y = 0) {
  const next = Math.min(MOST, Math.max(Math.min(1, natural()), z));
  place.x = x - ((x - place.x) * next) / place.z;
  place.y = y - ((y - place.y) * next) / place.z;
  place.z = next;
  draw();
  keep();
}

export const zoomBy = (factor) => zoomTo(place.z * factor);

function keep() {
  clearTimeout(later);
  later = setTimeout(() => {
    const moved = place.z !== 1;
    remember({ zoom: moved ? place.z.toFixed(3) : null, x: moved ? Math.round(place.x) : null, y: moved ? Math.round(place.y) : null });
  }, 300);
}

/** Move the enlarged picture; returns false if it is not enlarged. */
export function pan(dx, dy) {
  if (place.z <= 1) return false;
  place.x -= dx * STEP;
  place.y -= dy * STEP;
  draw();
  keep();
  return true;
}

/** Make another pane the current one. */
export async function activate(index) {
  const panes = $$("#stage .pane");
  if (panes.length < 2 || panes[index]?.classList.contains("on")) return;
  panes.forEach((pane, i) => pane.classList.toggle("on", i === index));
  const id = panes[index].dataset.id;
  for (const cell of $$("#film .cell")) {
    const is = cell.dataset.id === id;
    cell.tabIndex = is ? 0 : -1;
    is ? cell.setAttribute("aria-current", "true") : cell.removeAttribute("aria-current");
    if (is) {
      aimMarks(id, cell.dataset.mark);
      if (document.activeElement?.closest("#film")) cell.focus({ preventScroll: true });
    }
  }
  await show(address({ active: index }), ["pager", "back", "chosen"], { replace: true });
}

export function other() {
  const panes = $$("#stage .pane");
  activate((panes.findIndex((pane) => pane.classList.contains("on")) + 1) % panes.length);
}

function wipe(input) {
  input.closest(".wipe").style.setProperty("--s", input.value);
}

const spread = () => {
  const [a, b] = [...fingers.values()];
  return Math.hypot(a[0] - b[0], a[1] - b[1]);
};

function listen() {
  document.addEventListener("wheel", (event) => {
    const pane = event.target.closest?.("#stage .pane");
    if (!pane) return;
    event.preventDefault();
    const box = pane.getBoundingClientRect();
    const turn = event.deltaMode ? 20 * event.deltaY : event.deltaY;
    zoomTo(place.z * Math.exp(-turn / 400), event.clientX - box.x - box.width / 2, event.clientY - box.y - box.height / 2);
  }, { passive: false });
  document.addEventListener("pointerdown", (event) => {
    const pane = event.target.closest?.("#stage .pane");
    if (!pane || event.target.matches("input")) return;
    activate(Number(pane.dataset.pane));
    fingers.set(event.pointerId, [event.clientX, event.clientY]);
    $("#stage").setPointerCapture(event.pointerId);
  });
  document.addEventListener("pointermove", (event) => {
    const was = fingers.get(event.pointerId);
    if (!was) return;
    const before = fingers.size === 2 ? spread() : 0;
    fingers.set(event.pointerId, [event.clientX, event.clientY]);
    if (before) zoomTo((place.z * spread()) / before);
    else if (place.z !== 1) {
      place.x += event.clientX - was[0];
      place.y += event.clientY - was[1];
      draw();
      keep();
    }
  });
  for (const end of ["pointerup", "pointercancel"]) document.addEventListener(end, (event) => fingers.delete(event.pointerId));
  document.addEventListener("input", (event) => {
    if (!event.target.matches("[data-wipe]")) return;
    wipe(event.target);
    remember({ wipe: event.target.value });
  });
  document.addEventListener("click", (event) => {
    const mode = event.target.closest?.("#modes a");
    if (mode) mode.href = withPlace(mode.href);
    const button = event.target.closest?.("[data-zoom]");
    if (button) zoomTo(button.dataset.zoom === "fit" ? 1 : Number(button.dataset.zoom) * natural());
  });
  addEventListener("resize", draw);
  document.addEventListener("gallery:shown", (event) => {
    if (event.detail.includes("stage")) settle();
    keep(); // the address that was shown may be older than the zoom
  });
}

function settle() {
  $$("[data-wipe]").forEach(wipe);
  draw();
}

/** Start the loupe, with the zoom of the address. */
export function start() {
  if (!$("#stage")) return;
  const query = new URLSearchParams(location.search);
  place.z = Math.min(MOST, Math.max(0.05, Number(query.get("zoom")) || 1));
  place.x = Number(query.get("x")) || 0;
  place.y = Number(query.get("y")) || 0;
  listen();
  settle();
}
