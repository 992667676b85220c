// Pictures fetched ahead of time, a few at a time, so that a decision never waits behind them for a connection.
import { element, pictureOf } from "/static/page.js";

const AT_ONCE = 2; // a browser opens six connections to a server
const KEPT = 400;
const ready = new Map(); // address -> Image
let waiting = [];
let loading = 0;

/** Fetches the pictures of these photos next, the most urgent first; what was waiting before is dropped. */
export function prefetch(addresses) {
  waiting = addresses.filter((address) => !ready.has(address));
  while (loading < AT_ONCE && waiting.length) load(waiting.shift());
}

function load(address) {
  const image = new Image();
  ready.set(address, image);
  if (ready.size > KEPT) ready.delete(ready.keys().next().value);
  loading += 1;
  image.src = address;
  image.decode().catch(() => ready.delete(address)).finally(() => {
    loading -= 1;
    if (waiting.length) load(waiting.shift());
  });
}

/** The large picture of a photo: the decoded element itself if it was fetched ahead. */
export function large(version, photo, alt) {
  const address = pictureOf(version, photo, 1024);
  const image = ready.get(address) ?? new Image();
  ready.delete(address);
  if (!image.src) image.src = address;
  image.alt = alt;
  image.decoding = "sync"; // drawn together with its labels
  return image;
}

/** Small pictures of some photos. */
export function small(version, photos, alt) {
  return element("div", { class: "pictures" },
    ...photos.map((photo) => element("img", { src: pictureOf(version, photo, 256), alt, decoding: "sync" })));
}

/** Gives up what is fetched ahead and the pictures below `root` that are not there yet: what is asked next goes first. */
export function makeWay(root) {
  waiting = [];
  for (const image of root.querySelectorAll("img")) if (!image.complete) image.removeAttribute("src");
}

/** Addresses of all pictures that a photo of the queue is shown with, its own one first. */
export function addressesOf(version, item) {
  return [
    pictureOf(version, item.photo, 1024),
    ...item.given.samples.map((photo) => pictureOf(version, photo)),
    ...(item.suggested?.samples ?? []).map((photo) => pictureOf(version, photo)),
    ...item.others.flatMap((each) => each.samples).map((photo) => pictureOf(version, photo, 96)),
  ];
}
