// Long lists: pictures far outside of the screen leave the page, so that it stays small. Their place stays.
import { $, $$ } from "./page.js";

const MOST = 6; // sheaves of 100 pictures
const MARGIN = "2500px 0px";
const kept = new WeakMap();

const observer = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (isIntersecting) restore(target);
    else if ($$(".sheaf").length > MOST) put(target);
  }
}, { rootMargin: MARGIN });

function put(sheaf) {
  if (kept.has(sheaf) || sheaf.contains(document.activeElement) || $("[aria-current]", sheaf)) return;
  sheaf.style.height = `${sheaf.offsetHeight}px`;
  kept.set(sheaf, [...sheaf.children]);
  sheaf.replaceChildren();
}

function restore(sheaf) {
  const children = kept.get(sheaf);
  if (!children) return;
  kept.delete(sheaf);
  sheaf.replaceChildren(...children);
  sheaf.style.height = "";
}

export function watch() {
  const see = () => $$(".sheaf").forEach((sheaf) => observer.observe(sheaf));
  document.addEventListener("htmx:afterSwap", see);
  document.addEventListener("gallery:shown", see);
  see();
}
