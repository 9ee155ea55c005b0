// The keyboard. Keys are off while somebody types, and in a slider the arrows are the slider's.
import { $, base, say, view } from "./page.js";
import { compare, current, forgetPicks, move, open, peek } from "./cells.js";
import { mark, undoMark } from "./marks.js";
import { chooseForJob, moreLike } from "./choose.js";
import { flip, step, swap } from "./forms.js";
import { other, pan, zoomBy } from "./loupe.js";

const TYPING = "input:not([type=checkbox], [type=radio], [type=range]), select, textarea";
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const PLACES = { l: "library", e: "failures", r: "runs", s: "scores", f: "favourites" };
let going = false;

export function copyCommand() {
  const button = $("#inspector [data-copy], #made [data-copy]");
  if (button) button.click();
}

function back() {
  if (forgetPicks()) return;
  const link = $("#back");
  if (link) location.href = link.href;
  else if (view() !== "library" && base()) location.href = `${base()}/library`;
}

function follow(selector) {
  const link = $(selector);
  if (link) location.href = link.href;
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
  const key = event.key;
  if (going) {
    going = false;
    if (PLACES[key] && base()) location.href = `${base()}/${PLACES[key]}`;
    return true;
  }
  if (ARROWS[key]) return arrow(event, ARROWS[key]);
  const digit = /^(?:Digit|Numpad)([0-5])$/.exec(event.code);
  if (digit) mark(Number(digit[1]), { next: event.shiftKey });
  else if (key === "f" || key === "F") mark(5, { next: event.shiftKey });
  else if (key === "x" || key === "X") mark(-1, { next: event.shiftKey });
  else if (key === "?") $("#keys").showModal();
  else if (key === "/" && $("#find")) $("#find").focus();
  else if (key === "/" && base()) location.href = `${base()}/library#find`;
  else if (key === "g") going = true;
  else if (key === "z") undoMark();
  else if (key === "h") document.body.classList.toggle("bare");
  else if (key === "s") event.repeat || peek(true);
  else if (key === "c") compare();
  else if (key === "v") chooseForJob();
  else if (key === "m") moreLike();
  else if (key === "o") other();
  else if (key === "y") copyCommand();
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
