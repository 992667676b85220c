// What every page's script uses: calls of the JSON API, notices, elements, and addresses of photos.

/** The answer of the JSON API; an error becomes an Error with the server's message. */
export async function call(path, { method = "GET", body, signal } = {}) {
  const isForm = body instanceof FormData;
  let answer;
  try {
    answer = await fetch(path, {
      method,
      signal,
      headers: body && !isForm ? { "content-type": "application/json" } : {},
      body: body && !isForm ? JSON.stringify(body) : body,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Is `cleanshelf web` still running?");
  }
  const content = await answer.json().catch((error) => {
    if (error.name === "AbortError") throw error; // given up while the answer came in
    return {};
  });
  if (!answer.ok) {
    const failure = new Error(content.error?.message ?? `The server answered ${answer.status}.`);
    failure.kind = content.error?.kind;
    throw failure;
  }
  if (method !== "GET") document.querySelector(".notice.error")?.remove(); // it was about the attempt before
  return content;
}

/** Shows a sentence below the bar for some seconds, which screen readers speak. Errors stay until they are closed. */
export function notice(text, { isError = false } = {}) {
  const line = element("div", { class: isError ? "notice error" : "notice" }, text);
  if (isError) {
    line.append(element("button", { type: "button", "aria-label": "Close", onclick: () => line.remove() }, "×"));
  } else {
    setTimeout(() => line.remove(), 5000);
  }
  document.getElementById("notices").replaceChildren(line);
}

/** An element with attributes, properties (on…) and children, which are texts or elements. Texts are never markup. */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made[key] = value;
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** Address of a photo's picture; size is 96, 256 or 1024 px. */
export function pictureOf(version, photo, size = 256) {
  return `/photos/${version}/${photo}/${size}`;
}

/** The values that the server put into the page: <script type="application/json" id="…">. */
export function given(id) {
  return JSON.parse(document.getElementById(id).textContent);
}

/** True while the person types into a field, where keys must not act. */
export function isTyping(event) {
  const at = event.target;
  return at instanceof HTMLElement && (at.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(at.tagName));
}

/** A whole number as people read it; with a noun, "1 photo" or "2 photos". */
export function count(number, noun = "") {
  const read = number.toLocaleString("en");
  return noun ? `${read} ${noun}${number === 1 ? "" : "s"}` : read;
}
