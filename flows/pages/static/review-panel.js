// Around the photos: progress, where most is left, saving as a version, and who the person is.
import { call, count, element, notice } from "/static/page.js";

/** Address of the review page with other criteria; null takes one out. */
export function addressWith(changes) {
  const query = new URLSearchParams(location.search);
  for (const [name, value] of Object.entries(changes)) {
    if (value === null || value === "") query.delete(name);
    else query.set(name, value);
  }
  return query.size ? `/review?${query}` : "/review";
}

/** Draws how far people are; progress: total, decided, skipped, left, unsaved, and all without the filter once that is known. */
export function drawProgress(progress) {
  const bar = document.getElementById("bar");
  bar.max = Math.max(1, progress.total);
  bar.value = progress.decided;
  const skipped = progress.skipped ? `, ${count(progress.skipped)} skipped` : "";
  const all = progress.all && progress.all.total !== progress.total
    ? ` · in all ${count(progress.all.left)} of ${count(progress.all.total)} left` : "";
  document.getElementById("numbers").textContent =
    `${count(progress.decided)} of ${count(progress.total)} decided${skipped}, ${count(progress.left)} left${all}`;
  document.getElementById("unsaved").textContent = progress.unsaved ? `${count(progress.unsaved)} not saved yet` : "";
}

/** Fetches progress by class and confusion and draws it; returns the progress of the filter. */
export async function refreshProgress(query) {
  const far = await call(`/api/review/progress?${query}`);
  const progress = { ...far.here, all: far.all, unsaved: far.unsaved };
  drawProgress(progress);
  drawGroups("confusions", far.confusions);
  drawGroups("classes", far.classes);
  return progress;
}

function drawGroups(id, groups) {
  const head = element("tr", {}, element("th", { scope: "col" }, id === "classes" ? "Product" : "Label → suggestion"),
    element("th", { scope: "col", class: "number" }, "Left"), element("th", { scope: "col", class: "number" }, "Of"));
  const rows = groups.map((each) => element("tr", {},
    element("td", {}, element("a", { class: "cut", href: addressWith({ given: each.given, suggested: each.suggested || null, mode: "grid", photo: null }) },
      each.suggested ? `${each.given} → ${each.suggested}` : each.given)),
    element("td", { class: "number" }, count(each.left)), element("td", { class: "number" }, count(each.total))));
  document.getElementById(id).replaceChildren(element("thead", {}, head), element("tbody", {}, ...rows));
}

/** The criteria of the filter in words, beside the form's heading. */
export function drawFilter(wanted) {
  const parts = Object.entries(wanted).filter(([name, value]) => !["scope", "state", "version", "selection"].includes(name) && value !== "");
  const texts = parts.map(([name, value]) => `${document.querySelector(`label[for=${name}]`)?.textContent.toLowerCase() ?? name} ${value}`);
  if (wanted.scope === "all") texts.unshift("all photos");
  if (wanted.scope === "worth") texts.unshift("worth looking at");
  if (wanted.state !== "open") texts.push(wanted.state === "all" ? "decided or not" : wanted.state);
  if (wanted.selection) texts.push("marked on the map");
  document.getElementById("filter-said").textContent = texts.length ? `: ${texts.join(", ")}` : "";
}

/** Makes the buttons above the photos work. */
export function bindPanel({ isGrid, onSaved }) {
  const other = document.getElementById("other-mode");
  other.href = addressWith({ mode: isGrid ? null : "grid" });
  other.textContent = isGrid ? "One by one" : "Many at once";
  const save = document.getElementById("save");
  if (save) save.onclick = () => saveVersion(save, onSaved);
  const form = document.getElementById("name-form");
  if (form) form.onsubmit = (event) => {
    event.preventDefault();
    const name = document.getElementById("name").value.trim();
    document.cookie = `cleanshelf_name=${encodeURIComponent(name)}; path=/; max-age=31536000; samesite=strict`;
    location.reload();
  };
  const labels = document.getElementById("labels");
  for (const id of ["given", "suggested"]) {
    document.getElementById(id).addEventListener("input", async (event) => {
      const found = await call(`/api/review/classes?${new URLSearchParams({ q: event.target.value })}`).catch(() => []);
      labels.replaceChildren(...found.map((each) => element("option", { value: each.label })));
    });
  }
}

async function saveVersion(button, onSaved) {
  button.disabled = true;
  notice("Saving. This can take a while for many photos.");
  try {
    const saved = await call("/api/review/save", { method: "POST" });
    const parts = [
      [saved.confirmed, "label", " confirmed"], [saved.relabelled, "label", " changed"], [saved.dropped, "photo", " taken out"],
      [saved.labelled, "photo", " with a first label"], [saved.near, "near-duplicate", " of test photos left out of training"],
      [saved.left_out, "photo", " not in this version, and still open"],
    ].filter(([number]) => number).map(([number, noun, what]) => count(number, noun) + what);
    notice(`Saved as version ${saved.data_version.slice(0, 12)}: ${parts.join(", ")}.`);
    onSaved(saved);
  } catch (error) {
    notice(error.message, { isError: true });
  } finally {
    button.disabled = false;
  }
}
