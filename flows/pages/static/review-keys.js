// Keys of the review: which key does what, and the dialog in which a person changes them. Kept in this browser.
import { element, isTyping } from "/static/page.js";

export const ACTIONS = {
  keep: ["k", "Keep the label"],
  take: ["t", "Take the suggestion"],
  label: ["l", "Another label"],
  none: ["n", "Not a product"],
  skip: ["s", "Skip"],
  undo: ["u", "Undo the last decision"],
  next: ["ArrowRight", "Next photo, without deciding"],
  previous: ["ArrowLeft", "Previous photo, without deciding"],
  help: ["?", "Show the keys"],
};
const STORE = "cleanshelf-keys";
const SHOWN = { ArrowRight: "→", ArrowLeft: "←", ArrowUp: "↑", ArrowDown: "↓", " ": "Space" };
const RESERVED = ["Tab", "Enter", "Escape", "Shift", "Control", "Alt", "Meta", "AltGraph", " "];

let keys = read();

function read() {
  const standard = Object.fromEntries(Object.entries(ACTIONS).map(([action, [key]]) => [action, key]));
  try {
    const own = JSON.parse(localStorage.getItem(STORE) ?? "{}");
    return Object.fromEntries(Object.entries(standard).map(([action, key]) => [action, String(own[action] ?? key)]));
  } catch {
    return standard; // a browser that keeps nothing, or something else that was kept under this name
  }
}

function write() {
  try {
    localStorage.setItem(STORE, JSON.stringify(keys));
  } catch {
    // the keys hold until the page is closed
  }
}

/** The action of a key press; undefined while the person types, in a dialog, or with a key of the browser. */
export function actionOf(event) {
  if (event.ctrlKey || event.altKey || event.metaKey || event.isComposing) return undefined;
  if (isTyping(event) || document.querySelector("dialog[open]")) return undefined;
  const pressed = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  return Object.keys(keys).find((action) => keys[action] === pressed);
}

/** A key as it is written on a keyboard. */
export function shownKey(action) {
  const key = keys[action];
  return SHOWN[key] ?? (key.length === 1 ? key.toUpperCase() : key);
}

/** Writes the keys onto the buttons below `root`. */
export function labelButtons(root = document) {
  for (const button of root.querySelectorAll("[data-action]")) {
    const key = button.querySelector("kbd");
    if (key) key.textContent = shownKey(button.dataset.action);
    button.setAttribute("aria-keyshortcuts", keys[button.dataset.action]);
  }
}

/** Opens the dialog with all keys, in which each can be changed; a key that another action has is refused. */
export function showKeys() {
  const dialog = document.getElementById("keys-dialog");
  const said = document.getElementById("keys-said");
  let waiting = null;
  const draw = () => {
    document.getElementById("keys-table").replaceChildren(
      ...Object.entries(ACTIONS).map(([action, [, says]]) =>
        element("tr", {}, element("th", { scope: "row" }, says), element("td", {},
          element("button", { type: "button", "aria-label": `Key for: ${says}`, onclick: () => ask(action) }, element("kbd", {}, shownKey(action))))),
      ),
    );
    labelButtons();
  };
  const ask = (action) => {
    waiting = action;
    said.textContent = `Press the new key for “${ACTIONS[action][1]}”.`;
  };
  dialog.onkeydown = (event) => {
    if (!waiting || event.ctrlKey || event.altKey || event.metaKey) return;
    if (RESERVED.includes(event.key)) {
      if (event.key === "Escape") waiting = null;
      return;
    }
    event.preventDefault();
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const taken = Object.keys(keys).find((action) => keys[action] === key && action !== waiting);
    if (taken) {
      said.textContent = `That key is taken: ${ACTIONS[taken][1]}. Press another one.`;
      return;
    }
    keys = { ...keys, [waiting]: key };
    said.textContent = `Done: ${ACTIONS[waiting][1]}.`;
    waiting = null;
    write();
    draw();
  };
  document.getElementById("keys-reset").onclick = () => {
    keys = Object.fromEntries(Object.entries(ACTIONS).map(([action, [key]]) => [action, key]));
    write();
    draw();
  };
  document.getElementById("keys-close").onclick = () => dialog.close();
  draw();
  dialog.showModal();
}
