// Pieces of a static gallery: its data, and the elements that several pages have.
import { site } from "./page.js";

const { photographs, dreams, title } = window.DREAMS;
const byId = new Map(dreams.map((dream) => [dream.id, dream]));
photographs.forEach((photograph, number) => [...photograph.dreams, ...photograph.enlarged].forEach((each) => { dreams[each].photo = number; }));

export { dreams, photographs, title };
export const dreamOf = (id) => byId.get(id);
export const photographOf = (number) => photographs[number];
export const link = (name, values) => site.address(name, String(new URLSearchParams(Object.entries(values).flatMap(([key, value]) => (value == null || value === "" ? [] : [value].flat().map((each) => [key, each]))))));
export const count = (number, one, many) => `${number.toLocaleString("en")} ${number === 1 ? one : many}`;

/** Make an element. Children are texts or elements; a property or a child that is null is left out. */
export function h(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) if (value != null) element.setAttribute(key, value);
  element.append(...children.flat(Infinity).filter((child) => child != null));
  return element;
}

export const picture = (dream) => h("img", { src: dream.small, alt: "", decoding: "async", loading: "lazy", width: dream.width, height: dream.height });

/** Return the picture of a dream as a link, with its caption. */
export function cell(dream, { chosen = false, href = link("loupe", { id: dream.id }), captions = "scores", name = null } = {}) {
  const badge = h("span", { class: "badge", "aria-hidden": "true" }, dream.mark === -1 ? "×" : dream.mark ? String(dream.mark) : "");
  const seen = dream.after[0]?.[0];
  const texts = {
    scores: [h("span", { class: "cap" }, h("span", { class: "figure" }, dream.gain), h("span", { class: "more" }, seen ?? ""))],
    classes: [h("span", { class: "cap" }, h("span", {}, seen ?? "no classes"))],
    named: [h("span", { class: "cap" }, h("bdi", {}, name)), h("span", { class: "cap second" }, h("span", { class: "figure" }, dream.gain), h("span", {}, h("bdi", {}, dream.text)))],
  };
  return h("a", { class: "cell", href, "data-id": dream.id, "data-mark": dream.mark, "aria-label": dream.label, "aria-current": chosen ? "true" : null, tabindex: chosen ? 0 : -1 },
    h("span", { class: `pic ${dream.shape}` }, picture(dream), badge), texts[captions] ?? []);
}

export const choices = (current, options) => options.map(([value, text]) => h("option", { value, selected: value === current ? "" : null }, text));

/** Return a button in the bar of a page that shows one of several things. */
export const segment = (label, id, children) => h("div", { class: "seg", role: "group", "aria-label": label, id }, children);

/** Return the links to the dream that a dream enlarges, and to those that enlarge it. */
function kin(dream) {
  const original = dreamOf(dream.enlarged_from);
  const others = [...(original ? [original] : []), ...dreams.filter((each) => each.enlarged_from === dream.id)];
  const entry = (other) => h("li", {}, h("a", { href: link("loupe", { mode: "several", id: [dream.id, other.id] }) }, picture(other),
    h("span", {}, `Enlarged ${other === original ? "from" : "to"} ${other.facts.size}`, h("small", {}, "Compare both"))));
  return others.length ? h("ul", { class: "kin" }, others.map(entry)) : null;
}

/** Return what is known of a dream. */
export function about(dream) {
  const facts = Object.entries(dream.facts).map(([name, value]) => [h("dt", {}, name), h("dd", {}, h("bdi", {}, value))]);
  const lists = [["seen before", dream.before], ["seen after", dream.after]].map(([text, classes]) => h("div", {}, h("h3", {}, text),
    h("ul", {}, classes.map(([label, percent]) => h("li", {}, h("span", {}, label), h("span", { class: "n" }, `${percent} %`))))));
  return h("div", { class: "about", "data-about": dream.id },
    h("div", { class: "who" }, h("h2", {}, dream.name), h("small", {}, h("bdi", {}, photographOf(dream.photo).name))),
    kin(dream),
    dream.scores ? h("div", { class: "figures" }, h("b", {}, dream.gain), h("small", {}, `score ${dream.scores[0]} to ${dream.scores[1]}`)) : null,
    dream.mark ? h("p", { class: "note" }, dream.mark === -1 ? "rejected" : `marked ${dream.mark}`) : null,
    dream.before.length || dream.after.length ? h("div", { class: "seen" }, h("div", { class: "two-lists" }, lists)) : null,
    h("dl", { class: "facts rule" }, facts),
    h("p", { class: "row" }, h("a", { class: "button", href: link("grid", { photo: dream.photo, chosen: dream.id }) }, "Grid"), h("a", { class: "button", href: link("loupe", { id: dream.id }) }, "Loupe"),
      h("button", { type: "button", "data-compare": "" }, "Compare ", h("kbd", {}, "c")), h("a", { class: "button", href: dream.file, download: "" }, "Download")),
    dream.command ? h("div", { class: "code" }, h("div", { class: "code-head" }, h("span", {}, "Reproduce this dream"), h("button", { class: "plain", type: "button", "data-copy": "" }, "Copy ", h("kbd", {}, "y"))), h("pre", { tabindex: 0 }, dream.command)) : null,
    h("dl", { class: "facts rule" }, h("dt", {}, "id"), h("dd", {}, h("code", {}, dream.id))));
}

/** Return the panel to the right, with the chosen dream. */
export const inspector = (dream, more = null) => h("aside", { class: "inspector", id: "inspector", "aria-label": "The chosen dream" },
  h("div", { id: "chosen" }, more, dream ? about(dream) : h("p", { class: "note" }, "No dream is chosen.")));
