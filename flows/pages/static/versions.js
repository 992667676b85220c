// Rollbacks: says first what would happen, asks, and then does it.
import { call, count, notice } from "./page.js";

const CHANGES = { // of photos, and of one photo
  added: ["come back", "comes back"], dropped: ["leave training", "leaves training"],
  restored: ["take part in training again", "takes part in training again"], relabelled: ["get another label", "gets another label"],
  decided: ["are decided otherwise", "is decided otherwise"],
};
const dialog = document.getElementById("rollback");
const yes = document.getElementById("rollback-yes");
const problem = document.getElementById("rollback-problem");
let address = "";
let seen = null;

function short(version) {
  return version.slice(0, 12);
}

/** "model version 3", "model versions 3 and 4". */
function models(numbers) {
  return `model version${numbers.length > 1 ? "s" : ""} ${numbers.join(", ").replace(/, (\d+)$/, " and $1")}`;
}

function dataSentences(plan) {
  const changes = Object.entries(plan.changes).filter(([, photos]) => photos).map(([name, photos]) => `${count(photos, "photo")} ${CHANGES[name][Number(photos === 1)]}`);
  const isOf = (numbers) => `The data of ${models(numbers)}`;
  return [
    `Data version ${short(plan.would_select)} becomes the selected one${plan.in_place_of ? ` in place of ${short(plan.in_place_of)}` : ""}. Nothing is deleted; you can roll back again.`,
    changes.length ? `Labels: ${changes.join(", ")}.` : "No label changes.",
    plan.without_purged ? "Photos were removed from it for good; a version without them is made and selected." : null,
    plan.models.length ? `${isOf(plan.models)} will count as withdrawn.` : null,
    plan.restored.length ? `${isOf(plan.restored)} will count as valid again.` : null,
    plan.current_model ? `The endpoint is not touched: model version ${plan.current_model} stays the current model until you retrain or roll it back.` : null,
  ];
}

function percent(share) {
  return `${(100 * share).toFixed(1)} %`;
}

function modelSentences(plan) {
  const [then, now] = [plan.metrics.top1, plan.metrics_now.top1];
  const isMeasured = typeof then === "number" && typeof now === "number";
  return [
    `Model version ${plan.would_serve} becomes the current model${plan.in_place_of ? ` in place of ${plan.in_place_of}` : ""}.`,
    plan.endpoint ? `The endpoint at ${plan.endpoint} switches to it, and no request is lost.` : "No endpoint is running; the next one that starts uses it.",
    isMeasured ? `It named ${percent(then)} of the test photos right; the present one ${percent(now)}, perhaps on other photos.` : null,
    plan.data_withdrawn ? `Its data version ${short(plan.data_version)} was withdrawn.` : null,
    "The data are not touched.",
  ];
}

function showPlan(plan) {
  const isData = address.startsWith("data/");
  seen = plan.in_place_of;
  const isThere = seen === (isData ? plan.would_select : plan.would_serve);
  const sentences = isThere ? ["It is this version already; nothing would change."] : isData ? dataSentences(plan) : modelSentences(plan);
  document.getElementById("rollback-plan").replaceChildren(...sentences.filter(Boolean).map((sentence) => {
    const line = document.createElement("li");
    line.textContent = sentence;
    return line;
  }));
  yes.disabled = isThere;
}

function showProblem(error) {
  problem.textContent = `${error.message.replace(/[.]$/, "")}. Nothing was changed.`;
  problem.hidden = false;
}

async function ask(button) {
  address = button.dataset.rollBack;
  problem.hidden = true;
  yes.disabled = true;
  document.getElementById("rollback-plan").replaceChildren("Looking what would happen…");
  dialog.showModal();
  try {
    showPlan(await call(`/api/versions/${address}/rollback`));
  } catch (error) {
    document.getElementById("rollback-plan").replaceChildren();
    showProblem(error);
  }
}

async function rollBack(event) {
  event.preventDefault(); // the dialog stays open if it fails, and says why
  yes.disabled = true;
  yes.textContent = "Rolling back…";
  try {
    const { says } = await call(`/api/versions/${address}/rollback`, { method: "POST", body: { in_place_of: seen } });
    sessionStorage.setItem("done", says);
    location.reload();
  } catch (error) {
    showProblem(error);
    yes.textContent = "Roll back";
    yes.disabled = false;
  }
}

for (const button of document.querySelectorAll("[data-roll-back]")) button.onclick = () => ask(button);
yes.onclick = rollBack;
const done = sessionStorage.getItem("done");
if (done) {
  sessionStorage.removeItem("done");
  notice(done);
}
