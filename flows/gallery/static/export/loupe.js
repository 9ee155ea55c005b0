// A static gallery: the loupe, the keyboard, and the start. It follows export.js.
(() => {
  "use strict";
  const { $, $$, h, about, cell, draw, dreams, link, loupeLink, numbers, photographs, state } = window.gallery;
  const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const MOST = 32;
  const place = { z: 1, x: 0, y: 0 };
  let picked = null;

  function loupe(query) {
    const dream = dreams[numbers.get(query.get("id"))];
    const other = dreams[numbers.get(query.get("b"))];
    const photo = photographs[dream.photo];
    const mode = other ? "two" : query.get("mode") === "split" && photo.full ? "split" : "one";
    const layer = (source, alt, name = "layer") => h("div", { class: name }, h("img", { class: "full", src: source, alt, decoding: "async" }));
    const pane = (each, ...more) => h("div", { class: `pane${mode === "split" ? " wipe" : ""}`, "data-width": each.width, "data-height": each.height }, layer(each.full, each.label), more);
    const wipe = () => {
      const value = query.get("wipe") ?? "0.5";
      const range = h("input", { type: "range", min: 0, max: 1, step: 0.005, value, "aria-label": "Photograph to the left, dream to the right", "data-wipe": "" });
      range.addEventListener("input", () => range.closest(".wipe").style.setProperty("--s", range.value));
      return [layer(photo.full, "The photograph", "layer over"), h("span", { class: "tag" }, "photograph"), h("span", { class: "tag right" }, dream.facts.layers), h("div", { class: "line", "aria-hidden": "true" }), range];
    };
    const tag = (letter, each) => [h("span", { class: "tag" }, `${letter} `, h("bdi", {}, each.text)), h("span", { class: "tag right" }, each.gain)];
    const panes = mode === "two" ? [pane(dream, tag("A", dream)), pane(other, tag("B", other))] : [pane(dream, mode === "split" ? wipe() : null)];
    const modes = [["one", "Dream", {}], ...(photo.full ? [["split", "Photograph | dream", { mode: "split" }]] : [])];
    const film = h("div", { class: "film cells", id: "film", role: "group", "aria-label": "Dreams of this photograph" },
      photo.dreams.map((each) => cell(dreams[each], loupeLink(dreams[each], { mode: mode === "split" ? mode : null }), { chosen: dreams[each] === dream, captions: "none" })));
    return h("div", { class: "view two-export loupe", id: "view" },
      h("div", { class: "body" },
        h("div", { class: "head" }, h("h1", {}, h("bdi", {}, photo.name)), h("p", { class: "sub" }, h("bdi", {}, dream.text)),
          h("div", { class: "seg", role: "group", "aria-label": "What is shown" }, modes.map(([name, text, more]) => h("a", { class: "button", "aria-current": name === mode ? "true" : null, href: loupeLink(dream, more) }, text))),
          h("div", { class: "seg", role: "group", "aria-label": "Zoom", id: "zoom" }, [["fit", "Fit"], ["1", "1:1"], ["2", "2:1"]].map(([value, text]) => h("button", { type: "button", id: `zoom-${value}`, "data-zoom": value, onclick: () => zoomTo(value === "fit" ? 1 : value * natural()) }, text))),
          h("a", { class: "button", id: "back", href: link({ view: "grid", photo: dream.photo, id: dream.id }) }, "Back ", h("kbd", {}, "Esc"))),
        h("div", { class: `stage panes-${panes.length}`, id: "stage", tabindex: 0, role: "group", "aria-label": "Picture. Plus and minus zoom; arrows move it when it is enlarged" }, panes),
        film),
      h("aside", { class: "inspector", "aria-label": "The chosen dream" }, other ? versus(dream, other) : null, about(dream)));
  }

  /** Return the settings that differ between two dreams as a table. */
  function versus(a, b) {
    const names = [...new Set([...Object.keys(a.facts), ...Object.keys(b.facts)])].filter((name) => a.facts[name] !== b.facts[name]);
    const rows = [...names.map((name) => [name, a.facts[name] ?? "", b.facts[name] ?? ""]), [a.objective === b.objective ? "gain" : "gain, of different objectives", a.gain, b.gain]];
    return h("table", { class: "versus" }, h("caption", {}, "What differs"), h("thead", {}, h("tr", {}, h("td"), h("th", { scope: "col" }, "A"), h("th", { scope: "col" }, "B"))),
      h("tbody", {}, rows.map(([name, ...values]) => h("tr", { class: "differs" }, h("th", { scope: "row" }, name), values.map((value) => h("td", {}, h("bdi", {}, value)))))));
  }

  // --- zoom

  /** Return how much 1:1 enlarges the picture that fits into the first pane. */
  function natural() {
    const pane = $("#stage .pane");
    const box = pane.getBoundingClientRect();
    return devicePixelRatio ** -1 / Math.min(box.width / (Number(pane.dataset.width) || 1), box.height / (Number(pane.dataset.height) || 1));
  }

  function zoomTo(z, x = 0, y = 0) {
    const next = Math.min(MOST, Math.max(Math.min(1, natural()), z));
    place.x = x - ((x - place.x) * next) / place.z;
    place.y = y - ((y - place.y) * next) / place.z;
    place.z = next;
    show();
  }

  function show() {
    const stage = $("#stage");
    if (!stage) return;
    const box = $(".pane", stage).getBoundingClientRect();
    const reach = Math.max(0, place.z - 1) / 2 + 0.25;
    place.x = place.z === 1 ? 0 : Math.max(-reach * box.width, Math.min(reach * box.width, place.x));
    place.y = place.z === 1 ? 0 : Math.max(-reach * box.height, Math.min(reach * box.height, place.y));
    stage.style.setProperty("--z", place.z);
    stage.style.setProperty("--x", `${place.x}px`);
    stage.style.setProperty("--y", `${place.y}px`);
    stage.classList.toggle("sharp", place.z > 1 && place.z >= 3.99 * natural());
    for (const button of $$("[data-zoom]")) {
      const value = button.dataset.zoom === "fit" ? 1 : button.dataset.zoom * natural();
      button.setAttribute("aria-pressed", String(Math.abs(value - place.z) < 0.01));
    }
  }

  let shown = "";
  /** After a page was drawn: a photograph keeps its zoom, another one begins anew. */
  function settle(query) {
    const photo = String(dreams[numbers.get(query.get("id"))]?.photo);
    if (photo !== shown) Object.assign(place, { z: 1, x: 0, y: 0 });
    shown = photo;
    show();
  }

  const drag = new Map();
  document.addEventListener("wheel", (event) => {
    const pane = event.target.closest?.("#stage .pane");
    if (!pane) return;
    event.preventDefault();
    const box = pane.getBoundingClientRect();
    zoomTo(place.z * Math.exp(-event.deltaY / 400), event.clientX - box.x - box.width / 2, event.clientY - box.y - box.height / 2);
  }, { passive: false });
  document.addEventListener("pointerdown", (event) => {
    if (event.target.closest?.("#stage .pane") && !event.target.matches("input")) drag.set(event.pointerId, [event.clientX, event.clientY]);
  });
  const spread = () => { const [a, b] = [...drag.values()]; return Math.hypot(a[0] - b[0], a[1] - b[1]) || 1; };
  document.addEventListener("pointermove", (event) => {
    const was = drag.get(event.pointerId);
    if (!was) return;
    const before = drag.size === 2 ? spread() : 0;
    drag.set(event.pointerId, [event.clientX, event.clientY]);
    if (before) return zoomTo((place.z * spread()) / before);
    place.x += event.clientX - was[0];
    place.y += event.clientY - was[1];
    show();
  });
  for (const end of ["pointerup", "pointercancel"]) document.addEventListener(end, (event) => drag.delete(event.pointerId));

  // --- choosing and keys

  function choose(next) {
    if (!next) return;
    if (next.closest("#film")) { location.hash = next.hash; return; }
    for (const each of $$(".cells .cell")) {
      each.tabIndex = each === next ? 0 : -1;
      each === next ? each.setAttribute("aria-current", "true") : each.removeAttribute("aria-current");
    }
    next.focus({ preventScroll: true });
    next.scrollIntoView({ block: "nearest", inline: "nearest" });
    if (document.body.dataset.view !== "grid") return;
    const query = state();
    query.set("id", next.dataset.id);
    history.replaceState(null, "", `#${query}`);
    $(".inspector").replaceChildren(about(dreams[numbers.get(next.dataset.id)]));
  }

  function middle(element) {
    const box = element.firstElementChild.getBoundingClientRect();
    return [box.x + box.width / 2, box.y + box.height / 2];
  }

  function move(dx, dy) {
    const all = $$(".cells .cell");
    const now = $(".cell[aria-current]") ?? all[0];
    if (!now || dx) return choose(now && all[all.indexOf(now) + dx]);
    const [x, y] = middle(now);
    const far = (each) => { const [a, b] = middle(each); return (b - y) * dy > 20 ? 3 * Math.abs(b - y) + Math.abs(a - x) : Infinity; };
    const best = all.reduce((least, each) => (far(each) < far(least) ? each : least), now);
    if (best !== now) choose(best);
  }

  function step(by) {
    const range = $("[data-slider]");
    if (!range) return;
    const count = Number(range.max) + 1;
    range.value = (Number(range.value) + by + count) % count;
    range.dispatchEvent(new Event("input"));
  }

  function compare() {
    const id = $(".cell[aria-current]")?.dataset.id;
    if (!id) return;
    if (!picked || picked === id) picked = id;
    else {
      location.hash = loupeLink({ id: picked }, { b: id });
      picked = null;
    }
  }

  function back() {
    const link = $("#back");
    location.hash = link ? link.hash : "";
  }

  /** Act on one key; returns whether it was one of ours. */
  function act(event) {
    const { key } = event;
    const arrow = ARROWS[key];
    if (arrow) {
      if (event.target.matches("input")) return false;
      if ($("#stage") && place.z > 1 && !event.target.closest("#film")) {
        place.x -= 60 * arrow[0];
        place.y -= 60 * arrow[1];
        show();
      } else if (!$("#stage") || arrow[0]) move(...arrow);
      return true;
    }
    if (key === "?") $("#keys").showModal();
    else if (key === "Escape") back();
    else if (key === "[" || key === "]") step(key === "]" ? 1 : -1);
    else if (key === "t" && $("#swap")) $("#swap").click();
    else if (key === "c") compare();
    else if (key === "/") $("#find") ? $("#find").focus() : (location.hash = "");
    else if (key === "PageUp" || key === "PageDown") {
      const link = $(`a[rel=${key === "PageUp" ? "prev" : "next"}]`);
      if (link) location.hash = link.hash;
      return Boolean(link);
    } else if ("+=".includes(key) && $("#stage")) zoomTo(place.z * 2);
    else if ("-−".includes(key) && $("#stage")) zoomTo(place.z / 2);
    else if (key === "Enter" && event.target.matches("body, main")) $(".cell[aria-current]")?.click();
    else return false;
    return true;
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || $("dialog[open]")) return;
    if (event.target.matches("input[type=search], select")) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    if (act(event)) event.preventDefault();
  });
  document.addEventListener("click", (event) => {
    const now = event.target.closest?.("#sheet .cell");
    if (!now || event.ctrlKey || event.metaKey || event.shiftKey || !event.detail || now.hasAttribute("aria-current")) return;
    event.preventDefault();
    choose(now);
  });

  $("#theme").addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    try { localStorage.setItem("dreamgrid-theme", root.dataset.theme); } catch { /* until the next page */ }
  });
  $("#keys-button").addEventListener("click", () => $("#keys").showModal());
  $("#keys-close").addEventListener("click", () => $("#keys").close());
  addEventListener("resize", show);
  addEventListener("hashchange", () => { draw(); scrollTo(0, 0); });
  Object.assign(window.gallery, { loupe, settle });
  draw();
})();
