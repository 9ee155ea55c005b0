// The pages of a static gallery. They have the elements of the served pages, so that the same scripts and styles work.
import { cell, choices, count, dreamOf, dreams, h, inspector, link, photographOf, photographs, segment } from "./export_parts.js";

const SMALLEST = 84;
const MARKS = [["", "all"], ["1", "1 or more"], ["2", "2 or more"], ["3", "3 or more"], ["4", "4 or more"], ["5", "5"], ["none", "not marked"]];

const fold = (controls, text, now) => h("button", { class: "fold", type: "button", "aria-expanded": "false", "aria-controls": controls }, `${text} `, h("span", { class: "n" }, now));
const hidden = (name, value) => h("input", { type: "hidden", name, value });
const opener = () => h("div", { class: "mark-bar" }, h("a", { class: "button", "data-open": "", href: "#" }, "Open"));

export function library(query) {
  const text = query.get("q") ?? "";
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  const has = (photograph) => words.every((word) => photograph.name.toLowerCase().includes(word)
    || [...photograph.dreams, ...photograph.enlarged].some((each) => dreams[each].id.startsWith(word) || (dreams[each].after[0]?.[0] ?? "").toLowerCase().includes(word)));
  const found = photographs.filter(has);
  const best = found.map((photograph) => dreams[photograph.best]);
  const chosen = best.find((dream) => dream.id === query.get("chosen")) ?? best[0];
  const all = found.reduce((sum, photograph) => sum + photograph.dreams.length + photograph.enlarged.length, 0);
  const tile = (dream) => h("div", { class: `tile ${dream.shape}` }, cell(dream, { chosen: dream === chosen, captions: "named", name: photographOf(dream.photo).name, href: link("grid", { photo: dream.photo, chosen: dream.id }) }));
  const mixed = photographs.some((photograph) => new Set(photograph.dreams.map((each) => dreams[each].objective)).size > 1);
  return h("div", { class: "view three library", id: "view" },
    h("aside", { class: "rail", "aria-label": "Search" }, fold("filters", "Search", text), h("form", { id: "filters" }, hidden("view", "library"),
      h("label", { class: "field" }, "Find photographs ", h("span", { class: "keyed" }, h("input", { type: "search", id: "find", name: "q", value: text, placeholder: "name, class, id", autocomplete: "off", spellcheck: "false" }), h("kbd", {}, "/"))),
      h("p", { class: "note hint" }, "Marks are shown and cannot be changed here."))),
    h("div", { class: "body", id: "results" },
      h("div", { class: "head" }, h("h1", {}, count(found.length, "photograph", "photographs")), h("p", { class: "sub" }, `the best of each, from ${count(all, "dream", "dreams")}`),
        h("label", { class: "field inline wide hide-small" }, "Size ", h("input", { type: "range", "data-size": "--row", name: "size", min: 90, max: 420, value: query.get("size") ?? 186 }))),
      mixed ? h("p", { class: "note gain-note" }, "Gains of different layers cannot be compared. Where a photograph has several, the best dream is the one whose gain ranks highest among the dreams with its own layers.") : null,
      best.length ? h("div", { class: "cells", id: "mosaic", role: "group", "aria-label": "Photographs" }, h("div", { class: "mosaic scrolled" }, best.map(tile))) : h("div", { class: "empty" }, h("p", {}, "No photograph matches."), h("p", {}, h("a", { class: "button", href: link("library", {}) }, "Show all")))),
    inspector(chosen), opener());
}

/** Return the axes of a photograph: down, across, and the sliders with their values. */
function layout({ axes }, query) {
  const chosen = dreamOf(query.get("chosen"));
  const named = (name) => axes.find((axis) => axis.name === query.get(name));
  let down = named("down");
  let across = named("across");
  if (axes.length < 2) [down, across] = [axes[0] ?? null, null];
  else {
    down ??= axes.find((axis) => axis !== across);
    if (!across || across === down) across = axes.find((axis) => axis !== down);
  }
  const rest = axes.filter((axis) => axis !== down && axis !== across).map((axis) => {
    const given = query.get(`at.${axis.name}`) ?? chosen?.at[axis.name];
    return { ...axis, value: axis.values.includes(given) ? given : axis.values[0] };
  });
  return { down, across, rest };
}

export function grid(query) {
  const number = Number(query.get("photo")) || 0;
  const photograph = photographOf(number);
  const { down, across, rest } = layout(photograph, query);
  const placed = photograph.dreams.map((each) => dreams[each]).filter((dream) => rest.every((axis) => dream.at[axis.name] === axis.value));
  const enlarged = photograph.enlarged.map((each) => dreams[each]);
  const chosen = [...placed, ...enlarged].find((dream) => dream.id === query.get("chosen")) ?? placed[0] ?? dreams[photograph.best];
  const captions = query.get("captions") ?? "scores";
  const draw = (dream) => (dream ? cell(dream, { chosen: dream === chosen, captions }) : h("div", { class: "hole r48" }, "not dreamt"));
  const at = (row, column) => draw(placed.find((dream) => (!down || dream.at[down.name] === row) && (!across || dream.at[across.name] === column)));
  const words = (axis, value) => (["layers", "settings"].includes(axis.name) ? value : `${axis.name} ${value}`);
  const table = () => h("table", { class: "sheet cells", "data-columns": across.values.length },
    h("thead", {}, h("tr", {}, h("th", { class: "corner", scope: "col" }, photograph.small ? h("img", { src: photograph.small, alt: "The photograph" }) : null), across.values.map((value) => h("th", { scope: "col" }, words(across, value))))),
    h("tbody", {}, down.values.map((row) => h("tr", {}, h("th", { scope: "row" }, words(down, row)), across.values.map((column) => h("td", {}, at(row, column)))))));
  const row = () => h("div", { class: "plain-row cells sheet", role: "group", "aria-label": "Dreams" },
    photograph.small ? h("div", {}, h("span", { class: `pic ${chosen.shape}` }, h("img", { src: photograph.small, alt: "The photograph" })), h("span", { class: "cap" }, h("span", {}, "the photograph"))) : null,
    (down?.values ?? [""]).map((value) => h("div", {}, at(value), down ? h("span", { class: "cap second" }, h("span", {}, words(down, value))) : null)));
  const larger = (dream) => h("div", {}, draw(dream), h("span", { class: "cap second" }, h("span", {}, dream.facts.size), h("span", {}, h("bdi", {}, dream.text))));
  const pager = [["Previous", number - 1, "prev", "PgUp"], ["Next", number + 1, "next", "PgDn"]].map(([text, other, rel, key]) => (photographOf(other)
    ? h("a", { class: "button", rel, href: link("grid", { ...Object.fromEntries(query), view: null, photo: other, chosen: null }) }, `${text} `, h("kbd", {}, key)) : h("span", { class: "button", "aria-disabled": "true" }, text)));
  return h("div", { class: `view three grid${query.get("hide") ? " hide-rejected" : ""}`, id: "view", "data-least": query.get("marks") ?? "" },
    h("aside", { class: "rail", "aria-label": "Axes" }, rail(photograph, number, query, { down, across, rest, captions })),
    h("div", { class: "body" },
      h("div", { class: "head" }, h("h1", {}, h("bdi", {}, photograph.name)), h("p", { class: "sub", id: "counts" }, count(photograph.dreams.length + enlarged.length, "dream", "dreams")), h("span", { class: "pager" }, pager)),
      h("div", { class: "scroll", id: "sheet", "data-photograph": photograph.small }, across ? table() : row(),
        enlarged.length ? h("section", { id: "enlarged", "aria-labelledby": "enlarged-title" }, h("h2", { id: "enlarged-title" }, "Enlarged"), h("div", { class: "plain-row cells", role: "group", "aria-label": "Enlarged dreams" }, enlarged.map(larger))) : null)),
    inspector(chosen), opener());
}

function rail(photograph, number, query, { down, across, rest, captions }) {
  const { axes } = photograph;
  const choice = (name, text, current) => h("label", { class: "field" }, `${text} `, h("select", { name }, axes.map((axis) => h("option", { selected: axis === current ? "" : null }, axis.name))));
  const swapped = { ...Object.fromEntries(query), view: null, down: across?.name, across: down?.name };
  const chosen = across ? [choice("down", "Down", down), choice("across", "Across", across), h("p", { class: "row" }, h("a", { class: "button plain", id: "swap", href: link("grid", swapped) }, "Swap axes ", h("kbd", {}, "t")))]
    : [h("p", { class: "note" }, !down ? "No setting varies." : down.name === "settings" ? "These dreams differ in many settings, so they stand in one row." : `Only ${down.name} varies.`)];
  const slider = ({ name, values, value }, i) => h("div", { class: "slider" }, h("label", { class: "check", for: `at-${i}` }, name, h("output", { class: "n" }, value)),
    h("input", { type: "range", id: `at-${i}`, min: 0, max: values.length - 1, value: values.indexOf(value), "data-values": JSON.stringify(values), "aria-valuetext": value, "data-flip": i ? null : "" }),
    hidden(`at.${name}`, value), h("span", { class: "ends" }, h("span", {}, values[0]), h("span", {}, values.at(-1))));
  const flip = h("p", { class: "row" }, h("button", { class: "plain", type: "button", id: "flip", "aria-pressed": "false" }, "Flip through ", h("kbd", {}, "p")), h("span", { class: "hint" }, h("kbd", {}, "["), " ", h("kbd", {}, "]")));
  return [fold("axes", "Axes and sliders", [down?.name, across?.name].filter(Boolean).join(" × ")),
    h("form", { id: "axes" }, hidden("view", "grid"), hidden("photo", number),
      h("fieldset", { id: "axes-now" }, h("legend", {}, "Axes"), chosen),
      h("div", { id: "rest", class: "facets" }, rest.length ? h("fieldset", {}, h("legend", {}, "Other settings"), rest.map(slider), flip) : null),
      h("fieldset", {}, h("legend", {}, "Cells"),
        h("label", { class: "field" }, "Captions ", h("select", { name: "captions", "data-usual": "scores" }, choices(captions, [["scores", "gain and class"], ["classes", "class"], ["none", "nothing"]]))),
        h("label", { class: "field" }, "Size ", h("input", { type: "range", "data-size": "--cell", "data-sized": "", "data-usual": SMALLEST, name: "size", min: SMALLEST, max: 640, value: query.get("size") ?? SMALLEST })), h("span", { class: "ends" }, h("span", {}, "fit"), h("span", {}, "large")),
        h("label", { class: "field" }, "Marks ", h("select", { name: "marks", "data-least": "" }, choices(query.get("marks") ?? "", MARKS))),
        h("label", { class: "check" }, h("input", { type: "checkbox", name: "hide", value: "1", "data-class": "hide-rejected", checked: query.get("hide") ? "" : null }), " Hide rejected")),
      photograph.small ? h("p", { class: "note hint" }, "Hold ", h("kbd", {}, "s"), " to see the photograph in place of its dreams.") : null)];
}

/** Return the dreams to show beside each other; what is missing are the original of the first one, and those next to it. */
function panesOf(chosen, film, query) {
  const start = film.indexOf(chosen[0]) + 1;
  const others = [...film.slice(start), ...film.slice(0, start)].filter((dream) => !chosen.includes(dream));
  others.sort((one, other) => (other.id === chosen[0].enlarged_from) - (one.id === chosen[0].enlarged_from));
  return [...chosen, ...others].slice(0, query.get("panes") === "4" ? 4 : Math.max(2, chosen.length));
}

export function loupe(query) {
  const chosen = [...new Set(query.getAll("id").map(dreamOf))].filter(Boolean).slice(0, 4);
  const photograph = photographOf(chosen[0].photo);
  const film = [...photograph.dreams, ...photograph.enlarged].map((each) => dreams[each]);
  const wanted = query.get("mode") ?? (chosen.length > 1 ? "several" : "one");
  const mode = wanted === "split" && !photograph.full ? "one" : wanted;
  const panes = mode === "several" ? panesOf(chosen, film, query) : chosen.slice(0, 1);
  const active = Math.min(Number(query.get("active")) || 0, panes.length - 1);
  const dream = panes[active];
  const name = mode === "several" ? `several-${panes.length}` : mode;
  const kept = (panes.length > 1 ? panes : chosen).map((each) => each.id);
  const modes = [["one", "Dream", "", [dream.id], null], ...(photograph.full ? [["split", "Photograph | dream", "", [dream.id], null]] : []), ["several-2", "Two", "c", kept.slice(0, 2), null], ["several-4", "Four", "", kept, "4"]];
  const mood = ([value, text, key, id, more]) => h("a", { class: "button", "data-mode": value, "aria-current": value === name ? "true" : null, href: link("loupe", { mode: value.split("-")[0], id, panes: more }) }, text, key ? [" ", h("kbd", {}, key)] : null);
  const zooms = [["fit", "Fit"], ["1", "1:1"], ["2", "2:1"], ["4", "4:1"]];
  return h("div", { class: "view two loupe", id: "view" },
    h("div", { class: "body" },
      h("div", { class: "head" }, h("h1", {}, h("bdi", {}, photographOf(dream.photo).name)), h("p", { class: "sub", id: "what" }, mode === "several" ? "zoom and position are shared" : h("bdi", {}, dream.text)),
        segment("What to show", "modes", modes.map(mood)),
        segment("Zoom", "zoom", zooms.map(([value, text]) => h("button", { type: "button", "data-zoom": value, "aria-pressed": value === "fit" ? "true" : "false" }, text))),
        h("span", { class: "pager", id: "pager" }, [["Previous", "‹", "prev", -1], ["Next", "›", "next", 1]].map(([text, sign, rel, way]) => beside(dream, mode, way, { rel, "aria-label": `${text} photograph` }, sign))),
        h("a", { class: "button", id: "back", href: link("grid", { photo: dream.photo, chosen: dream.id }) }, "Back ", h("kbd", {}, "Esc"))),
      h("div", { class: `stage panes-${panes.length}`, id: "stage", tabindex: 0, role: "group", "aria-label": "Picture. Plus and minus zoom; arrows move it when it is enlarged", "data-mode": mode },
        panes.map((each, i) => pane(each, i, { mode, active, wipe: query.get("wipe") ?? "0.5" }))),
      h("div", { class: "film cells", id: "film", role: "group", "aria-label": "Dreams of this photograph" },
        film.map((each) => cell(each, { chosen: each === dream, captions: "none", href: link("loupe", { mode, id: each.id }) })))),
    inspector(dream, panes.length > 1 ? versus(panes) : null));
}

/** Return the link to the same dream of the photograph before or after, or to the best one if it has none like it. */
function beside(dream, mode, way, attributes, sign) {
  const photograph = photographOf(dream.photo + way);
  if (!photograph) return h("span", { class: "button", "aria-disabled": "true", "aria-hidden": "true" }, sign);
  const settings = ({ facts: { size, ...others } }) => JSON.stringify(others);
  const alike = photograph.dreams.map((each) => dreams[each]).find((each) => settings(each) === settings(dream));
  return h("a", { class: "button", ...attributes, href: link("loupe", { mode: mode === "several" ? null : mode, id: (alike ?? dreams[photograph.best]).id }) }, sign);
}

function pane(dream, number, { mode, active, wipe }) {
  const photograph = photographOf(dream.photo);
  const layer = (small, full, alt, name = "layer") => h("div", { class: name }, small ? h("img", { class: "under", src: small, alt: "", decoding: "async" }) : null, h("img", { class: "full", src: full, alt, decoding: "async" }));
  const more = {
    split: () => [layer(photograph.small, photograph.full, "The photograph", "layer over"), h("span", { class: "tag" }, "photograph"), h("span", { class: "tag right" }, dream.name), h("div", { class: "line", "aria-hidden": "true" }),
      h("input", { type: "range", min: 0, max: 1, step: 0.005, value: wipe, "aria-label": "Photograph to the left, dream to the right", "data-wipe": "" })],
    several: () => [h("span", { class: "tag" }, `${"ABCD"[number]}\u2002`, h("bdi", {}, dream.text)), h("span", { class: "tag right" }, dream.gain)],
  };
  return h("div", { class: `pane${mode === "split" ? " wipe" : ""}${mode === "several" && number === active ? " on" : ""}`, "data-pane": number, "data-id": dream.id, "data-width": dream.width, "data-height": dream.height },
    layer(dream.small, dream.full, dream.label), more[mode]?.() ?? []);
}

/** Return what differs between dreams as a table. */
function versus(panes) {
  const names = [...new Set(panes.flatMap((dream) => Object.keys(dream.facts)))].filter((name) => new Set(panes.map((dream) => dream.facts[name])).size > 1);
  const gain = new Set(panes.map((dream) => dream.objective)).size === 1 ? "gain" : "gain, of different objectives";
  const lines = [["photograph", (dream) => photographOf(dream.photo).name], ...names.map((name) => [name, (dream) => dream.facts[name] ?? ""]), [gain, (dream) => dream.gain]];
  const shown = lines.filter(([name, read]) => name === gain || new Set(panes.map(read)).size > 1);
  return h("table", { class: "versus" }, h("caption", {}, "What differs"), h("thead", {}, h("tr", {}, h("td"), panes.map((_, i) => h("th", { scope: "col" }, "ABCD"[i])))),
    h("tbody", {}, shown.map(([name, read]) => h("tr", { class: "differs" }, h("th", { scope: "row" }, name), panes.map((dream) => h("td", {}, h("bdi", {}, read(dream))))))));
}
