// Puts a model into use: one that is registered, or that of a run, perhaps despite a check that refused it.
import { call, element, notice } from "./page.js";

const POLL_MS = 1500;
const dialog = document.getElementById("publishing");
const yes = document.getElementById("publishing-yes");
const problem = document.getElementById("publishing-problem");
let ask = null; // address and body of the request that the dialog asks about

function show(sentences, request) {
  ask = request;
  problem.hidden = true;
  yes.disabled = false;
  yes.textContent = "Use it";
  document.getElementById("publishing-plan").replaceChildren(...sentences.map((sentence) => element("li", {}, sentence)));
  dialog.showModal();
}

const SWITCH = "If an endpoint runs, it switches to the new model, and no request is lost.";

function askPromotion(button) {
  const { promote, current } = button.dataset;
  show([
    `Model version ${promote} becomes the current model${current ? ` in place of ${current}` : ""}.`,
    SWITCH,
    "If another model has come into use since this one was checked, nothing happens, and you are told what to do.",
  ], { path: `/api/versions/models/${promote}/promote`, body: { in_place_of: current ? Number(current) : null } });
}

function askPublication(event) {
  event.preventDefault();
  const form = event.target;
  const reason = form.reason?.value.trim();
  show([
    reason ? "The model comes into use although a check refused it." : "The model is checked again, and comes into use if it passes.",
    reason ? `Your reason stays on record with your name: ${reason}` : "If it does not pass, the model that is in use stays.",
    SWITCH,
  ], { path: `/api/runs/${form.dataset.run}/publish`, body: reason ? { despite: reason } : {} });
}

/** Waits until what was started has ended; its error becomes an Error. */
async function ended() {
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    const { started } = await call("/api/runs?limit=1");
    if (started.is_alive) continue;
    if (started.has_failed) throw new Error(started.said || "It ended without a word; try again.");
    return;
  }
}

async function use(event) {
  event.preventDefault(); // the dialog stays open if it fails, and says why
  yes.disabled = true;
  yes.textContent = "Working…";
  try {
    await call(ask.path, { method: "POST", body: ask.body });
    await ended();
    sessionStorage.setItem("used", "The model is in use.");
    location.reload();
  } catch (error) {
    problem.textContent = error.message;
    problem.hidden = false;
    yes.textContent = "Use it";
    yes.disabled = false;
  }
}

for (const button of document.querySelectorAll("[data-promote]")) button.onclick = () => askPromotion(button);
const form = document.getElementById("publish");
if (form) form.onsubmit = askPublication;
yes.onclick = use;
const used = sessionStorage.getItem("used");
if (used) {
  sessionStorage.removeItem("used");
  notice(used);
}
