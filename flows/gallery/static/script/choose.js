// The set of dreams for one job: chosen with v, kept while the tab is open, and named in the address of the job's page.
import { $, $$, base, say, site, view } from "./page.js";
import { onKey } from "./keys.js";
import { target } from "./marks.js";
import { go } from "./trail.js";

const MOST = 1000;
const place = () => `dreamgrid-chosen ${base()}`;

function chosen() {
  try {
    return JSON.parse(sessionStorage.getItem(place()) ?? "[]");
  } catch {
    return [];
  }
}

const count = (ids) => `${ids.length} ${ids.length === 1 ? "dream" : "dreams"}`;

function keep(ids) {
  sessionStorage.setItem(place(), JSON.stringify(ids));
  draw();
}

/** Put a dream into the set, or take it out. */
function chooseForJob(id = target()) {
  if (!id || view() === "job") return;
  const ids = chosen();
  if (!ids.includes(id) && ids.length === MOST) return say(`A job takes ${MOST} dreams`);
  keep(ids.includes(id) ? ids.filter((each) => each !== id) : [...ids, id]);
  say(`${count(chosen())} chosen`);
}

function moreLike() {
  const id = target();
  if (id && view() !== "job") go(site.address("job", `kind=like&ids=${id}`));
}

/** Show the set: a sign on each picture, the state of the button, and a bar that leads to the job. */
function draw() {
  const ids = view() === "job" ? [] : chosen();
  const has = new Set(ids);
  for (const cell of $$(".cells .cell[data-id]")) cell.toggleAttribute("data-chosen", has.has(cell.dataset.id));
  for (const button of $$("[data-choose]")) button.setAttribute("aria-pressed", String(has.has(button.dataset.choose)));
  const bar = $("#choice") ?? makeBar();
  bar.hidden = !ids.length;
  const link = $("a", bar);
  link.textContent = `Make a job of ${count(ids)}`;
  link.href = site.address("job", `kind=like&ids=${ids.join(",")}`);
}

function makeBar() {
  const bar = document.createElement("div");
  bar.id = "choice";
  bar.className = "choice-bar";
  bar.setAttribute("role", "group");
  bar.setAttribute("aria-label", "Chosen dreams");
  const link = document.createElement("a");
  link.className = "button primary";
  const clear = document.createElement("button");
  clear.type = "button";
  clear.className = "plain";
  clear.textContent = "Choose none";
  clear.addEventListener("click", () => keep([]));
  bar.append(link, clear);
  $(".bar .end").prepend(bar);
  return bar;
}

document.addEventListener("click", (event) => {
  const button = event.target.closest?.("[data-choose]");
  if (button) chooseForJob(button.dataset.choose);
});
for (const name of ["gallery:shown", "gallery:chosen", "htmx:afterSwap", "htmx:oobAfterSwap"]) {
  document.addEventListener(name, draw);
}
onKey("v", () => chooseForJob());
onKey("m", moreLike);
// A refused start says why in the page.
document.addEventListener("htmx:beforeSwap", (event) => {
  if (event.detail.xhr.status !== 409) return;
  event.detail.shouldSwap = true;
  event.detail.isError = false;
});

draw();
