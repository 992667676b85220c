// The page Recognise: sends photos a few at a time, shows the answers, and keeps photos that a person names.
import { call, count, element, given, notice, pictureOf } from "/static/page.js";

const { may_decide: mayDecide, limits } = given("given");
const AT_ONCE = 8; // photos of one request
const BYTES_AT_ONCE = 40 * 1024 * 1024;
const list = document.getElementById("answers");
const progress = document.getElementById("progress");
let lastSearch;

/** Sends photos in groups; answers appear as they come. */
async function send(files) {
  const photos = [...files];
  if (!photos.length) return;
  if (photos.length > limits.most) {
    notice(`${photos.length} photos at once; send at most ${limits.most}.`, { isError: true });
    return;
  }
  document.getElementById("none").hidden = true;
  const cards = photos.map((photo) => [photo, card(photo)]);
  list.replaceChildren(...cards.map(([, shown]) => shown));
  let done = 0;
  for (const group of groups(cards)) {
    progress.textContent = `${done} of ${photos.length} photos answered`;
    await ask(group);
    done += group.length;
  }
  progress.textContent = photos.length === 1 ? "1 photo answered" : `${photos.length} photos answered`;
}

/** Groups of photos that fit into one request; a photo that is too large is told at once and never sent. */
function* groups(cards) {
  let group = [];
  let bytes = 0;
  for (const [photo, shown] of cards) {
    if (photo.size > limits.photo) {
      refuse(shown, `it has more than ${limits.photo / 1024 ** 2} MB; send a smaller copy`);
      continue;
    }
    if (group.length === AT_ONCE || bytes + photo.size > BYTES_AT_ONCE) {
      yield group;
      [group, bytes] = [[], 0];
    }
    group.push([photo, shown]);
    bytes += photo.size;
  }
  if (group.length) yield group;
}

async function ask(group) {
  const body = new FormData();
  for (const [photo] of group) body.append("photos", photo, photo.name || "photo");
  try {
    const { answers, version } = await call("/api/recognise", { method: "POST", body });
    answers.forEach((answer, position) => show(...group[position], answer, version));
  } catch (error) {
    for (const [, shown] of group) refuse(shown, error.message);
  }
}

/** A photo that waits for its answer. */
function card(photo) {
  const picture = element("img", { alt: "", src: URL.createObjectURL(photo), class: "sent" });
  picture.onerror = () => picture.remove();
  return element("li", { class: "card answer" }, picture,
    element("div", { class: "told" }, element("h3", {}, photo.name || "photo"), element("p", { class: "soft" }, "Asking …")));
}

function refuse(shown, reason) {
  shown.querySelector("p").replaceWith(element("p", { class: "bad" }, `Not recognised: ${reason}.`.replace("..", ".")));
}

function show(photo, shown, answer, version) {
  if (answer.error) {
    refuse(shown, answer.error);
    return;
  }
  const told = shown.querySelector(".told");
  told.querySelector("p").replaceWith(verdict(answer));
  told.append(ranking(answer, version), versions(answer));
  if (answer.products.length) told.append(reasons(photo));
  if (mayDecide) told.append(correction(photo));
}

function verdict(answer) {
  const [first] = answer.products;
  if (!first) return element("p", { class: "warn" }, "The model does not name a product: the photo looks like none of them.");
  const sure = answer.known ? "a product of the assortment" : "probably not a product of the assortment";
  return element("p", { class: answer.known ? "good" : "warn" }, element("b", {}, first.label), `: ${sure} (${percent(answer.score)} sure)`);
}

function ranking(answer, version) {
  const rows = answer.products.map((product) => element("li", {},
    element("span", { class: "label" }, product.label),
    element("meter", { min: 0, max: 1, value: product.probability, "aria-label": `Probability of ${product.label}` }),
    element("span", { class: "share" }, percent(product.probability)),
    element("span", { class: "pictures" }, ...product.samples.map((sample) => element("img", {
      src: pictureOf(version, sample, 96), alt: `Photo of ${product.label}`, loading: "lazy", width: 96, height: 96 })))));
  return element("ol", { class: "ranking" }, ...rows);
}

function versions(answer) {
  return element("p", { class: "soft" }, "Answered by ",
    element("a", { href: "/versions" }, `model version ${answer.model_version}`),
    `, trained on data version ${answer.data_version.slice(0, 12) || "unknown"}.`);
}

/** The most similar photos of the ranked products, which are compared when a person asks for them. */
function reasons(photo) {
  const found = element("div", { role: "status" });
  let isAsked = false;
  return element("details", { ontoggle: async (event) => {
    if (isAsked || !event.target.open) return;
    isAsked = true;
    found.replaceChildren(element("p", { class: "soft" }, "Comparing with photos of these products …"));
    const body = new FormData();
    body.append("photo", photo, photo.name || "photo");
    try {
      const nearest = await call("/api/recognise/nearest", { method: "POST", body });
      isAsked = !nearest.found.left_out;
      found.replaceChildren(...similar(nearest));
    } catch (error) {
      isAsked = false; // closed and opened, it asks again
      found.replaceChildren(element("p", { class: "bad" }, `Not compared: ${error.message}.`.replace("..", ".")));
    }
  } }, element("summary", {}, "Why? The most similar photos"), found);
}

function similar({ version, found }) {
  const rest = found.left_out ? `There was no time for ${count(found.left_out)} photos; close this and open it again to include them.` : "";
  if (!found.photos.length) return [element("p", {}, rest || "The selected data have no photos of these products.")];
  return [
    element("div", { class: "pictures similar" }, ...found.photos.map(({ photo, label, similarity }) => element("figure", {},
      element("img", { src: pictureOf(version, photo, 96), alt: `Photo of ${label}`, loading: "lazy", width: 96, height: 96 }),
      element("figcaption", {}, label, element("span", { class: "soft" }, ` ${similarity.toFixed(2)}`))))),
    element("p", { class: "soft" }, `Compared with ${count(found.compared)} photos of the products above, in `,
      element("a", { href: "/versions" }, `data version ${version.slice(0, 12)}`),
      `, by model version ${found.model_version}. The number says how similar the model finds the two photos, at most 1. ${rest}`),
  ];
}

/** The form with which a person says what a photo really shows. */
function correction(photo) {
  const field = element("input", { name: "label", list: "products", required: true, maxlength: 500, autocomplete: "off",
    "aria-label": "The product that it shows", placeholder: "The product that it shows", oninput: () => search(field.value) });
  const form = element("form", { class: "row", onsubmit: async (event) => {
    event.preventDefault();
    const body = new FormData();
    body.append("photo", photo, photo.name || "photo");
    body.append("label", field.value);
    try {
      const kept = await call("/api/recognise/name", { method: "POST", body });
      const where = kept.kept_as === "decision" ? "your decision is in the review" : "it waits to be added to the data";
      form.replaceWith(element("p", { class: "good" }, `Kept as ${kept.label}; ${where}.`));
      await showWaiting();
    } catch (error) {
      notice(error.message, { isError: true });
    }
  } }, field, element("button", { type: "submit" }, "Keep"));
  return element("details", {}, element("summary", {}, "Wrong? Say what it is"), form);
}

/** Fills the list of products that the field offers. */
async function search(text) {
  lastSearch?.abort();
  lastSearch = new AbortController();
  try {
    const found = await call(`/api/review/classes?q=${encodeURIComponent(text.slice(0, 200))}`, { signal: lastSearch.signal });
    document.getElementById("products").replaceChildren(...found.map(({ label }) => element("option", { value: label })));
  } catch (error) {
    if (error.name !== "AbortError") document.getElementById("products").replaceChildren();
  }
}

async function showWaiting() {
  const { waiting, photos } = await call("/api/recognise/waiting");
  document.getElementById("count").textContent = count(waiting);
  const save = document.getElementById("save");
  if (save) save.disabled = !waiting;
  document.getElementById("named").replaceChildren(...photos.map((named) => element("li", {},
    element("img", { src: `/api/recognise/waiting/${named.sha256}`, alt: "", loading: "lazy", width: 96, height: 96 }),
    element("b", {}, named.label), element("span", { class: "soft" }, `${named.who}, ${named.at.slice(0, 10)}`),
    mayDecide ? element("button", { type: "button", "aria-label": `Take out ${named.label}`, onclick: () => takeBack(named) },
      "Take out") : null)));
}

async function takeBack(named) {
  try {
    await call(`/api/recognise/waiting/${named.sha256}`, { method: "DELETE" });
  } catch (error) {
    notice(error.message, { isError: true });
  }
  await showWaiting();
}

async function save() {
  const button = document.getElementById("save");
  button.disabled = true;
  notice("Adding the photos to the data …");
  try {
    const done = await call("/api/recognise/waiting/save", { method: "POST" });
    notice(`Added: ${done.report}. Data version ${done.data_version.slice(0, 12)} is selected now.`);
  } catch (error) {
    notice(error.message, { isError: true });
  }
  await showWaiting();
}

function percent(share) {
  return `${(100 * share).toFixed(share >= 0.1 ? 0 : 1)} %`;
}

const drop = document.getElementById("drop");
for (const id of ["files", "camera"]) {
  const field = document.getElementById(id);
  field.onchange = async () => {
    await send(field.files);
    field.value = "";
  };
}
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  send(event.dataTransfer.files);
});
drop.addEventListener("dragenter", () => drop.classList.add("over"));
drop.addEventListener("dragleave", (event) => drop.contains(event.relatedTarget) || drop.classList.remove("over"));
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) send(event.clipboardData.files);
});
document.getElementById("save")?.addEventListener("click", save);
showWaiting().catch((error) => notice(error.message, { isError: true }));
