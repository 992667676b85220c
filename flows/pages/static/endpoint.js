// The page of the endpoint: asks for its counters every two seconds, and draws the last minutes, which only this page remembers.
import { call, count, element, given, notice } from "./page.js";

const EVERY_MS = 2000;
const KEPT = 150; // points of a line: five minutes
const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 240;
const HEIGHT = 48;
const LINES = [
  { title: "Requests a second", of: (step) => step.answered / step.seconds, digits: 1 },
  { title: "Time in the queue, ms", of: (step) => step.queue_us / Math.max(step.answered, 1) / 1000, digits: 1 },
  { title: "Time of computing, ms", of: (step) => step.compute_us / Math.max(step.answered, 1) / 1000, digits: 1 },
  { title: "Waiting requests", of: (step) => step.pending, digits: 0 },
  { title: "Rejected a second", of: (step) => step.rejected / step.seconds, digits: 1 },
];
const points = LINES.map(() => []);
let before = null;

function totals(state) {
  const sum = (name) => state.models.reduce((all, model) => all + model[name], 0);
  const names = ["answered", "rejected", "queue_us", "compute_us", "pending"];
  return Object.fromEntries([["time", Date.now()], ...names.map((name) => [name, sum(name)])]);
}

/** Adds what happened since the last answer; counters that fell were reset by a load, and count from there. */
function remember(state) {
  const now = totals(state);
  if (before && now.time > before.time && now.answered >= before.answered) {
    const step = { seconds: (now.time - before.time) / 1000, pending: now.pending };
    for (const name of ["answered", "rejected", "queue_us", "compute_us"]) step[name] = now[name] - before[name];
    LINES.forEach((line, index) => {
      points[index].push(line.of(step));
      if (points[index].length > KEPT) points[index].shift();
    });
  }
  before = now;
}

function shape(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function sparkline(values, digits) {
  const highest = Math.max(...values, 10 ** -digits);
  const place = (value, index) => `${(index * WIDTH) / (KEPT - 1)},${HEIGHT - 2 - (value / highest) * (HEIGHT - 6)}`;
  const drawing = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "sparkline", "aria-hidden": "true", preserveAspectRatio: "none" });
  drawing.append(shape("polyline", { points: values.map(place).join(" ") }));
  return drawing;
}

function figures() {
  return LINES.map(({ title, digits }, index) => {
    const values = points[index];
    const last = values.length ? values[values.length - 1].toFixed(digits) : "–";
    const most = values.length ? Math.max(...values).toFixed(digits) : "–";
    return element("figure", { class: "spark" },
      element("figcaption", {}, `${title} `, element("b", {}, last), element("span", { class: "soft" }, ` at most ${most}`)),
      sparkline(values, digits));
  });
}

function mean(sum_us, requests) {
  return requests ? `${(sum_us / requests / 1000).toFixed(1)} ms` : "";
}

function quantile(model, name) {
  const value = model.quantiles_ms[name];
  if (value === undefined) return "not measured";
  return value === null ? "no recent requests" : `${value.toFixed(1)} ms`;
}

function modelRow(model) {
  const cells = [
    count(model.answered), count(model.photos), count(model.failed), count(model.rejected), count(model.pending),
    mean(model.queue_us, model.answered), mean(model.compute_us, model.answered), quantile(model, "0.5"), quantile(model, "0.99"),
  ];
  return element("tr", {}, element("th", { scope: "row" }, `${model.model}, version ${model.version}`),
    ...cells.map((text) => element("td", { class: "number" }, text)));
}

function duration(seconds) {
  if (seconds < 60) return `${Math.round(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  return minutes < 2880 ? `${Math.floor(minutes / 60)} h ${minutes % 60} min` : `${Math.floor(minutes / 1440)} days`;
}

function sentences(state) {
  const model = state.current_model ? `Model version ${state.current_model} is the current model.` : "There is no model yet; start a retraining on the page Runs.";
  if (!state.running) {
    const wayOut = document.getElementById("start") ? "" : " Ask who operates this server to start it.";
    return [element("p", {}, `No endpoint is running, so no photo is recognised.${wayOut}`), element("p", {}, model)];
  }
  const time = state.uptime_s === null ? "" : `, for ${duration(state.uptime_s)}`;
  const kept = state.is_external ? "" : state.is_watched ? " It is restarted if it dies." : " No watcher restarts it if it dies.";
  return [element("p", {}, "It answers at ", element("code", {}, state.address), `${time}.${kept}`), element("p", {}, model)];
}

function draw(state) {
  document.getElementById("about").replaceChildren(...sentences(state));
  document.getElementById("sparklines").replaceChildren(...(state.models.length ? figures() : []));
  const none = element("tr", {}, element("td", { colspan: 10 }, "No model is loaded."));
  document.getElementById("models").replaceChildren(...(state.models.length ? state.models.map(modelRow) : [none]));
  document.getElementById("means-only").hidden = !state.models.some((model) => !("0.99" in model.quantiles_ms));
  const why = document.getElementById("no-metrics");
  why.hidden = !state.why;
  why.textContent = state.why;
  for (const [id, isShown] of [["start", !state.running], ["check", state.running], ["ports", !state.running], ["stop", state.running && !state.is_external]]) {
    const part = document.getElementById(id);
    if (part) part.hidden = !isShown;
  }
}

function kept({ kept: isKept, most, photos }) {
  const those = "photos that were recognised on the page Recognise, as small pictures without place and time of the shot";
  if (isKept) return `This server keeps the last ${most} ${those}.`;
  if (photos.length) return `No further photos are kept: the option --keep-photos is off. These were kept before.`;
  return `No photos are kept. With the option --keep-photos, cleanshelf web keeps the last ${most} ${those}.`;
}

function recentPhoto(photo) {
  const share = `${(100 * photo.probability).toFixed(0)} %`;
  const said = photo.label ? `${photo.label}, ${share}` : "none of the products";
  const when = photo.at.slice(0, 16).replace("T", " ");
  return element("li", {},
    element("img", { src: `/api/endpoint/photos/${photo.sha256}`, alt: "", loading: "lazy", width: 96, height: 96 }),
    element("b", {}, said),
    photo.known ? null : element("span", { class: "warn" }, "probably not of the assortment"),
    element("span", { class: "soft" }, `${when} UTC, model version ${photo.model_version}`),
    forget ? element("button", { type: "button", "aria-label": `Delete the photo of ${when}, ${said}`,
      onclick: () => remove(`/api/endpoint/photos/${photo.sha256}`) }, "Delete") : null);
}

function drawPhotos(found) {
  document.getElementById("kept").textContent = kept(found);
  document.getElementById("recent").replaceChildren(...found.photos.map(recentPhoto));
  if (forget) forget.hidden = !found.photos.length;
}

async function remove(path) {
  try {
    drawPhotos(await call(path, { method: "DELETE" }));
    document.getElementById("last").focus(); // the button that was pressed is gone
  } catch (error) {
    notice(error.message, { isError: true });
  }
}

async function refresh() {
  if (document.hidden) return;
  try {
    const { state } = await call("/api/endpoint");
    remember(state);
    draw(state);
  } catch (error) {
    notice(error.message, { isError: true });
  }
}

/** Does something that takes a while; the button says so meanwhile. */
async function during(button, text, work) {
  const label = button.textContent;
  button.disabled = true;
  button.textContent = text;
  try {
    await work();
  } catch (error) {
    notice(error.message, { isError: true });
  }
  button.disabled = false;
  button.textContent = label;
  await refresh();
}

const check = document.getElementById("check");
check.onclick = () => during(check, "Checking…", async () => {
  const { says, versions } = await call("/api/endpoint/health");
  document.getElementById("health").textContent = `${says}${versions.length ? ` Loaded: version ${versions.join(", ")}.` : ""}`;
});
const start = document.getElementById("start");
if (start) {
  start.onclick = () => during(start, "Starting…", async () => {
    const form = document.querySelector("#ports form");
    const body = Object.fromEntries([...new FormData(form)].map(([name, port]) => [name, Number(port)]));
    await call("/api/endpoint/start", { method: "POST", body });
    notice("The endpoint answers.");
  });
  const stop = document.getElementById("stop");
  const dialog = document.getElementById("confirm");
  stop.onclick = () => dialog.showModal();
  dialog.onclose = () => {
    if (dialog.returnValue !== "yes") return;
    dialog.returnValue = "";
    during(stop, "Stopping…", () => call("/api/endpoint/stop", { method: "POST" }));
  };
}
const forget = document.getElementById("forget");
if (forget) {
  const dialog = document.getElementById("forget-dialog");
  forget.onclick = () => dialog.showModal();
  dialog.onclose = () => {
    if (dialog.returnValue === "yes") remove("/api/endpoint/photos");
    dialog.returnValue = "";
  };
}
drawPhotos(given("given-photos"));
const state = given("given-state");
remember(state);
draw(state);
setInterval(refresh, EVERY_MS);
