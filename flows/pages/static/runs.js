// The pages of runs: draws the run under way, asks for its state every two seconds, and starts and stops retrainings.
import { call, element, given, notice } from "./page.js";

const LIVE_MS = 2000;
const IDLE_MS = 10000;
const SAYS = {
  running: "is running",
  killed: "ended without a word: its process was killed, or the machine went down. Start the same recipe again; it goes on where this one ended.",
  published: "made the current model",
  staged: "registered a model that is not the current one",
  refused: "was refused by a gate; the model before it keeps answering",
  judged: "passed the gates and was not published",
  stopped: "was stopped. Start the same recipe again; it goes on where this one ended.",
  failed: "failed",
  finished: "has finished",
  unknown: "left no report",
};
const WORK = { // verbs that pages start
  retrain: (recipe) => `The retraining (recipe ${recipe})`,
  publish: (run) => `The publication of run ${run}`,
  promote: (version) => `The change to model version ${version}`,
};
const TONE = { published: "good", staged: "good", finished: "good", refused: "warn", stopped: "warn", killed: "bad", failed: "bad" };

/** Time for people, as 40 s, 12 min, 2 h 10 min. */
function duration(seconds) {
  if (seconds === null || seconds === undefined) return "";
  if (seconds < 60) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

function since(time) {
  return (Date.now() - Date.parse(time)) / 1000;
}

function stateOf(step) {
  if (step.state === "finished" && step.is_reused) return "reused";
  return { running: "running", finished: "done", failed: "failed", killed: "cut off" }[step.state];
}

function stepRow(step) {
  const took = step.state === "running" ? since(step.started) : step.seconds;
  return element("tr", { class: step.state },
    element("th", { scope: "row" }, step.step),
    element("td", {}, stateOf(step)),
    element("td", { class: "number" }, duration(took)),
    element("td", {},
      step.state === "running" && step.share !== null
        ? element("progress", { value: step.share, max: 1, "aria-label": `${step.step}: share done` }) : null,
      element("span", {}, step.text)));
}

function stepTable(run) {
  const head = ["Step", "State", "Time", "Progress"].map((name) => element("th", { scope: "col", class: name === "Time" && "number" }, name));
  return element("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": "Steps" },
    element("table", {}, element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...run.steps.map(stepRow))));
}

function lastLines(run) {
  return element("details", { open: run.state === "running" }, element("summary", {}, "Last lines"),
    element("pre", { class: "lines", tabindex: 0, "aria-label": "Last lines" }, run.lines.join("\n")));
}

function sentence(run) {
  const tone = TONE[run.state] ?? "";
  const where = run.state === "running" && run.machine ? ` on ${run.machine}, for ${duration(since(run.started))} so far` : "";
  return element("p", {}, element("a", { href: `/runs/${run.run}` }, run.run), " ",
    element("span", { class: tone }, `${SAYS[run.state]}${where}`), run.recipe ? ` (recipe ${run.recipe})` : "",
    timeLeft(run));
}

/** Time left by the last run of the same recipe; nothing if there is none to go by. */
function timeLeft(run) {
  if (run.seconds_left === null || run.state !== "running") return "";
  const left = run.seconds_left < 10 ? "Nearly done" : `About ${duration(run.seconds_left)} left`;
  return `. ${left}; the last run of this recipe took ${duration(run.last_seconds)}.`;
}

/** Draws a run into #current: one sentence, reasons, steps and last lines. */
function draw(run) {
  const parts = [sentence(run), ...run.why.map((text) => element("p", { class: TONE[run.state] === "good" ? "soft" : "bad" }, text))];
  if (run.steps.length) parts.push(stepTable(run));
  if (run.lines.length) parts.push(lastLines(run));
  const place = document.getElementById("current");
  const wasOpen = place.querySelector("details")?.open;
  place.replaceChildren(...parts);
  if (wasOpen !== undefined && place.querySelector("details")) place.querySelector("details").open = wasOpen;
}

function runRow(run) {
  return element("tr", {},
    element("th", { scope: "row" }, element("a", { href: `/runs/${run.run}` }, run.run)),
    element("td", { class: TONE[run.state] ?? "" }, run.state === "killed" ? "ended without a word" : run.state),
    element("td", {}, run.recipe),
    element("td", { class: "number whole" }, duration(run.seconds)),
    element("td", {}, run.why.join(" ")));
}

/** What became of the last start from this page, until its run is in the table. */
function drawStarted(started, runs) {
  const place = document.getElementById("started");
  if (!place) return;
  const isListed = started?.verb === "retrain" && runs.some((run) => Date.parse(run.started) >= Date.parse(started?.at));
  place.hidden = !started || (!started.is_alive && isListed);
  if (place.hidden) return;
  const by = `${WORK[started.verb]?.(started.about) ?? started.verb} that ${started.by} started`;
  place.replaceChildren(started.is_alive ? `${by} is under way.` : `${by} has ended: ${started.said || "it printed nothing"}`);
}

async function onePage(run) {
  draw(run);
  while (run.state === "running") {
    await new Promise((resolve) => setTimeout(resolve, LIVE_MS));
    try {
      run = (await call(`/api/runs/${run.run}`)).run;
    } catch (error) {
      notice(error.message, { isError: true });
      continue;
    }
    draw(run);
    if (run.state !== "running") location.reload();
  }
}

function isRetraining(started) {
  return Boolean(started?.is_alive && started.verb === "retrain");
}

let older = []; // runs that "Show older runs" fetched
let shown = 0; // runs that the server lists before them

function drawAll(found) {
  const current = found.runs.find((run) => run.state === "running");
  if (current) draw(current);
  else document.getElementById("current").replaceChildren(element("p", {}, isRetraining(found.started) ? "A retraining is starting." : "No retraining is running."));
  shown = found.runs.length;
  const seen = new Set(found.runs.map((run) => run.run));
  const all = [...found.runs, ...older.filter((run) => !seen.has(run.run))];
  const none = element("tr", {}, element("td", { colspan: 5 }, "There are none yet."));
  document.getElementById("runs").replaceChildren(...(all.length ? all.map(runRow) : [none]));
  document.getElementById("more").hidden = found.more <= older.length;
  const stop = document.getElementById("stop");
  if (stop) stop.hidden = !isRetraining(found.started);
  drawStarted(found.started, found.runs);
  return Boolean(current || found.started?.is_alive);
}

let timer;
async function refresh() {
  clearTimeout(timer);
  let isLive = false;
  try {
    isLive = drawAll(await call("/api/runs"));
  } catch (error) {
    notice(error.message, { isError: true });
  }
  timer = setTimeout(refresh, isLive ? LIVE_MS : IDLE_MS);
}

async function showOlder() {
  const found = await call(`/api/runs?skip=${shown + older.length}`).catch((error) => notice(error.message, { isError: true }));
  if (found) older = [...older, ...found.runs];
  refresh();
}

async function startRun(event) {
  event.preventDefault();
  const form = event.target;
  const overrides = form.overrides.value.split("\n").map((line) => line.trim()).filter(Boolean);
  const button = form.querySelector("button[type=submit]");
  button.disabled = true;
  try {
    await call("/api/runs", { method: "POST", body: { recipe: form.recipe.value, overrides, promote: form.promote.checked } });
    notice("The retraining is starting.");
  } catch (error) {
    notice(error.message, { isError: true });
  }
  button.disabled = false;
  refresh();
}

async function stopRun() {
  try {
    const { stopped } = await call("/api/runs/stop", { method: "POST" });
    notice(stopped ? "The run has been stopped." : "No run that was started from this page is running.");
  } catch (error) {
    notice(error.message, { isError: true });
  }
  refresh();
}

if (document.getElementById("given-run")) {
  onePage(given("given-run"));
} else {
  drawAll(given("given-runs"));
  timer = setTimeout(refresh, LIVE_MS);
  document.getElementById("more").onclick = showOlder;
  const form = document.getElementById("start");
  if (form) {
    const about = () => { document.getElementById("about").textContent = form.recipe.selectedOptions[0].dataset.about; };
    form.recipe.onchange = about;
    form.onsubmit = startRun;
    about();
    const dialog = document.getElementById("confirm");
    document.getElementById("stop").onclick = () => {
      dialog.returnValue = ""; // Escape leaves the answer of the last time
      dialog.showModal();
    };
    dialog.onclose = () => { if (dialog.returnValue === "yes") stopRun(); };
  }
}
