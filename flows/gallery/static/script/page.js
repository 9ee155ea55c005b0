// What all scripts share: finding elements, telling the user, and replacing parts of the page.

export const $ = (selector, root = document) => root.querySelector(selector);
export const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
export const base = () => document.body.dataset.base;
export const view = () => document.body.dataset.view;

/** A page that the gallery refuses to show; the message says why. */
class Refused extends Error {}

async function read(url, signal) {
  const response = await fetch(url, { signal });
  const text = await response.text();
  const page = new DOMParser().parseFromString(text, "text/html");
  if (!response.ok) throw new Refused($("#view p", page)?.textContent ?? `The gallery answered ${response.status}.`);
  return page;
}

/** How pages are addressed and read. A static gallery, which has no server, replaces these functions. */
export const site = {
  /** Return the address of a page. */
  address: (name, query = "") => `${base()}/${name}${query && `?${query}`}`,
  /** Return the page at an address as a document. */
  page: read,
  /** Return what is known of a dream as elements. */
  async about(id, signal) {
    const page = await read(`${base()}/dream/${id}?view=${view()}`, signal);
    const part = document.createDocumentFragment();
    part.append(...page.body.childNodes);
    return part;
  },
  /** Return the address of the photograph of a dream, as small as a thumbnail or as large as the dream. */
  photograph: (id, small) => `${base()}/photograph/${id}${small ? "/small" : ""}`,
};

let silence;

/** Show a short message, which screen readers read. */
export function say(text, milliseconds = 2400) {
  const toast = $("#toast");
  toast.textContent = text;
  clearTimeout(silence);
  silence = setTimeout(() => { toast.textContent = ""; }, milliseconds);
}

/** Show a line that stays until the trouble is over; an empty text hides it. */
export function trouble(text) {
  const line = $("#trouble");
  line.textContent = text;
  line.hidden = !text;
}

/** Return the present address with other parameters; an empty value or null removes one. */
export function address(changes) {
  const url = new URL(location.href);
  for (const [name, value] of Object.entries(changes)) {
    if (value == null || value === "") url.searchParams.delete(name);
    else url.searchParams.set(name, value);
  }
  return url;
}

/** Return the address of a link in the loupe, with the present zoom, position and slider. */
export function withPlace(href) {
  const url = new URL(href);
  const now = new URLSearchParams(location.search);
  for (const name of ["zoom", "x", "y", "wipe"]) {
    if (now.has(name)) url.searchParams.set(name, now.get(name));
    else url.searchParams.delete(name);
  }
  return url;
}

/** Keep a change of what is shown in the address, without an entry in the history. */
export function remember(changes) {
  history.replaceState(history.state, "", address(changes));
}

let waiting = null;

/**
 * Read a page of the gallery and put its elements with these ids in place of the present ones.
 * A later call cancels an earlier one. The old pictures stay until the new ones are decoded.
 * @returns {Promise<boolean>} whether the page was replaced
 */
export async function show(url, ids, { push = false, replace = false, decode = 0 } = {}) {
  waiting?.abort();
  const call = (waiting = new AbortController());
  document.body.classList.add("busy");
  try {
    const page = await site.page(url, call.signal);
    trouble("");
    const found = ids.map((id) => page.getElementById(id));
    if (decode) await decoded(found[0], decode);
    if (call.signal.aborted) return false;
    const focus = focusPath();
    ids.forEach((id, i) => {
      const old = document.getElementById(id);
      if (!old || !found[i]) return;
      const fresh = document.importNode(found[i], true);
      old.replaceWith(fresh);
      window.htmx?.process(fresh);
    });
    document.title = page.title;
    if (push) history.pushState({ ...history.state, shown: true }, "", url);
    else if (replace) history.replaceState(history.state, "", url);
    if (focus && document.activeElement === document.body) {
      const again = $(focus) ?? (focus.startsWith(".cell") ? $(".cell[aria-current]") : null);
      again?.focus({ preventScroll: true });
    }
    document.dispatchEvent(new CustomEvent("gallery:shown", { detail: ids }));
    return true;
  } catch (error) {
    if (error.name === "AbortError") return false;
    trouble(error instanceof Refused ? error.message : "The gallery does not respond. What is on the page stays; is `dreamgrid gallery` still running?");
    return false;
  } finally {
    if (waiting === call) document.body.classList.remove("busy");
  }
}

/** Wait until the first pictures of a part are decoded, but not long. */
async function decoded(part, most) {
  const images = $$("img", part).slice(0, most).map((image) => {
    const copy = new Image();
    copy.src = image.getAttribute("src");
    return copy.decode().catch(() => {});
  });
  await Promise.race([Promise.all(images), new Promise((done) => setTimeout(done, 1500))]);
}

/** Return a selector of the focused control, to find it again in the new page. */
function focusPath() {
  const now = document.activeElement;
  if (!now || now === document.body) return null;
  if (now.dataset?.id) return `.cell[data-id="${CSS.escape(now.dataset.id)}"]`;
  if (now.id) return `#${CSS.escape(now.id)}`;
  if (now.name) return `[name="${CSS.escape(now.name)}"][value="${CSS.escape(now.value)}"]`;
  return null;
}
