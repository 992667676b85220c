// The page Duplicates: settles conflicts of labels, and offers products while a person types.
import { call, element, given, notice } from "/static/page.js";

const page = document.getElementById("given") ? given("given") : null;

for (const button of document.querySelectorAll("button.choose")) {
  button.onclick = async () => {
    const { photo, label } = button.dataset;
    try {
      const body = { photo, label, version: page.version, seen: page.seen };
      const done = await call("/api/duplicates/settle", { method: "POST", body });
      page.seen = done.seen;
      button.closest("li.card").querySelector(".state").replaceChildren(
        `${done.who} chose `, element("b", {}, done.label), ", not saved yet.");
      notice(`${done.label} is chosen.`);
    } catch (error) {
      notice(error.message, { isError: true });
    }
  };
}

const product = document.getElementById("product");
product.oninput = async () => {
  const found = await call(`/api/review/classes?q=${encodeURIComponent(product.value.slice(0, 200))}`).catch(() => []);
  document.getElementById("products").replaceChildren(...found.map(({ label }) => element("option", { value: label })));
};
