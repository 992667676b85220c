// Search for a class by name while the person types, the likeliest of the photo first.
import { call, element, notice, pictureOf } from "/static/page.js";

const dialog = document.getElementById("label-dialog");
const field = document.getElementById("label-text");
const list = document.getElementById("label-list");

/** The class that the person chooses for a photo; null if they cancel. photo: may be empty. */
export function askLabel(version, photo = "") {
  return new Promise((resolve) => {
    let found = [];
    let at = 0;
    let asked = null;
    let searched = Promise.resolve();

    const close = (label) => {
      dialog.onclose = null;
      asked?.abort();
      dialog.close();
      resolve(label);
    };
    const mark = (position) => {
      at = Math.max(0, Math.min(found.length - 1, position));
      [...list.children].forEach((item, i) => item.setAttribute("aria-selected", String(i === at)));
      list.children[at]?.scrollIntoView({ block: "nearest" });
      if (list.children[at]) field.setAttribute("aria-activedescendant", `label-${at}`);
      else field.removeAttribute("aria-activedescendant");
    };
    const draw = () => {
      list.replaceChildren(...found.map((each, i) =>
        element("li", { role: "option", id: `label-${i}`, "aria-selected": "false", onclick: () => close(each.label) },
          each.sample && element("img", { src: pictureOf(version, each.sample, 96), alt: "" }),
          element("span", { class: "cut" }, each.label),
          each.probability ? element("span", { class: "soft" }, `${Math.round(100 * each.probability)} %`) : null)));
      if (!found.length) list.replaceChildren(element("li", { class: "soft", role: "option", "aria-disabled": "true" }, "No product of that name."));
      mark(0);
    };
    const search = async () => {
      asked?.abort();
      asked = new AbortController();
      const query = new URLSearchParams({ q: field.value, version, ...(photo ? { photo } : {}) });
      try {
        found = await call(`/api/review/classes?${query}`, { signal: asked.signal });
        draw();
      } catch (error) {
        if (error.name !== "AbortError") notice(error.message, { isError: true });
      }
    };

    field.value = "";
    field.oninput = () => { searched = search(); };
    field.onkeydown = async (event) => {
      if (event.key === "ArrowDown" || event.key === "ArrowUp") {
        event.preventDefault();
        mark(at + (event.key === "ArrowDown" ? 1 : -1));
      } else if (event.key === "Enter") {
        event.preventDefault();
        await searched; // who types fast means what the list is about to show
        if (found[at]) close(found[at].label);
      }
    };
    document.getElementById("label-cancel").onclick = () => close(null);
    dialog.onclose = () => resolve(null);
    list.replaceChildren();
    dialog.showModal();
    field.focus();
    field.oninput();
  });
}
