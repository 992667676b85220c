// The map: makes it if it is missing, colours its points, shows the photo at the pointer, and selects photos for review.
import { call, count, element, given, isTyping, notice, pictureOf } from "/static/page.js";
import { coloursOf, css, groundOf, quiet } from "/static/map-colours.js";
import { Scatter } from "/static/scatter.js";

const POLL_MS = 2000;
const HOVER_MS = 40; // that the pointer rests before its photo is asked for
const MOST_CORNERS = 400;
const STILL_PX = 4; // a pointer that moves less stands still
const STEP_PX = 60; // that an arrow key moves the view

const $ = (id) => document.getElementById(id);
const plot = $("plot"), outline = plot.querySelector("polygon"), cross = plot.querySelector(".map-cross");
const dark = matchMedia("(prefers-color-scheme: dark)");
let state = given("given");
let scatter, codes;
let corners = []; // of the area that is drawn or selected, in coordinates of the map
let asked, timer; // the request for a photo under way, and the pause before it
let shownPoint = -1;
let only = -1; // the value of the legend that alone has a colour
let isHeld = false; // the photo stays while the pointer moves on
let isDrawing = false; // around photos, with the pointer down

const SAYS = {
  missing: "There is no map of this version yet. Making one takes a minute or longer, and you can go on working meanwhile.",
  making: "The map is being made, and appears here when it is ready",
  failed: "The map was not made",
  impossible: "There is no map of this version",
};

async function start() {
  if (state.state === "ready") return show();
  $("state").hidden = false;
  $("message").textContent = [SAYS[state.state], state.message].filter(Boolean).join(": ");
  if ($("make")) $("make").hidden = !["missing", "failed"].includes(state.state);
  if (state.state === "making") setTimeout(() => update(`/api/map?version=${state.version}`), POLL_MS);
}

async function update(path, options) {
  try {
    state = await call(path, options);
  } catch (error) {
    notice(error.message, { isError: true });
    return setTimeout(() => update(`/api/map?version=${state.version}`), 5 * POLL_MS);
  }
  start();
}

async function show() {
  $("state").hidden = true;
  const answer = await fetch(`/api/map/points?version=${state.version}`);
  if (!answer.ok) return notice("The points of the map could not be read. Reload the page.", { isError: true });
  const bytes = await answer.arrayBuffer();
  const xy = new Float32Array(bytes, 0, 2 * state.points);
  codes = state.colourings.map((_, i) => new Uint8Array(bytes, (8 + i) * state.points, state.points));
  $("map").hidden = false;
  try {
    scatter = new Scatter(plot, plot.querySelector("canvas"), xy, { onView: follow });
  } catch (error) {
    $("map").hidden = true;
    $("state").hidden = false;
    $("message").textContent = "This browser cannot draw the map (it has no WebGL 2). Review lists the same photos.";
    return;
  }
  $("colour").replaceChildren(...state.colourings.map(({ name }, i) => element("option", { value: i }, name)));
  $("drawn").textContent = state.points < state.photos
    ? `${count(state.points)} of ${count(state.photos)} photos are on the map: those that one network of the cleaning looked at.`
    : `All ${count(state.photos)} photos are on the map.`;
  scatter.resize();
  colour();
  listen();
}

function colour() {
  const chosen = state.colourings[$("colour").value];
  const colours = coloursOf(chosen, dark.matches);
  const shown = colours.map((each, i) => (only < 0 || i === only ? each : quiet(dark.matches)));
  scatter.colour(codes[$("colour").value], shown, groundOf(plot));
  $("legend").replaceChildren(...chosen.values.flatMap((value, i) => (value.count ? [entry(value, i, colours[i])] : [])));
}

/** A value in the legend; pressed, it is the only one with a colour. */
function entry({ name, count: number }, i, swatchColour) {
  const swatch = element("i");
  swatch.style.backgroundColor = css(swatchColour);
  const press = () => {
    only = only === i ? -1 : i;
    colour();
    $("legend").querySelector(`[data-value="${i}"]`).focus();
  };
  const text = `${name} (${count(number)})`;
  return element("li", {}, element("button", { type: "button", "aria-pressed": String(only === i), "data-value": i,
    onclick: press }, swatch, text));
}

/** Moves what lies over the points with them. */
function follow() {
  outline.setAttribute("points", corners.map(([x, y]) => scatter.pixels(x, y).join(",")).join(" "));
  if (shownPoint >= 0) mark(shownPoint);
}

function mark(point) {
  const [left, top] = scatter.pixels(scatter.xy[2 * point], scatter.xy[2 * point + 1]);
  cross.style.transform = `translate(${left}px, ${top}px)`;
  cross.classList.add("shown");
}

/** Shows the photo nearest to a place in the frame, once the pointer rests there. */
function lookUp(left, top, most) {
  const point = scatter.nearest(...scatter.place(left, top), most);
  if (point === shownPoint || point < 0) return;
  shownPoint = point;
  mark(point);
  clearTimeout(timer);
  timer = setTimeout(() => showPhoto(point), HOVER_MS);
}

function lookUpMiddle() {
  lookUp(scatter.width / 2, scatter.height / 2, Infinity);
}

async function showPhoto(point) {
  asked?.abort();
  asked = new AbortController();
  try {
    describe(await call(`/api/map/points/${point}?version=${state.version}`, { signal: asked.signal }));
  } catch (error) {
    if (error.name !== "AbortError") notice(error.message, { isError: true });
  }
}

function describe(facts) {
  const rows = [
    ["Label", facts.label],
    ["As delivered", facts.given === facts.label ? null : facts.given],
    ["Decision", facts.says],
    ["Score", facts.score],
    ["Split", facts.split],
  ];
  const list = element("dl");
  for (const [name, value] of rows) {
    if (value !== null) list.append(element("dt", { class: "soft" }, name), element("dd", {}, String(value)));
  }
  const picture = element("img", { src: pictureOf(state.version, facts.photo), alt: `Photo labelled ${facts.label}` });
  const review = element("button", { type: "button", onclick: () => reviewOne(facts.photo) }, "Review this photo");
  $("photo").replaceChildren(picture, list, review);
  $("photo").dataset.photo = facts.photo;
}

async function reviewOne(photo) {
  try {
    const body = { version: state.version, photos: [photo] };
    location.assign(addressOf((await call("/api/review/selections", { method: "POST", body })).selection));
  } catch (error) {
    notice(error.message, { isError: true });
  }
}

/** Address of the review of a selection, whether its photos are in doubt or not. */
function addressOf(selection) {
  return `/review?${new URLSearchParams({ version: state.version, scope: "all", selection })}`;
}

/** Selects the photos within the corners, and offers them for review. */
async function select() {
  if (corners.length < 3) return clear();
  follow();
  try {
    const found = await call("/api/map/selection", { method: "POST", body: { version: state.version, corners } });
    const address = addressOf(found.selection);
    $("selected").replaceChildren(
      `${count(found.photos)} photos selected.`,
      ...(found.photos ? [element("a", { class: "button", href: address }, "Review them")] : []),
      element("button", { type: "button", onclick: clear }, "Clear"),
    );
  } catch (error) {
    clear();
    notice(error.message, { isError: true });
  }
}

function clear() {
  corners = [];
  isDrawing = false;
  shownPoint = -1;
  isHeld = false;
  cross.classList.remove("shown");
  $("selected").replaceChildren();
  draw(false);
  follow();
}

/** Switches drawing around photos on or off. */
function draw(isOn) {
  $("lasso").setAttribute("aria-pressed", isOn);
  plot.classList.toggle("drawing", isOn);
}

function spot(event) {
  const frame = plot.getBoundingClientRect();
  return [event.clientX - frame.left - plot.clientLeft, event.clientY - frame.top - plot.clientTop];
}

function listen() {
  const fingers = new Map();
  let pressed; // where the pointer went down
  plot.addEventListener("pointerdown", (event) => {
    plot.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, (pressed = spot(event)));
    isDrawing = fingers.size === 1 && (event.shiftKey || $("lasso").getAttribute("aria-pressed") === "true");
    if (isDrawing) corners = [scatter.place(...spot(event))];
  });
  plot.addEventListener("pointermove", (event) => {
    const [left, top] = spot(event), before = fingers.get(event.pointerId);
    if (!before) return isHeld || lookUp(left, top);
    if (isDrawing) {
      const last = scatter.pixels(...corners.at(-1));
      if (Math.hypot(left - last[0], top - last[1]) < STILL_PX || corners.length >= MOST_CORNERS) return;
      corners.push(scatter.place(left, top));
      return follow();
    }
    if (fingers.size === 2) {
      const [other] = [...fingers].filter(([id]) => id !== event.pointerId).map(([, at]) => at);
      const reach = ([x, y]) => Math.max(Math.hypot(x - other[0], y - other[1]), 1);
      scatter.zoom(reach([left, top]) / reach(before), ...other);
    } else {
      scatter.move(before[0] - left, before[1] - top);
    }
    fingers.set(event.pointerId, [left, top]);
  });
  const lift = (event) => {
    fingers.delete(event.pointerId);
    const [left, top] = spot(event);
    if (!isDrawing && Math.hypot(left - pressed[0], top - pressed[1]) < STILL_PX) {
      isHeld = scatter.nearest(...scatter.place(left, top)) >= 0;
      lookUp(left, top);
    }
    if (!isDrawing) return;
    isDrawing = false;
    draw(false);
    select();
  };
  plot.addEventListener("pointerup", lift);
  plot.addEventListener("pointercancel", lift);
  plot.addEventListener("wheel", (event) => {
    event.preventDefault();
    scatter.zoom(Math.exp(-event.deltaY / (event.deltaMode ? 10 : 300)), ...spot(event));
  }, { passive: false });
  plot.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (event.key in moves) scatter.move(...moves[event.key].map((step) => step * STEP_PX));
    else if (event.key === "+" || event.key === "=") scatter.zoom(1.5);
    else if (event.key === "-") scatter.zoom(1 / 1.5);
    else if (event.key === "Home") showAll();
    else return;
    event.preventDefault();
    lookUpMiddle();
  });
  plot.addEventListener("focus", () => plot.matches(":focus-visible") && lookUpMiddle());
  document.addEventListener("keydown", (event) => event.key === "Escape" && !isTyping(event) && clear());
  $("colour").addEventListener("change", () => {
    only = -1;
    colour();
  });
  dark.addEventListener("change", colour);
  $("lasso").addEventListener("click", () => draw($("lasso").getAttribute("aria-pressed") !== "true"));
  $("larger").addEventListener("click", () => scatter.zoom(1.5));
  $("smaller").addEventListener("click", () => scatter.zoom(1 / 1.5));
  $("whole").addEventListener("click", showAll);
  $("seen").addEventListener("click", () => {
    const { width, height } = scatter;
    corners = [[0, 0], [width, 0], [width, height], [0, height]].map((at) => scatter.place(...at));
    select();
  });
}

function showAll() {
  scatter.look({ x: 0, y: 0, scale: 0.95 });
}

$("make")?.addEventListener("click", () => update("/api/map", { method: "POST", body: { version: state.version } }));
start();
