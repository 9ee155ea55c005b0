// Filters, axes, sliders and sizes: each change goes into the address, and parts of the page are replaced.
import { $, $$, address, remember, say, show, view } from "./page.js";

const PARTS = {
  library: ["results", "facets", "chosen"],
  favourites: ["results", "facets", "chosen"],
  grid: ["sheet", "rest", "axes-now", "counts", "chosen", "news"],
};
const FLIP_MS = 450;
let flipping = 0;
let typing;

/** Return the address that a form describes, with the parameters that it does not have. */
function formAddress(form) {
  const url = new URL(form.action);
  url.search = "";
  const names = new Set([...form.elements].map((element) => element.name).filter(Boolean));
  for (const [name, value] of new FormData(form)) {
    const control = form.elements[name];
    const usual = (control instanceof RadioNodeList ? control[0] : control).dataset.usual;
    if (value && value !== usual) url.searchParams.append(name, value);
  }
  for (const [name, value] of new URLSearchParams(location.search)) {
    const gone = names.has(name) || ["after", "chosen"].includes(name) || name.startsWith("at.");
    if (!gone) url.searchParams.append(name, value);
  }
  return url;
}

export async function submit(form) {
  const push = view() !== "grid";
  await show(formAddress(form), PARTS[view()], { push, replace: !push, decode: 40 });
}

/** Show the value of a slider in words, and put it into the form. */
function slide(range) {
  const value = JSON.parse(range.dataset.values)[range.value];
  const place = range.closest(".slider");
  $("output", place).textContent = value;
  $("input[type=hidden]", place).value = value;
  range.setAttribute("aria-valuetext", value);
}

export function step(by) {
  const range = $("[data-flip]");
  if (!range) return;
  const count = Number(range.max) + 1;
  range.value = (Number(range.value) + by + count) % count;
  slide(range);
  return submit(range.form);
}

export function flip() {
  if (!$("[data-flip]")) return;
  const stop = flipping !== 0;
  clearTimeout(flipping);
  flipping = 0;
  $("#flip")?.setAttribute("aria-pressed", String(!stop));
  if (stop) return say("Stopped");
  say("Flipping; p stops");
  const turn = async () => {
    await step(1);
    $("#flip")?.setAttribute("aria-pressed", "true");
    if (flipping) flipping = setTimeout(turn, FLIP_MS);
  };
  flipping = setTimeout(turn, FLIP_MS);
}

export function swap() {
  const link = $("#swap");
  if (link) show(link.href, PARTS.grid, { replace: true, decode: 40 });
}

/** Give tiles and cells the size of their sliders, and the table its number of columns. */
export function applySizes() {
  const sheet = $("table.sheet");
  if (sheet) sheet.style.setProperty("--columns", sheet.dataset.columns);
  for (const range of $$("[data-size]")) {
    const place = sheet ?? document.documentElement;
    if (range.dataset.sized === undefined && innerWidth <= 860) continue;
    place.style.setProperty(range.dataset.size, `${range.value}px`);
    if ("sized" in range.dataset) {
      sheet?.classList.toggle("sized", Number(range.value) > Number(range.min));
      const columns = Number(range.value) > Number(range.min) ? `repeat(auto-fill, minmax(min(${range.value}px, 90vw), 1fr))` : "";
      for (const row of $$(".plain-row")) row.style.setProperty("grid-template-columns", columns);
    }
  }
}

document.addEventListener("input", (event) => {
  const input = event.target;
  if (input.matches("[data-size]")) {
    applySizes();
    remember({ size: input.value === input.min && "sized" in input.dataset ? null : input.value });
  } else if (input.dataset.values) {
    slide(input);
    submit(input.form);
  } else if (input.id === "find") {
    clearTimeout(typing);
    typing = setTimeout(() => submit(input.form), 250);
  }
});
document.addEventListener("change", (event) => {
  const input = event.target;
  if (input.matches("[data-size], [data-values], #find, [data-wipe]")) return;
  if (input.matches("[data-class]")) {
    $("#view").classList.toggle(input.dataset.class, input.checked);
    remember({ [input.name]: input.checked ? "1" : null });
  } else if (input.matches("select[data-least]")) {
    $("#view").dataset.least = input.value;
    remember({ marks: input.value });
  } else if (input.matches("[data-go]")) {
    show(address({ [input.name]: input.value, after: null, chosen: null }), PARTS.library, { push: true, decode: 40 });
  } else if (input.form && PARTS[view()] && input.closest(".rail")) {
    if (["down", "across"].includes(input.name)) takeTurns(input);
    submit(input.form);
  }
});
document.addEventListener("submit", (event) => {
  if (!event.target.closest(".rail")) return;
  event.preventDefault();
  clearTimeout(typing);
  submit(event.target);
});
document.addEventListener("click", (event) => {
  const fold = event.target.closest?.(".fold");
  if (fold) fold.setAttribute("aria-expanded", String(fold.getAttribute("aria-expanded") !== "true"));
  else if (event.target.closest?.("#flip")) flip();
  else if (event.target.closest?.("#swap")) {
    event.preventDefault();
    swap();
  } else if (event.target.closest?.("a[data-window]")) {
    event.preventDefault();
    show(event.target.closest("a").href, PARTS.grid, { replace: true, decode: 40 });
  }
});

/** If an axis takes the setting of the other one, the other one takes the setting that became free. */
function takeTurns(select) {
  const other = select.form.elements[select.name === "down" ? "across" : "down"];
  const before = [...select.options].find((option) => option.defaultSelected)?.value;
  if (other.value === select.value && before) other.value = before;
}

document.addEventListener("gallery:shown", applySizes);
