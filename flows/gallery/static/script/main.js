// The script of every served page. It works on what the server has drawn; without it, links and forms still work.
import { $, show, trouble, view } from "./page.js";
import "./marks.js";
import "./choose.js";
import { start } from "./start.js";
import { watch } from "./window.js";

let seen = $("#running progress")?.value ?? null;

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

watch();
start();
