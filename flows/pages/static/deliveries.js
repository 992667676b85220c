// The page of deliveries: looks at a delivery, shows what would be taken in, and takes it in once that is confirmed.
import { call, element, given, notice } from "./page.js";

const LIVE_MS = 1500;
const form = document.getElementById("delivery");
const dialog = document.getElementById("confirm");
const next = document.getElementById("outcome-next");
let shown = ""; // the outcome that is drawn, so that it is not drawn again

function isLook(started) {
  return started.options.includes("--dry-run");
}

function title(started) {
  if (started.is_alive) return isLook(started) ? "Looking at the delivery…" : "Taking in the delivery…";
  if (started.has_failed) return isLook(started) ? "This delivery cannot be taken in" : "Nothing was taken in";
  return isLook(started) ? "What would be taken in" : "Taken in";
}

/** Sentences, each with the lines that belong to it. */
function list(sentences) {
  return element("ul", {}, ...sentences.map(({ says, details }) => element("li", {}, says,
    details.length ? element("ul", {}, ...details.map((line) => element("li", {}, line))) : null)));
}

function nextStep(started) {
  if (started.is_alive || started.has_failed) return [];
  if (!isLook(started)) return [element("a", { class: "button", href: "/runs" }, "Start a retraining"), " ", element("a", { href: "/versions" }, "See the new version")];
  if (!form) return [];
  return [element("button", { type: "button", onclick: () => { dialog.returnValue = ""; dialog.showModal(); } }, "Take it in…")];
}

function draw({ started, found = [], data_version: version = "" }) {
  const place = document.getElementById("outcome");
  place.hidden = !started;
  if (!started) return;
  const said = started.said || (started.is_alive ? "It is starting." : "It ended without a word; look at it again.");
  const key = JSON.stringify([started.at, started.is_alive, started.said]);
  if (key === shown) return;
  shown = key;
  document.getElementById("outcome-title").textContent = title(started);
  const what = element("p", { class: "soft" }, element("code", {}, started.about), `, started by ${started.by}`, version ? `, data version ${version.slice(0, 12)}` : "");
  const rest = started.is_alive || started.has_failed ? element("p", { class: started.has_failed ? "bad" : "soft" }, said) : list(found);
  document.getElementById("outcome-text").replaceChildren(what, rest);
  const steps = nextStep(started);
  next.hidden = !steps.length;
  next.replaceChildren(...steps);
}

let { started } = given("given");

async function follow() {
  while (started?.is_alive) {
    await new Promise((resolve) => setTimeout(resolve, LIVE_MS));
    try {
      const now = await call("/api/deliveries");
      ({ started } = now);
      draw(now);
    } catch (error) {
      notice(error.message, { isError: true });
    }
  }
  if (form) form.querySelector("button[type=submit]").disabled = false;
}

async function start(delivery) {
  if (form) form.querySelector("button[type=submit]").disabled = true;
  try {
    started = await call("/api/deliveries", { method: "POST", body: delivery });
    draw({ started });
    document.getElementById("outcome-title").focus();
  } catch (error) {
    notice(error.message, { isError: true });
  }
  follow();
}

if (form) {
  form.onsubmit = (event) => {
    event.preventDefault();
    start({ path: form.path.value.trim(), unlabelled: form.unlabelled.checked, dry_run: true });
  };
  dialog.onclose = () => {
    if (dialog.returnValue === "yes") start({ path: started.about, unlabelled: started.options.includes("--unlabelled"), dry_run: false });
  };
}
draw(given("given"));
follow();
