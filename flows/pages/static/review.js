// The review, one photo at a time: each decision is on the server's disk before the next photo is shown.
import { call, count, element, given, notice } from "/static/page.js";
import { startGrid } from "/static/review-grid.js";
import { actionOf, labelButtons, shownKey, showKeys } from "/static/review-keys.js";
import { askLabel } from "/static/review-label.js";
import { addressWith, bindPanel, drawFilter, drawProgress, refreshProgress } from "/static/review-panel.js";
import { addressesOf, large, makeWay, prefetch, small } from "/static/review-pictures.js";

const FEW = 10; // photos ahead, below which more are fetched
const PICTURES_AHEAD = 6; // photos whose pictures are fetched ahead
const LINGER_MS = 300; // time on a photo after which its neighbours are sought
const EVERY = 20; // decisions after which progress is asked for again
const CLEANING = {
  dropped: "left out of training", doubted: "counts less in training", relabelled: "learnt as the suggestion so far",
  checked: "checked by a person", conflict: "came with several labels", "near-test": "nearly the same as a test photo",
  "near-train": "nearly the same as a training photo",
};
const SAID = { keep: "the label is right", take: "took the suggestion", relabel: "another label", none: "not a product", skip: "skipped" };

const start = given("start");
const version = start.version;
const query = new URLSearchParams({ ...start.wanted, version });
const scope = start.wanted.scope;
const at = (id) => document.getElementById(id);

let items = start.page.photos;
let position = 0;
let progress = start.progress;
let isBusy = false;
let isAtEnd = items.length < 20;
let fetching = null;
let sinceProgress = 0;
const neighboursOf = new Map();

const current = () => items[position];

function show() {
  const item = current();
  at("one").hidden = !item;
  at("finished").hidden = Boolean(item);
  drawProgress(progress);
  if (!item) return finish();
  at("one").dataset.photo = item.photo;
  at("photo").replaceChildren(large(version, item.photo, `Photo labelled ${item.given.label}`));
  at("facts").replaceChildren(...facts(item));
  drawSide(at("given-side"), "The label it has", item.given);
  if (item.suggested) drawSide(at("suggested-side"), "Suggested instead", item.suggested);
  else at("suggested-side").replaceChildren(element("h2", {}, "No suggestion"), element("p", { class: "soft" }, "The model agrees with the label, or was not asked."));
  document.querySelector("[data-action=take]").disabled = !item.suggested;
  drawMore(item);
  const said = item.suggested ? `Label ${item.given.label}. Suggested: ${item.suggested.label}.` : `Label ${item.given.label}. No suggestion.`;
  at("spoken").textContent = item.decided ? `${said} ${decidedText(item.decided)}` : said;
  ahead();
}

function facts(item) {
  const lines = [
    item.score === null ? "never scored" : `score ${item.score.toFixed(2)} (below 0.5 the label is probably wrong)`,
    item.source && `from ${item.source}`,
    CLEANING[item.decision],
    item.split !== "train" && `${item.split === "val" ? "validation" : "test"} photo`,
  ].filter(Boolean);
  return [lines.join(" · "), item.decided && element("div", { class: "good" }, decidedText(item.decided))].filter(Boolean);
}

function decidedText(decided) {
  const label = decided.kind === "relabel" ? `: ${decided.label}` : "";
  return `${decided.who}: ${SAID[decided.kind] ?? decided.kind}${label}`;
}

function drawSide(side, title, given) {
  const sure = given.probability === null ? "" : ` · the model gives it ${(100 * given.probability).toFixed(given.probability < 0.1 ? 1 : 0)}\u00a0%`;
  side.replaceChildren(
    element("h2", {}, title),
    element("p", { class: "name", title: given.label }, given.label),
    small(version, given.samples, `Other photo of ${given.label.slice(0, 80)}`),
    element("p", { class: "soft" }, `${count(given.photos)} photos${sure}`),
  );
}

function drawMore(item) {
  const parts = [];
  if (item.others.length) {
    parts.push(element("h2", {}, "Or is it one of these?"), element("div", { class: "chips" }, ...item.others.map((each) =>
      element("button", { type: "button", onclick: () => decide("relabel", each.label) },
        each.samples.length ? element("img", { src: `/photos/${version}/${each.samples[0]}/96`, alt: "" }) : null,
        element("span", { class: "cut" }, each.label), element("span", { class: "soft" }, `${Math.round(100 * (each.probability ?? 0))} %`)))));
  }
  const near = element("div", { class: "neighbours" });
  parts.push(near);
  if (item.history.length) {
    parts.push(element("details", {}, element("summary", {}, "What people decided before"), element("ul", {},
      ...item.history.map((each) => element("li", {}, `${new Date(each.at).toLocaleString()}: ${decidedText(each)}` +
        (each.undone ? " (taken back)" : "") + (each.saved ? ` (in version ${each.saved.slice(0, 12)})` : ""))))));
  }
  at("more").replaceChildren(...parts);
  drawNeighbours(item, near);
}

async function drawNeighbours(item, near) {
  await new Promise((resolve) => setTimeout(resolve, LINGER_MS)); // who decides at once needs no neighbours
  if (current() !== item || isBusy) return; // the decision under way goes first
  const found = await neighbours(item).catch(() => []);
  if (current() !== item || !found.length) return;
  near.replaceChildren(element("h2", {}, "Most similar photos"), element("div", { class: "pictures" }, ...found.map((each) =>
    element("figure", {}, element("img", { src: `/photos/${version}/${each.photo}/96`, alt: "" }),
      element("figcaption", { class: each.label === item.given.label ? "cut" : "cut warn", title: each.label }, each.label)))));
}

function neighbours(item) {
  if (!neighboursOf.has(item.photo)) {
    neighboursOf.set(item.photo, call(`/api/review/photos/${item.photo}/neighbours?version=${version}`));
    if (neighboursOf.size > 100) neighboursOf.delete(neighboursOf.keys().next().value);
  }
  return neighboursOf.get(item.photo);
}

function ahead() {
  const next = items.slice(position + 1, position + 1 + PICTURES_AHEAD);
  prefetch(next.flatMap((item) => addressesOf(version, item)));
  if (items.length - position <= FEW) more();
}

function more() {
  if (isAtEnd || fetching) return fetching;
  const last = items.at(-1)?.rank ?? -1;
  fetching = call(`/api/review/queue?${query}&after=${last}`)
    .then((page) => {
      isAtEnd = page.photos.length < 20;
      items.push(...page.photos);
      ahead();
    })
    .catch((error) => notice(error.message, { isError: true }))
    .finally(() => { fetching = null; });
  return fetching;
}

async function decide(kind, label = "") {
  const item = current();
  if (!item || isBusy) return;
  if (!start.mayDecide) return notice("You may look, but not decide. Ask who operates this server.", { isError: true });
  if (kind === "take" && !item.suggested) return notice("There is no suggestion to take.");
  isBusy = true;
  makeWay(at("one"));
  try {
    const done = await call("/api/review/decide", {
      method: "POST", body: { version, photos: [item.photo], kind, label, seen: item.seen },
    });
    if (!item.decided) tally(kind === "skip" ? "skipped" : "decided", 1);
    Object.assign(item, { seen: done.seen, decided: { kind, label, who: start.me } });
    await forward();
  } catch (error) {
    notice(error.message, { isError: true });
    if (error.kind === "Decided" || error.kind === "UnknownPhoto") await Promise.all([reload(item), refresh()]).catch(() => {});
    else show(); // with the pictures that made way
  } finally {
    isBusy = false;
  }
}

function tally(what, number) {
  progress = { ...progress, [what]: progress[what] + number, left: progress.left - number };
  if (progress.all) progress.all = { ...progress.all, left: progress.all.left - number };
  if (what === "decided") progress.unsaved += number;
  sinceProgress += 1;
  if (sinceProgress >= EVERY) refresh();
}

function refresh() {
  sinceProgress = 0;
  return refreshProgress(query).then((found) => (progress = found)).catch((error) => notice(error.message, { isError: true }));
}

/** Moves on to the next photo that nobody in this browser has decided. */
async function forward() {
  do position += 1; while (current()?.decided && start.wanted.state === "open");
  if (!current()) {
    await more();
    if (fetching) await fetching;
  }
  show();
}

async function look(step) {
  if (step < 0 && position === 0) {
    const first = items[0]?.rank ?? 0;
    const page = await call(`/api/review/queue?${query}&before=${first}`).catch(() => ({ photos: [] }));
    items.unshift(...page.photos);
    position = page.photos.length;
    if (!position) return notice("This is the first photo.");
  }
  if (step > 0 && position >= items.length - 1) await more();
  position = Math.max(0, Math.min(items.length, position + step));
  show();
}

async function reload(item) {
  const page = await call(`/api/review/photos/${item.photo}?${new URLSearchParams({ version, scope })}`);
  Object.assign(item, page.photos[0]);
  show();
}

async function undo() {
  if (isBusy) return;
  isBusy = true;
  try {
    const { count: number, photos } = await call("/api/review/undo", { method: "POST" });
    if (!number) return notice("There is nothing of yours to take back; what was saved stays saved.");
    await comeBack(photos[0]);
    notice(number === 1 ? "Taken back." : `${count(number)} decisions taken back.`);
    refresh();
  } catch (error) {
    notice(error.message, { isError: true });
  } finally {
    isBusy = false;
  }
}

async function comeBack(photo) {
  const found = items.findIndex((item) => item.photo === photo);
  if (found >= 0) {
    position = found;
    return reload(items[found]);
  }
  const page = await call(`/api/review/photos/${photo}?${new URLSearchParams({ version, scope })}`);
  items.splice(position, 0, page.photos[0]);
  show();
}

function finish() {
  const parts = [element("h2", {}, progress.total ? "Nothing is left here" : "No photo matches")];
  if (progress.left > 0) parts.push(element("p", {}, `${count(progress.left)} photos that you passed are still open. `, element("a", { href: addressWith({}) }, "Start with the first again")));
  if (progress.skipped > 0) parts.push(element("p", {}, `${count(progress.skipped)} were skipped. `, element("a", { href: addressWith({ state: "skipped" }) }, "Look at them")));
  if (!progress.total) parts.push(element("p", {}, "Choose other photos above, or ", element("a", { href: addressWith({ scope: "all" }) }, "look at those without a label in doubt too"), "."));
  else parts.push(element("p", {}, "Save what was decided as a version; the next retraining learns from it."));
  parts.push(element("button", { type: "button", onclick: undo }, `Undo (${shownKey("undo")})`));
  at("finished").replaceChildren(...parts);
  at("spoken").textContent = "Nothing is left here.";
}

async function another() {
  if (!current() || isBusy) return;
  const label = await askLabel(version, current().photo);
  if (label !== null) await decide("relabel", label);
}

const DO = {
  keep: () => decide("keep"), take: () => decide("take"), none: () => decide("none"), skip: () => decide("skip"),
  label: another, undo, next: () => look(1), previous: () => look(-1), help: showKeys,
};

function startOne() {
  at("one").addEventListener("click", (event) => DO[event.target.closest("[data-action]")?.dataset.action]?.());
  document.addEventListener("keydown", (event) => {
    const action = actionOf(event);
    if (!action) return;
    event.preventDefault();
    if (!event.repeat || action === "next" || action === "previous") DO[action]();
  });
  show();
}

const isGrid = new URLSearchParams(location.search).get("mode") === "grid";
labelButtons();
drawFilter(start.wanted);
at("show-keys").onclick = showKeys;
bindPanel({ isGrid, onSaved: () => setTimeout(() => location.assign(addressWith({ version: null })), 2500) });
if (isGrid) startGrid({ start, query, refresh });
else startOne();
refresh();
