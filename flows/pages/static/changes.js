// Photos of a change between two data versions, at most 60 at a time.
import { call, count, element, given, notice, pictureOf } from "./page.js";

const { old, new: newer } = given("compared");
const pictures = document.getElementById("pictures");
const more = document.getElementById("more");
let change = 0;

async function load() {
  const query = new URLSearchParams({ old, new: newer, change, skip: pictures.children.length });
  try {
    const found = await call(`/api/versions/changes/photos?${query}`);
    pictures.append(...found.photos.map((photo) => element("li", {},
      element("a", { href: pictureOf(found.version, photo, 1024), target: "_blank", rel: "noopener" },
        element("img", { src: pictureOf(found.version, photo, 96), alt: `Photo ${photo}`, width: 96, height: 96, loading: "lazy" })))));
    more.hidden = pictures.children.length >= found.total;
    document.getElementById("photos").textContent = `${count(pictures.children.length)} of ${count(found.total)} photos`;
  } catch (error) {
    notice(error.message, { isError: true });
  }
}

function show(button) {
  for (const each of document.querySelectorAll("[data-change]")) each.setAttribute("aria-expanded", String(each === button));
  change = Number(button.dataset.change);
  pictures.replaceChildren();
  document.getElementById("shown").hidden = false;
  document.getElementById("photos").focus();
  load();
}

for (const button of document.querySelectorAll("[data-change]")) button.onclick = () => show(button);
more.onclick = load;
