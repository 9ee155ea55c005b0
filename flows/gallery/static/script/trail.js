// Where Esc goes back to: the pages through which somebody came here. The history of the tab keeps them.
import { $, view } from "./page.js";

const NEXT = "dreamgrid-trail";
const MOST = 20;
const here = () => location.pathname + location.search;
const known = () => history.state?.trail ?? [];
const from = () => [...known(), here()].slice(-MOST);

/** Keep the trail of a page that is about to be opened. */
function lead(href, trail) {
  try {
    sessionStorage.setItem(NEXT, JSON.stringify({ to: new URL(href, location.href).href, trail }));
  } catch {
    // storage is switched off: Esc goes to the usual page
  }
}

/** Open a page from which Esc comes back to this one; with `beside`, to where Esc goes from this one. */
export function go(href, { beside = false } = {}) {
  lead(href, beside ? known() : from());
  location.href = href;
}

/** Return the address of the page before this one. A grid shows the dream that was looked at last. */
function before() {
  const last = known().at(-1);
  if (!last) return null;
  const url = new URL(last, location.href);
  const id = $("#chosen [data-about]")?.dataset.about;
  if (id && url.searchParams.has("photo") && url.searchParams.get("chosen") !== id) {
    for (const name of [...url.searchParams.keys()]) if (name.startsWith("at.")) url.searchParams.delete(name);
    url.searchParams.set("chosen", id);
  }
  return url.href;
}

/** Go back to the page before this one; returns false if none is known. */
export function back() {
  const href = before();
  if (!href) return false;
  lead(href, known().slice(0, -1));
  location.href = href;
  return true;
}

function follow(event) {
  const link = event.target.closest?.("a[href]");
  if (!link || event.defaultPrevented || event.button || event.ctrlKey || event.metaKey || event.shiftKey || link.hasAttribute("download")) return;
  const beside = link.matches("[rel=prev], [rel=next]") || (view() === "loupe" && link.matches("#modes a, .kin a"));
  if (link.id === "back") {
    if (back()) event.preventDefault();
  } else if (!link.closest("main, .mark-bar, .choice-bar")) lead(link.href, []);
  else lead(link.href, beside ? known() : from());
}

/** Read how somebody came to this page, once, before anything else changes the history. */
export function start() {
  try {
    const next = JSON.parse(sessionStorage.getItem(NEXT));
    sessionStorage.removeItem(NEXT);
    if (!history.state?.trail) history.replaceState({ ...history.state, trail: next?.to === location.href ? next.trail : [] }, "");
  } catch {
    // as above
  }
  addEventListener("click", follow);
}
