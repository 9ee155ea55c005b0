// Long lists: pictures far outside of the screen leave the page, so that it stays small. Their place stays.
import { $, $$ } from "./page.js";

const MOST = 6; // parts of 100 pictures
const MARGIN = "2500px 0px";
const kept = new WeakMap();

const observer = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (isIntersecting) restore(target);
    else if ($$(".scrolled").length > MOST) put(target);
  }
}, { rootMargin: MARGIN });

function put(part) {
  if (kept.has(part) || part.contains(document.activeElement) || $("[aria-current]", part)) return;
  part.style.height = `${part.offsetHeight}px`;
  kept.set(part, [...scrolled.children]);
  part.replaceChildren();
}

function restore(part) {
  const children = kept.get(part);
  if (!children) return;
  kept.delete(part);
  part.replaceChildren(...children);
  part.style.height = "";
}

export function watch() {
  const see = () => $$(".scrolled").forEach((part) => observer.observe(part));
  document.addEventListener("htmx:afterSwap", see);
  document.addEventListener("gallery:shown", see);
  see();
}
