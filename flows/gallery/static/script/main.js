// The script of every page. It works on what the server has drawn; without it, links and forms still work.
import { $, show, trouble, view } from "./page.js";
import { compare, current, showPicks } from "./cells.js";
import "./marks.js";
import { applySizes } from "./forms.js";
import "./keys.js";
import { start } from "./loupe.js";
import { watch } from "./window.js";
import "./choose.js";

let seen = $("#running progress")?.value ?? null;

$("#theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  try {
    localStorage.setItem("dreamgrid-theme", root.dataset.theme);
  } catch {
    // the theme lasts until the next page
  }
});
$("#keys-button").addEventListener("click", () => $("#keys").showModal());
document.addEventListener("click", (event) => {
  if (event.target.closest?.("[data-compare]")) compare();
  const link = event.target.closest?.(".cull [data-open]");
  if (link && current()) link.href = current().href;
});

// Pictures of a run in progress: a cell that has its picture already is left alone.
document.addEventListener("htmx:oobBeforeSwap", (event) => {
  const fresh = event.detail.fragment?.querySelector?.("[data-fresh]") ?? event.detail.fragment;
  const id = fresh?.dataset?.fresh;
  if (id && $(`[data-id="${CSS.escape(id)}"]`, event.detail.target)) event.detail.shouldSwap = false;
});
// The library of a run in progress: new dreams appear, unless somebody has scrolled on or is typing.
document.addEventListener("htmx:afterSwap", (event) => {
  const bar = event.target.closest?.("#running") ?? $("#running");
  if (view() !== "library" || !bar) return;
  const done = $("progress", bar).value;
  const idle = scrollY < 200 && document.activeElement?.id !== "find";
  if (seen !== null && done !== seen && idle) show(location.href, ["results", "facets"], { replace: true });
  seen = done;
});
document.addEventListener("htmx:afterRequest", (event) => {
  if (event.detail.successful) trouble("");
});
for (const name of ["htmx:sendError", "htmx:timeout"]) {
  document.addEventListener(name, () => trouble("The gallery does not respond. What is on the page stays; trying again."));
}
document.addEventListener("htmx:responseError", (event) => {
  trouble(event.detail.xhr.status === 503 ? "The store does not respond. What is on the page stays; trying again." : `The gallery answered ${event.detail.xhr.status}.`);
});

// Back and forward after parts of a page were replaced.
addEventListener("popstate", () => location.reload());

applySizes();
start();
watch();
showPicks();
if (location.hash === "#find") $("#find")?.focus();
else if (current()) current().focus({ preventScroll: true });
if (current()) current().scrollIntoView({ block: "nearest", inline: "nearest" });

document.body.dataset.ready = "";
