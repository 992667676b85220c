// Many photos at once: all of a class or a confusion. Some are left out by click, drag or key, and one key decides the rest.
import { call, count, element, notice, pictureOf } from "/static/page.js";
import { actionOf, labelButtons, showKeys } from "/static/review-keys.js";
import { askLabel } from "/static/review-label.js";
import { addressWith } from "/static/review-panel.js";
import { prefetch } from "/static/review-pictures.js";

const AT_ONCE = 24;
const BUTTONS = [
  ["keep", "Labels are right"], ["take", "Take the suggestions"], ["label", "Another label"], ["none", "Not products"],
  ["skip", "Skip"], ["undo", "Undo"],
];

/** Shows the photos of the filter as tiles. refresh: draws progress afresh. */
export function startGrid({ start, query, refresh }) {
  const { version, wanted } = start;
  const root = document.getElementById("many");
  let page = { photos: [], seen: 0 };
  let next = null; // the page behind, fetched ahead
  let after = -1;
  let isBusy = false;
  let left = start.progress.left; // photos that match and are open
  const leftOut = new Set();

  const fetchPage = (rank) => call(`/api/review/queue?${query}&limit=${AT_ONCE}&after=${rank}`);
  const filter = () => Object.fromEntries(Object.entries(wanted).filter(([name]) => !["version", "state"].includes(name)));
  const chosen = () => page.photos.filter((item) => !leftOut.has(item.photo));

  async function load(rank, ready = null) {
    page = await (ready ?? fetchPage(rank));
    after = page.photos.at(-1)?.rank ?? rank;
    leftOut.clear();
    next = page.photos.length === AT_ONCE ? fetchPage(after) : null;
    next?.then((ahead) => prefetch(ahead.photos.map((item) => pictureOf(version, item.photo)))).catch(() => {});
    draw();
  }

  function draw() {
    root.hidden = false;
    if (!page.photos.length) return drawEnd();
    const tiles = element("ul", { class: "tiles" }, ...page.photos.map(tile));
    tiles.querySelector("button").tabIndex = 0;
    bindDragging(tiles);
    tiles.onkeydown = moveFocus;
    root.replaceChildren(
      element("p", { class: "soft" }, `${heading()} Choose the photos to leave out; the buttons decide about the rest.`),
      tiles,
      element("div", { class: "tools", role: "group", "aria-label": "Decide about these photos" },
        ...BUTTONS.map(([action, says]) => element("button", { type: "button", "data-action": action, class: action === "take" ? "main" : "" }, `${says} `, element("kbd", {}))),
        element("span", { id: "chosen", class: "soft", role: "status" })),
      matchingTools(),
    );
    labelButtons(root);
    said();
  }

  function heading() {
    if (wanted.given && wanted.suggested) return `Labelled ${wanted.given}, suggested ${wanted.suggested}.`;
    return wanted.given ? `Labelled ${wanted.given}.` : "Different labels together; choose a mix-up below for one at a time.";
  }

  function tile(item) {
    const text = item.suggested ? `${item.given.label} → ${item.suggested.label}` : item.given.label;
    const button = element("button", { type: "button", class: "tile", tabindex: "-1", "aria-pressed": "false", "data-photo": item.photo, "aria-label": `Leave out: ${text}` },
      element("img", { src: pictureOf(version, item.photo), alt: "", draggable: "false" }),
      element("span", { class: "cut" }, item.given.label),
      item.suggested && element("span", { class: "cut" }, `→ ${item.suggested.label}`), element("span", { class: "mark" }, "left out"));
    return element("li", {}, button);
  }

  function leaveOut(button, isOut) {
    button.setAttribute("aria-pressed", String(isOut));
    if (isOut) leftOut.add(button.dataset.photo);
    else leftOut.delete(button.dataset.photo);
    said();
  }

  const isOut = (button) => button.getAttribute("aria-pressed") === "true";
  const said = () => {
    document.getElementById("chosen").textContent = `${count(chosen().length)} of ${count(page.photos.length)} on this page`;
  };

  function bindDragging(tiles) {
    let value = null; // what the tiles that are dragged over become; null: no drag
    let first = null;
    const at = (event) => document.elementFromPoint(event.clientX, event.clientY)?.closest(".tile");
    tiles.onpointerdown = (event) => {
      first = event.button === 0 && event.pointerType === "mouse" ? at(event) : null;
      value = first ? !isOut(first) : null;
    };
    tiles.onpointermove = (event) => {
      const over = value === null ? null : at(event);
      if (over && (over !== first || isOut(first) === value)) {
        leaveOut(first, value);
        leaveOut(over, value);
      }
    };
    tiles.onclick = (event) => {
      const button = event.target.closest(".tile");
      if (button && !(value !== null && isOut(button) === value)) leaveOut(button, !isOut(button));
      value = first = null;
    };
    document.onpointerup = () => setTimeout(() => { value = first = null; });
  }

  function moveFocus(event) {
    const buttons = [...root.querySelectorAll(".tile")];
    const from = buttons.indexOf(document.activeElement);
    const columns = getComputedStyle(root.querySelector(".tiles")).gridTemplateColumns.split(" ").length;
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[event.key];
    if (from < 0 || !step || !buttons[from + step]) return;
    event.preventDefault();
    event.stopPropagation();
    buttons[from].tabIndex = -1;
    buttons[from + step].tabIndex = 0;
    buttons[from + step].focus();
  }

  function matchingTools() {
    const number = element("input", { id: "cleanest", type: "number", min: "1", value: "100", "aria-label": "How many of the cleanest" });
    const seen = element("span", { class: "soft", role: "status" });
    return element("details", {}, element("summary", {}, "More than this page: ", element("span", { id: "matching" }, `all ${count(left)} that match`)),
      element("div", { class: "row" },
        ...[["keep", "All labels that match are right"], ["take", "Take all suggestions that match"], ["none", "None that match is a product"]].map(([kind, says]) =>
          element("button", { type: "button", onclick: () => decideMatching(kind, says) }, says))),
      element("div", { class: "row" }, "The cleanest", number, "are right:",
        element("button", { type: "button", onclick: () => previewCleanest(number, seen) }, "Show the last of them"),
        element("button", { type: "button", onclick: () => decideCleanest(number) }, "They are right"), seen));
  }

  const update = () => refresh().then((progress) => {
    left = progress?.left ?? left;
    const said = document.getElementById("matching");
    if (said) said.textContent = `all ${count(left)} that match`;
  });

  async function act(work) {
    if (isBusy) return;
    isBusy = true;
    try {
      if (!start.mayDecide) throw new Error("You may look, but not decide. Ask who operates this server.");
      await work();
    } catch (error) {
      notice(error.message, { isError: true });
      if (error.kind === "Decided") await load(-1);
    } finally {
      isBusy = false;
    }
  }

  const decide = (kind, label = "") => act(async () => {
    const photos = chosen().map((item) => item.photo);
    if (!photos.length) return notice("Every photo of this page is left out.");
    const done = await call("/api/review/decide", { method: "POST", body: { version, photos, kind, label, seen: page.seen } });
    if (done.left_out) notice(`${count(done.left_out)} photos have no suggestion and stay open.`);
    await load(after, next);
    update();
  });

  const undo = () => act(async () => {
    const { count: number } = await call("/api/review/undo", { method: "POST" });
    notice(number ? `${count(number, "decision")} taken back.` : "There is nothing of yours to take back.");
    await load(-1);
    update();
  });

  const decideMatching = (kind, says) => act(async () => {
    const far = await call(`/api/review/progress?${query}`);
    const number = far.here.left - leftOut.size;
    if (!confirm(`${says}: ${count(number, "photo")}, ${leftOut.size ? `except the ${leftOut.size} left out on this page` : "also those that are not on this page"}. Undo takes them back together.`)) return;
    const body = { version, filter: filter(), kind, left_out: [...leftOut] };
    const done = await call("/api/review/decide-matching", { method: "POST", body });
    notice(`${count(done.decided, "photo")} decided.`);
    await load(-1);
    update();
  });

  async function previewCleanest(field, seen) {
    const found = await call(`/api/review/cleanest?${query}&count=${field.value || 1}`).catch((error) => notice(error.message, { isError: true }));
    if (!found) return;
    seen.replaceChildren(found.count
      ? `${count(found.count)} photos; the lowest score is ${found.lowest.toFixed(2)}. The last ones:`
      : "No open photo that matches was scored.",
      element("span", { class: "pictures" }, ...found.last.map((photo) => element("img", { src: pictureOf(version, photo), alt: "One of the last" }))));
  }

  const decideCleanest = (field) => act(async () => {
    const body = { version, filter: filter(), count: Number(field.value) || 1 };
    const done = await call("/api/review/decide-cleanest", { method: "POST", body });
    notice(`${count(done.decided)} labels are right.`);
    await load(-1);
    update();
  });

  function drawEnd() {
    root.replaceChildren(element("div", { class: "card" }, element("h2", {}, "Nothing more here"),
      element("p", {}, element("a", { href: addressWith({}) }, "Start with the first again"), " to see those that you left out, or choose another mix-up below."),
      element("button", { type: "button", onclick: undo }, "Undo")));
  }

  async function another() {
    const label = await askLabel(version, chosen()[0]?.photo);
    if (label !== null) await decide("relabel", label);
  }

  const DO = {
    keep: () => decide("keep"), take: () => decide("take"), none: () => decide("none"), skip: () => decide("skip"),
    label: another, undo, help: showKeys,
    next: () => act(() => load(after, next)), previous: () => act(() => load(-1)),
  };
  root.addEventListener("click", (event) => DO[event.target.closest("[data-action]")?.dataset.action]?.());
  document.addEventListener("keydown", (event) => {
    const action = actionOf(event);
    if (!action || event.repeat || event.defaultPrevented) return;
    event.preventDefault();
    DO[action]();
  });
  load(-1).catch((error) => notice(error.message, { isError: true }));
}
