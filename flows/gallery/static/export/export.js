// A static gallery: the library and the grid. Everything that a page shows is in the part of the address behind #.
// Names come from other people: all text is set as text, never as markup.
(() => {
  "use strict";
  const { photographs, dreams, title } = window.DREAMS;
  const $ = (selector, root = document) => root.querySelector(selector);
  const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
  const main = $("#main");
  const numbers = new Map(dreams.map((dream, number) => [dream.id, number]));
  photographs.forEach((photo, number) => photo.dreams.forEach((each) => { dreams[each].photo = number; }));

  /** Make an element; `text` and children are text or elements, and properties with a value of null are left out. */
  function h(name, properties = {}, ...children) {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(properties)) {
      if (value == null) continue;
      if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
      else if (key === "class") element.className = value;
      else element.setAttribute(key, value);
    }
    element.append(...children.flat(Infinity).filter((child) => child != null));
    return element;
  }

  const state = () => new URLSearchParams(location.hash.slice(1));
  const link = (values) => `#${new URLSearchParams(Object.entries(values).filter(([, value]) => value !== "" && value != null))}`;

  /** Change the address without an entry in the history, and draw the page or only some parts of it anew. */
  function change(values, parts = null) {
    const query = state();
    for (const [name, value] of Object.entries(values)) value == null || value === "" ? query.delete(name) : query.set(name, value);
    history.replaceState(null, "", `#${query}`);
    if (!parts) return draw();
    const fresh = { library, grid }[document.body.dataset.view](query);
    for (const part of parts) $(part).replaceWith($(part, fresh));
  }

  function picture(source, dream, lazy = true) {
    const image = h("img", { src: source, alt: "", decoding: "async", loading: lazy ? "lazy" : null, width: dream.width, height: dream.height });
    image.addEventListener("error", () => image.replaceWith(h("span", { class: "gone" }, "missing")));
    return image;
  }

  const badge = (mark) => h("span", { class: "badge", "aria-hidden": "true" }, mark === -1 ? "×" : mark ? String(mark) : "");

  function cell(dream, href, { chosen = false, captions = "scores", name = null } = {}) {
    const caption = captions === "none" ? [] : [h("span", { class: "cap" },
      name != null ? h("bdi", {}, name) : captions === "classes" ? null : h("span", { class: "figure" }, dream.gain),
      name != null ? null : h("span", { class: "more" }, dream.after[0]?.[0] ?? ""))];
    if (name != null) caption.push(h("span", { class: "cap second" }, h("span", { class: "figure" }, dream.gain), h("bdi", {}, dream.text)));
    return h("a", { class: "cell", href, "data-id": dream.id, "data-mark": dream.mark, "aria-label": dream.label, "aria-current": chosen ? "true" : null, tabindex: chosen ? 0 : -1 },
      h("span", { class: `pic ${dream.shape}` }, picture(dream.small, dream), badge(dream.mark)), caption);
  }

  // --- library

  function library(query) {
    const words = (query.get("q") ?? "").toLowerCase().split(/\s+/).filter(Boolean);
    const has = (photo) => words.every((word) => photo.name.toLowerCase().includes(word)
      || photo.dreams.some((each) => dreams[each].id.startsWith(word) || (dreams[each].after[0]?.[0] ?? "").toLowerCase().includes(word)));
    const shown = photographs.filter(has);
    const find = h("input", { type: "search", id: "find", "aria-label": "Find", placeholder: "Find names, classes, ids", value: query.get("q") ?? "" });
    find.addEventListener("input", () => change({ q: find.value }, ["h1", ".sub", "#found"]));
    const count = shown.reduce((sum, photo) => sum + photo.dreams.length, 0);
    const mosaic = h("div", { class: "mosaic sheaf" }, shown.map((photo, i) => {
      const best = dreams[photo.best];
      const tile = cell(best, link({ view: "grid", photo: photographs.indexOf(photo), id: best.id }), { name: photo.name, chosen: i === 0 });
      return h("div", { class: `tile ${best.shape}` }, tile);
    }));
    const several = photographs.some((photo) => new Set(photo.dreams.map((each) => dreams[each].objective)).size > 1);
    return h("div", { class: "body cells", id: "view" },
      h("div", { class: "library-head" }, h("h1", {}, `${shown.length} ${shown.length === 1 ? "photograph" : "photographs"}`), h("span", { class: "sub" }, `${count} ${count === 1 ? "dream" : "dreams"}`), find),
      several ? h("p", { class: "note gain-note" }, "Each photograph is shown by its best dream. Gains of different layers, measures or networks cannot be compared, so the best one is the dream whose gain ranks highest among all with its objective.") : null,
      h("div", { id: "found" }, shown.length ? mosaic : h("p", { class: "empty" }, "No photograph matches.")));
  }

  // --- grid

  /** Return the axes of a photograph: down, across and the sliders with their values. */
  function layout(photo, query) {
    const { axes } = photo;
    const chosen = dreams[numbers.get(query.get("id"))];
    const named = (name) => axes.find((axis) => axis.name === query.get(name));
    let down = named("down");
    let across = named("across");
    if (axes.length < 2) [down, across] = [null, axes[0] ?? null];
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

  function grid(query) {
    const number = Number(query.get("photo")) || 0;
    const photo = photographs[number];
    if (!photo) return library(query);
    const { down, across, rest } = layout(photo, query);
    const inPlace = photo.dreams.map((each) => dreams[each]).filter((dream) => rest.every((axis) => dream.at[axis.name] === axis.value));
    const at = (row, column) => inPlace.find((dream) => (!down || dream.at[down.name] === row) && (!across || dream.at[across.name] === column));
    const chosen = inPlace.find((dream) => dream.id === query.get("id")) ?? inPlace[0] ?? dreams[photo.best];
    const captions = query.get("captions") ?? "scores";
    const size = Math.min(640, Math.max(84, Number(query.get("size")) || 84));
    const draw = (dream) => dream ? cell(dream, loupeLink(dream), { chosen: dream === chosen, captions }) : h("div", { class: "hole r48" }, "not dreamt");
    const words = (axis, value) => (["layers", "settings"].includes(axis.name) ? value : `${axis.name} ${value}`);
    const corner = photo.small ? h("img", { src: photo.small, alt: "The photograph" }) : "";
    const table = h("table", { class: `sheet cells${size > 84 ? " sized" : ""}` },
      h("thead", {}, h("tr", {}, h("th", { class: "corner", scope: "col" }, corner), (across?.values ?? [""]).map((value) => h("th", { scope: "col" }, across ? words(across, value) : "")))),
      h("tbody", {}, (down?.values ?? [""]).map((row) => h("tr", {}, h("th", { scope: "row" }, down ? words(down, row) : ""),
        (across?.values ?? [""]).map((column) => h("td", {}, draw(at(row, column))))))));
    table.style.setProperty("--columns", across?.values.length ?? 1);
    table.style.setProperty("--cell", `${size}px`);
    const pager = [["Previous", number - 1, "prev", "PgUp"], ["Next", number + 1, "next", "PgDn"]].map(([text, other, rel, key]) => {
      const more = { view: "grid", photo: other, down: query.get("down"), across: query.get("across"), captions: query.get("captions"), size: query.get("size") };
      return photographs[other] ? h("a", { class: "button", rel, href: link(more) }, `${text} `, h("kbd", {}, key)) : h("span", { class: "button", "aria-disabled": "true" }, text);
    });
    return h("div", { class: "view three grid", id: "view" },
      h("aside", { class: "rail", "aria-label": "Axes" }, rail(photo, { down, across, rest, captions, size })),
      h("div", { class: "body" },
        h("div", { class: "head" }, h("h1", {}, h("bdi", {}, photo.name)), h("p", { class: "sub" }, `${photo.dreams.length} ${photo.dreams.length === 1 ? "dream" : "dreams"}`), h("span", { class: "pager" }, pager)),
        h("div", { class: "scroll", id: "sheet" }, table)),
      h("aside", { class: "inspector", "aria-label": "The chosen dream" }, about(chosen)));
  }

  function rail(photo, { down, across, rest, captions, size }) {
    const choice = (name, text, current, other) => h("label", { class: "field" }, `${text} `, h("select", { name, onchange: (event) => change({ [name]: event.target.value, [other[0]]: event.target.value === other[1] ? current.name : other[1] }) },
      photo.axes.map((axis) => h("option", { selected: axis === current ? "" : null }, axis.name))));
    const axes = photo.axes.length > 1 ? [choice("down", "Down", down, ["across", across.name]), choice("across", "Across", across, ["down", down.name]),
      h("p", { class: "row" }, h("button", { class: "plain", type: "button", id: "swap", onclick: () => change({ down: across.name, across: down.name }) }, "Swap axes ", h("kbd", {}, "t")))]
      : [h("p", { class: "note" }, photo.axes[0]?.name === "settings" ? "Each dream has its own settings." : photo.axes.length ? `Only ${photo.axes[0].name} varies.` : "No setting varies.")];
    const sliders = rest.map((axis, i) => {
      const slide = ({ target }) => {
        const value = axis.values[target.value];
        target.setAttribute("aria-valuetext", value);
        $("output", target.parentElement).textContent = value;
        change({ [`at.${axis.name}`]: value, id: null }, ["#sheet", ".inspector"]);
      };
      const range = h("input", { type: "range", id: `at-${i}`, min: 0, max: axis.values.length - 1, value: axis.values.indexOf(axis.value), "aria-valuetext": axis.value, "data-slider": axis.name, oninput: slide });
      return h("div", { class: "slider" }, h("label", { class: "check", for: `at-${i}` }, axis.name, h("output", { class: "n" }, axis.value)), range,
        h("span", { class: "ends" }, h("span", {}, axis.values[0]), h("span", {}, axis.values.at(-1))));
    });
    const texts = [["scores", "gain and class"], ["classes", "class"], ["none", "nothing"]];
    const fold = h("button", { class: "fold", type: "button", "aria-expanded": "false", "aria-controls": "axes" }, "Axes and sliders ", h("span", { class: "n" }, [down?.name, across?.name].filter(Boolean).join(" × ")));
    fold.addEventListener("click", () => fold.setAttribute("aria-expanded", String(fold.getAttribute("aria-expanded") !== "true")));
    return [fold, h("form", { id: "axes" }, h("fieldset", {}, h("legend", {}, "Axes"), axes),
      sliders.length ? h("fieldset", {}, h("legend", {}, "The rest"), sliders, h("p", { class: "hint" }, h("kbd", {}, "["), " ", h("kbd", {}, "]"))) : null,
      h("fieldset", {}, h("legend", {}, "Cells"),
        h("label", { class: "field" }, "Captions ", h("select", { id: "captions", onchange: (event) => change({ captions: event.target.value }) }, texts.map(([value, text]) => h("option", { value, selected: value === captions ? "" : null }, text)))),
        h("label", { class: "field" }, "Size ", h("input", { type: "range", id: "size", min: 84, max: 640, value: size, oninput: (event) => change({ size: event.target.value }, ["#sheet"]) }))))];
  }

  // --- what is known of a dream

  function about(dream) {
    const facts = h("dl", { class: "facts" }, Object.entries(dream.facts).map(([name, value]) => [h("dt", {}, name), h("dd", {}, h("bdi", {}, value))]));
    const lists = [["seen before", dream.before], ["seen after", dream.after]].map(([text, classes]) => h("div", {}, h("h3", {}, text),
      h("ul", {}, classes.map(([label, percent]) => h("li", {}, h("span", {}, label), h("span", { class: "n" }, `${percent} %`))))));
    return h("div", { class: "about", "data-about": dream.id },
      h("div", { class: "who" }, h("h2", {}, dream.facts.layers), h("small", {}, h("bdi", {}, photographs[dream.photo].name))),
      dream.scores ? h("div", { class: "figures" }, h("b", {}, dream.gain), h("small", {}, `score ${dream.scores[0]} to ${dream.scores[1]}`)) : null,
      dream.mark ? h("p", { class: "note" }, dream.mark === -1 ? "rejected" : `marked ${dream.mark}`) : null,
      dream.before.length || dream.after.length ? h("div", { class: "seen" }, h("div", { class: "two-lists" }, lists)) : null,
      h("div", { class: "rule" }, facts),
      h("p", { class: "row" }, h("a", { class: "button", href: loupeLink(dream) }, "Loupe"), h("a", { class: "button", href: dream.file, download: "" }, "Download")),
      dream.command ? h("div", { class: "code" }, h("div", { class: "code-head" }, "Makes it again"), h("pre", { tabindex: 0 }, dream.command)) : null,
      h("dl", { class: "facts rule" }, h("dt", {}, "id"), h("dd", {}, h("code", {}, dream.id))));
  }

  const loupeLink = (dream, more = {}) => link({ view: "loupe", id: dream.id, ...more });

  // --- pages

  function draw() {
    const query = state();
    const focus = document.activeElement?.id;
    const scroll = $("#sheet")?.scrollLeft ?? 0;
    const dream = dreams[numbers.get(query.get("id"))];
    const view = query.get("view") === "loupe" && dream ? "loupe" : query.get("view") === "grid" ? "grid" : "library";
    document.body.dataset.view = view;
    const place = view === "library" ? null : view === "grid" ? photographs[Number(query.get("photo")) || 0] : photographs[dream.photo];
    document.title = `${place ? place.name : title} – Dreamgrid`;
    $("#here").hidden = view === "library";
    $("#here").textContent = { grid: "Grid", loupe: "Loupe", library: "" }[view];
    view === "library" ? $("#to-library").setAttribute("aria-current", "page") : $("#to-library").removeAttribute("aria-current");
    main.replaceChildren({ library, grid, loupe: gallery.loupe }[view](query));
    gallery.settle(query);
    if ($("#sheet")) $("#sheet").scrollLeft = scroll;
    const again = focus && document.getElementById(focus);
    if (again) {
      again.focus({ preventScroll: true });
      if (again.type === "search") again.setSelectionRange(again.value.length, again.value.length);
    } else $(".cell[aria-current]")?.focus({ preventScroll: true });
    $(".film .cell[aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });
    document.body.dataset.ready = "";
  }

  const gallery = { $, $$, h, about, cell, change, draw, dreams, link, loupeLink, numbers, photographs, picture, state };
  window.gallery = gallery;
})();
