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
  const { products } = await call(`/api/products?q=${encodeURIComponent(product.value)}`).catch(() => ({ products: [] }));
  document.getElementById("products").replaceChildren(...products.map((name) => element("option", { value: name })));
};
