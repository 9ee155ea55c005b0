// What starts every page, served or static: the theme, the list of keys, the sizes, the loupe and the chosen picture.
import { $ } from "./page.js";
import { current, showPicks } from "./cells.js";
import { applySizes } from "./forms.js";
import "./keys.js";
import { start as startLoupe } from "./loupe.js";
import { start as startTrail } from "./trail.js";

function changeTheme() {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  try {
    localStorage.setItem("dreamgrid-theme", root.dataset.theme);
  } catch {
    // the theme lasts until the next page
  }
}

/** Start the page, once its pictures are there. */
export function start() {
  startTrail();
  $("#theme").addEventListener("click", changeTheme);
  $("#keys-button").addEventListener("click", () => $("#keys").showModal());
  addEventListener("popstate", () => location.reload()); // after parts of a page were replaced
  applySizes();
  startLoupe();
  showPicks();
  if (location.hash === "#find") $("#find")?.focus();
  else if (current()) current().focus({ preventScroll: true });
  if (current()) current().scrollIntoView({ block: "nearest", inline: "nearest" });
  document.body.dataset.ready = "";
}
