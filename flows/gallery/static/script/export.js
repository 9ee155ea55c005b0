// A static gallery: draws the pages that the server of a gallery would send, from the data beside this file. All other
// scripts are those of the served gallery. Names come from other people: all text is set as text, never as markup.
import { $, say, site } from "./page.js";
import { onKey } from "./keys.js";
import { grid, library, loupe } from "./export_pages.js";
import { about, dreamOf, photographOf, title } from "./export_parts.js";
import { start } from "./start.js";

const PAGES = { library, grid, loupe };

/** Return the name of the page that an address asks for: the library if the export has no such dream. */
function viewOf(query) {
  const name = query.get("view");
  const exists = name === "grid" ? photographOf(query.get("photo")) : name === "loupe" && dreamOf(query.get("id"));
  return exists ? name : "library";
}

function pageOf(query) {
  const name = viewOf(query);
  const part = document.createDocumentFragment();
  part.append(PAGES[name](query));
  part.title = `${$("h1", part).textContent} – ${title} – Dreamgrid`;
  return part;
}

Object.assign(site, {
  address: (name, query = "") => new URL(`?view=${name}${query && `&${query}`}`, location.href).href,
  page: async (url) => pageOf(new URL(url, location.href).searchParams),
  async about(id) {
    const part = document.createDocumentFragment();
    part.append(about(dreamOf(id)));
    return part;
  },
  photograph(id, small) {
    const photograph = photographOf(dreamOf(id).photo);
    return small ? photograph.small : photograph.full;
  },
});
onKey("012345fFxX", () => say("This copy of the gallery shows marks and changes none"));
// A dream that was deleted after the export. The event does not bubble.
document.addEventListener("error", ({ target }) => {
  if (!target.matches?.(".cells img")) return;
  const gone = document.createElement("span");
  gone.className = "gone";
  gone.textContent = "missing";
  target.replaceWith(gone);
}, true);

const query = new URLSearchParams(location.search);
document.body.dataset.view = viewOf(query);
const page = pageOf(query);
document.title = page.title;
$("#main").replaceChildren(page);
const here = $("#here");
here.hidden = document.body.dataset.view === "library";
here.textContent = { grid: "Grid", loupe: "Loupe" }[document.body.dataset.view] ?? "";
if (here.hidden) $("#library-link").setAttribute("aria-current", "page");
start();
