// The keyboard. Keys are off while somebody types, and in a slider the arrows are the slider's.
import { $, say, view } from "./page.js";
import { compare, current, forgetPicks, move, open, peek } from "./cells.js";
import { flip, step, swap } from "./forms.js";
import { other, pan, zoomBy } from "./loupe.js";
import { back as backToWhere, go } from "./trail.js";

const TYPING = "input:not([type=checkbox], [type=radio], [type=range]), select, textarea";
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const PLACES = { l: "library", e: "failures", r: "runs", s: "scores", f: "favourites" };
const actions = new Map();
let going = false;

/** Let each of these keys do something. The function gets the event and the key; digits are those of any keyboard. */
export function onKey(keys, action) {
  for (const key of keys) actions.set(key, action);
}

function back() {
  if (forgetPicks() || backToWhere()) return;
  const link = $("#back");
  if (link) location.href = link.href;
  else if (view() !== "library" && $("#library-link")) location.href = $("#library-link").href;
}

function follow(selector) {
  const link = $(selector);
  if (link) go(link.href, { beside: true });
  return Boolean(link);
}

function arrow(event, direction) {
  if (event.target.matches("[type=range], [type=radio]")) return false;
  if (view() === "loupe" && !event.target.closest(".film") && pan(...direction)) return true;
  if (view() === "loupe" && direction[1]) return false;
  if (!$(".cells")) return false;
  move(...direction);
  return true;
}

function enter(event) {
  if (!event.target.matches("body, main, .cell, #stage")) return false;
  if (view() === "loupe") event.target.matches(".cell") ? $("#stage").focus() : back();
  else open();
  return Boolean(current());
}

/** Act on one key; returns whether it was one of ours. */
function act(event) {
  const key = /^(?:Digit|Numpad)([0-5])$/.exec(event.code)?.[1] ?? event.key;
  if (going) {
    going = false;
    const link = PLACES[key] && $(`#${PLACES[key]}-link`);
    if (link) location.href = link.href;
    return true;
  }
  if (ARROWS[key]) return arrow(event, ARROWS[key]);
  if (actions.has(key)) actions.get(key)(event, key);
  else if (key === "?") $("#keys").showModal();
  else if (key === "/" && $("#find")) $("#find").focus();
  else if (key === "/" && $("#library-link")) location.href = `${$("#library-link").href}#find`;
  else if (key === "g") going = true;
  else if (key === "h") document.body.classList.toggle("bare");
  else if (key === "s") event.repeat || peek(true);
  else if (key === "c") compare();
  else if (key === "o") other();
  else if (key === "y") $("#inspector [data-copy], #made [data-copy]")?.click();
  else if (key === "p") flip();
  else if (key === "t") swap();
  else if (key === "[" || key === "]") step(key === "]" ? 1 : -1);
  else if (key === "PageUp") return follow("a[rel=prev]");
  else if (key === "PageDown") return follow("a[rel=next]");
  else if (key === "Escape") back();
  else if ((key === "+" || key === "=") && view() === "loupe") zoomBy(2);
  else if ((key === "-" || key === "−") && view() === "loupe") zoomBy(0.5);
  else if (key === "Enter" || key === " ") return enter(event);
  else return false;
  return true;
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || $("dialog[open]")) return;
  if (event.target.matches(TYPING)) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (act(event)) event.preventDefault();
});
document.addEventListener("keyup", (event) => {
  if (event.key === "s") peek(false);
});
addEventListener("blur", () => peek(false));

document.addEventListener("click", async (event) => {
  const button = event.target.closest?.("[data-copy]");
  if (!button) return;
  const source = button.dataset.copy ? $(button.dataset.copy) : $("pre", button.closest(".code"));
  try {
    await navigator.clipboard.writeText(source.textContent.trim());
    say("Copied");
  } catch {
    getSelection().selectAllChildren(source);
    say("Selected: copy it with the keys of your system");
  }
});
